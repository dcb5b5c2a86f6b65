"""OPC UA: the adapter is a server that shows what is stored. The client is asyncua's; the stream brings the newest values."""

import pytest
from asyncua import ua

from iiot.embedded import ports
from tests import services
from tests.drivers import Driver, Refused
from tests.integration.opcua_clients import PASSWORD, Server, Side, node, run
from tests.live import Process, stream


class Protocol(Driver):
    """Nothing comes in; people read."""

    takes_messages = False
    _beside: Process | None = None

    def start(self, _request: pytest.FixtureRequest) -> None:
        self.settings = self.settings.model_copy(update={"opcua_bind": f"127.0.0.1:{ports.free_port()}"})
        with services.active(self.settings):
            self._beside = stream()
            self._beside.start()

    def stop(self) -> None:
        if self._beside is not None:
            self._beside.stop()

    def person(self, tenant: object) -> tuple[str, str]:
        """User and password of somebody who may look."""
        return Side(tenant).user("viewer"), PASSWORD  # type: ignore[arg-type]

    def read(self, user: str, password: str, uid: str, key: str) -> object:
        """The newest value of a signal; None when there is none for this user. Raises Refused."""
        server = Server(None, f"opc.tcp://{self.settings.opcua_bind}/iiot", self.folder)  # type: ignore[arg-type]

        async def look() -> object:
            async with server.connected(user, password) as client:
                try:
                    return await node(client, f"{uid}/{key}").read_value()
                except ua.UaStatusCodeError as error:
                    if error.code == ua.StatusCodes.BadNodeIdUnknown:
                        return None
                    raise

        try:
            return run(look())
        except (ua.UaError, OSError, TimeoutError) as error:
            raise Refused(f"{type(error).__name__}: {error}") from error
