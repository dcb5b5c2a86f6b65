"""The OPC UA adapter: a server that shows each tenant its devices, their newest values and their history.

It brings no messages in; it serves what is stored (`protocols.served`). The server itself is in `protocols/opcua_*.py` and
is loaded when it runs, as its library takes 60 MB that the other adapters need not have.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from protocols.base import AdapterError, ConnectionLost, Inbox

NAME = "opcua"
DESCRIPTION = "OPC UA: a server of devices, values and history on the TCP address of IIOT_OPCUA_BIND"

PATH: Final = "/iiot"


@dataclass(frozen=True, slots=True)
class Setup:
    """What the server is told. `public`: host:port as clients reach it; None: as they have reached it."""

    host: str
    port: int
    pki: Path
    public: str | None
    certificate: Path | None
    key: Path | None
    trusts_new: bool
    connections: int
    items: int

    @property
    def url(self) -> str:
        """The endpoint as clients are told to use it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared with
        where = self.public or (f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}")
        return f"opc.tcp://{where}{PATH}"


def make(settings: Any) -> OpcUaAdapter:
    """From IIOT_OPCUA_*; raises AdapterError for half a pair of certificate and key."""
    if (settings.opcua_certificate is None) != (settings.opcua_key is None):
        raise AdapterError("IIOT_OPCUA_CERTIFICATE and IIOT_OPCUA_KEY belong together: set both, or none of them.")
    host, _, port = settings.opcua_bind.rpartition(":")
    return OpcUaAdapter(
        Setup(
            host=host.strip("[]"),
            port=int(port),
            pki=settings.opcua_folder,
            public=settings.opcua_public,
            certificate=settings.opcua_certificate,
            key=settings.opcua_key,
            trusts_new=settings.opcua_trusts_new,
            connections=settings.opcua_connections,
            items=settings.opcua_items,
        )
    )


class OpcUaAdapter:
    """See `protocols.base.Adapter`."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    def check(self) -> None:
        """Bind the port and leave it (a running adapter has it), and read the certificate."""
        from protocols.opcua_certificates import Keyring

        setup = self.setup
        Keyring(setup.pki, setup.certificate, setup.key).own(setup.url)
        family = socket.AF_INET6 if ":" in setup.host else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((setup.host, setup.port))
        except OSError as error:
            raise AdapterError(_taken(setup, error)) from error

    def run(self, inbox: Inbox, stop: threading.Event) -> None:
        """Serve until `stop`; the event loop lives in this thread."""
        from protocols.opcua_server import serve

        try:
            asyncio.run(serve(self.setup, inbox, stop))
        except OSError as error:
            raise ConnectionLost(_taken(self.setup, error)) from error
        inbox.finish()

    def send(self, uid: str, token: str, payload: bytes) -> None:
        """Refused: devices do not send over OPC UA."""
        raise AdapterError(
            "Devices do not send to the portal over OPC UA: its server shows what they have sent. "
            "Use `python -m protocols send mqtt`, or another protocol."
        )


def _taken(setup: Setup, error: OSError) -> str:
    return f"TCP {setup.host}:{setup.port} cannot be bound ({error}); end the program that has it, or change IIOT_OPCUA_BIND"
