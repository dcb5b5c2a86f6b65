"""Every Socket.IO event × own, foreign and guessed objects, against the real server: what is not yours reads like what does not exist."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import app_advanced
from iiot import clock
from iiot.config import Settings
from iiot.ids import new_uid
from iiot.services.presence import StatusEvent, status
from tests import factories
from tests.live import Listener, Process, WebServer, listening, stream, token_of
from tests.services import eventually

Side = tuple[factories.TenantRow, factories.DeviceRow, str]
# Event → what may be sent with it about a device and about a tenant; a new event without an example fails the build.
EXAMPLES: dict[str, list[Callable[[str, str], Any]]] = {
    "subscribe": [
        lambda device, tenant: {"devices": [device]},
        lambda device, tenant: {"devices": [device] * 3},
        lambda device, tenant: {"tenant": tenant},
        lambda device, tenant: {"tenant": True, "devices": [device]},
        lambda device, tenant: {"rooms": [f"tenant:{tenant}"]},
    ],
    "unsubscribe": [lambda device, tenant: {"devices": [device]}, lambda device, tenant: {"tenant": tenant}],
    "resume": [
        lambda device, tenant: {"cursor": "0" * 32, "devices": [device]},
        lambda device, tenant: {"cursor": device},
    ],
    "*": [lambda device, tenant: {"device_id": device, "tenant": tenant}],
}


@pytest.fixture(scope="module")
def server(module_settings: Settings) -> Iterator[WebServer]:
    running: list[Process] = [WebServer(), stream()]
    for process in running:
        process.start()
    yield running[0]  # type: ignore[misc]
    for process in running:
        process.stop()


@pytest.fixture(scope="module")
def sides(server: WebServer) -> tuple[Side, Side]:
    return _side("CANARY-A-tenant"), _side("other")


def _side(name: str) -> Side:
    tenant = factories.make_tenant(name)
    user = factories.make_user(tenant, "viewer")
    return tenant, factories.make_device(tenant, f"{name} device"), token_of(user)[0]


def test_every_event_has_examples(module_settings: Settings) -> None:
    socketio = app_advanced.create_app().extensions["socketio"]
    assert set(socketio.server.handlers["/"]) - {"connect", "disconnect", "__disconnect_final"} == set(EXAMPLES)


@pytest.mark.parametrize("event", EXAMPLES)
def test_an_event_about_another_tenant_is_answered_like_one_about_nothing(
    server: WebServer, sides: tuple[Side, Side], event: str
) -> None:
    (owner, device, _), (_, _, token) = sides
    name = "join" if event == "*" else event
    for example in EXAMPLES[event]:
        # A new connection for each, so that nothing remembers the question before.
        answers = []
        for uid, tenant_uid in ((device.uid, owner.uid), (new_uid(), new_uid())):
            with listening(server.url, token) as listener:
                answer = listener.ask(name, example(uid, tenant_uid))
                answers.append(str(answer | {"cursor": "?"}).replace(uid, "?").replace(tenant_uid, "?"))
        assert answers[0] == answers[1], name
        assert "CANARY" not in answers[0]


def test_nothing_of_a_tenant_arrives_whatever_was_asked(server: WebServer, sides: tuple[Side, Side]) -> None:
    (owner, device, token), (_, own, other_token) = sides
    with listening(server.url, token, tenant=True) as theirs, listening(server.url, other_token, tenant=True) as ours:
        for event, examples in EXAMPLES.items():
            for example in examples:
                ours.ask("join" if event == "*" else event, example(device.uid, owner.uid))
        ours.ask("subscribe", {"tenant": True})
        now = clock.now_ms()
        for each in (device, own):
            factories.store(each.uid, (now, {"CANARY-A-key" if each is device else "t": 424242.0137}))
            status([StatusEvent(each.uid, True, "status topic")])
        eventually(
            lambda: (device.uid, "CANARY-A-key", now) in theirs.readings and (own.uid, "t", now) in ours.readings
        )
        eventually(lambda: any(name == "device" and data["device_id"] == own.uid for name, data in ours.others))
        _resume(ours)
        assert device.uid not in str(ours.readings) + str(ours.others)
        assert "CANARY-A" not in str(ours.readings) + str(ours.others)


def _resume(listener: Listener) -> None:
    """Everything of the log, from its beginning."""
    assert listener.ask("resume", {"cursor": "0" * 32})["ok"]
