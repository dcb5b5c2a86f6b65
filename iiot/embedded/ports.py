"""Which ports the embedded services listen on."""

import errno
import os
import secrets
import socket
from collections import deque
from collections.abc import Collection


def is_free(host: str, port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> bool:
    """Whether a server could bind the port now; `kind` SOCK_DGRAM asks for UDP."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, kind) as probe:
        if kind == socket.SOCK_STREAM:
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
# Between the choice of a port and the start of its server nobody else may choose it, neither this process nor another: each choice is held as a
# name in the abstract namespace of Unix sockets, which belongs to the machine as ports do (unix(7)). So many are held, the oldest are let go.
HELD = 64
_held: deque[int] = deque()


def _hold(port: int) -> bool:
    """Whether the port is this caller's now; False when it was chosen a moment ago, here or by another process."""
    holder = socket.socket(socket.AF_UNIX)
    try:
        holder.bind(f"\0iiot-port-{port}")
    except OSError as error:
        holder.close()
        return error.errno != errno.EADDRINUSE
    _held.append(holder.detach())
    if len(_held) > HELD:
        os.close(_held.popleft())
    return True


def free_port(host: str = "127.0.0.1", kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port that nobody listens on and nobody chose a moment ago; TCP unless `kind` is SOCK_DGRAM."""
    for _ in range(TRIES):
        port = LOWEST + secrets.randbelow(HIGHEST - LOWEST + 1)
        if is_free(host, port, kind) and _hold(port):
            return port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, kind) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def choose(host: str, wanted: int, taken: Collection[int] = (), kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """`wanted` when it is free, nobody chose it a moment ago and it is not 0, else another free port that is not in `taken`."""
    if wanted and wanted not in taken and is_free(host, wanted, kind) and _hold(wanted):
        return wanted
    while (port := free_port(host, kind)) in taken:
        pass
    return port
