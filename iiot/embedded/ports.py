"""Which TCP ports the embedded services listen on."""

import secrets
import socket
from collections.abc import Collection


def is_free(host: str, port: int) -> bool:
    """Whether a server could bind the TCP port now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


# Below the ports that Linux gives to outgoing connections (ip_local_port_range begins at 32768): one of those may take a port between this look
# and the start of the server.
LOWEST, HIGHEST = 15_000, 32_767
TRIES = 50


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody holds at this moment."""
    for _ in range(TRIES):
        port = LOWEST + secrets.randbelow(HIGHEST - LOWEST + 1)
        if is_free(host, port):
            return port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def choose(host: str, wanted: int, taken: Collection[int] = ()) -> int:
    """`wanted` when it is free (and not 0), else another free port that is not in `taken`."""
    if wanted and wanted not in taken and is_free(host, wanted):
        return wanted
    while (port := free_port(host)) in taken:
        pass
    return port
