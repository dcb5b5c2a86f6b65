"""Devices over HTTP against the real web server with its two workers."""

import base64
import http.client
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest

from iiot import tenancy
from iiot.config import Settings
from iiot.services import credentials, devices, tenants
from tests import factories
from tests.integration.mqtt_devices import Device
from tests.live import WebServer
from tests.services import eventually


@pytest.fixture(scope="module")
def server(module_settings: Settings) -> Iterator[WebServer]:
    """The web server."""
    with WebServer() as running:
        yield running


def _send(connection: http.client.HTTPConnection, device: Device) -> int:
    """The status of a message."""
    login = base64.b64encode(f"{device.uid}:{device.token}".encode()).decode()
    headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
    connection.request("POST", "/api/v1/telemetry", b'{"a": 1}', headers)
    with connection.getresponse() as response:
        response.read()
        return response.status


def _replace(device: Device) -> None:
    with tenancy.work(tenancy.of(device.tenant)) as db:
        credentials.replace(db, devices.locked(db, device.uid), credentials.Wanted())


def _disable(device: Device) -> None:
    with tenancy.work(tenancy.of(device.tenant)) as db:
        devices.change(db, device.uid, {"enabled": False})


def _suspend(device: Device) -> None:
    with tenancy.work(tenancy.system("platform", device.tenant.tenant_id)) as db:
        tenants.set_status(db, "suspended", "The bill is open.", None)


@pytest.mark.parametrize(("revoke", "status"), [(_replace, 401), (_disable, 403), (_suspend, 403)])
def test_a_revoked_device_is_mute_within_a_second(
    server: WebServer, revoke: Callable[[Device], None], status: int
) -> None:
    device = Device(factories.make_tenant())
    with ExitStack() as exits:
        # Enough for both workers to have one.
        connections = [
            exits.enter_context(closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)))
            for _ in range(4)
        ]
        assert {_send(each, device) for each in connections} == {200}
        revoke(device)
        began = time.monotonic()
        eventually(lambda: {_send(each, device) for each in connections} == {status}, 5)
        assert time.monotonic() - began <= 1.0
