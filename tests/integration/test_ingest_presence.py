"""Online and offline, as devices tell it."""

from typing import Any

import pytest

from iiot.services.ingest import StatusEvent, status
from tests.factories import DeviceRow, make_device, make_tenant, rows

pytestmark = pytest.mark.usefixtures("module_settings")


@pytest.fixture
def device() -> DeviceRow:
    return make_device(make_tenant())


def state(device: DeviceRow) -> tuple[Any, ...]:
    return rows("SELECT status, tells_status, last_seen_at IS NOT NULL FROM iiot.device WHERE uid = %s", device.uid)[0]


def history(device: DeviceRow) -> list[tuple[Any, ...]]:
    return rows(
        "SELECT online, reason FROM iiot.connection_event WHERE tenant_id = %s AND device_id = %s ORDER BY id",
        device.tenant_id,
        device.device_id,
    )


def test_a_new_device_has_told_nothing(device: DeviceRow) -> None:
    assert state(device) == ("new", False, False)


def test_online_and_offline_are_kept_with_their_reason(device: DeviceRow) -> None:
    status([StatusEvent(device.uid, True, "status topic")])
    assert state(device) == ("online", True, True)
    status([StatusEvent(device.uid, False, "last will")])
    assert state(device) == ("offline", True, True)
    assert history(device) == [(True, "status topic"), (False, "last will")]


def test_the_same_state_again_is_no_event(device: DeviceRow) -> None:
    status([StatusEvent(device.uid, True, "one"), StatusEvent(device.uid, True, "two")])
    status([StatusEvent(device.uid, True, "three")])
    assert history(device) == [(True, "one")]


def test_the_last_word_of_a_batch_is_the_state(device: DeviceRow) -> None:
    status(
        [StatusEvent(device.uid, True, "a"), StatusEvent(device.uid, False, "b"), StatusEvent(device.uid, True, "c")]
    )
    assert state(device)[0] == "online"
    assert history(device) == [(True, "a"), (False, "b"), (True, "c")]


def test_a_device_that_was_never_seen_may_go_offline(device: DeviceRow) -> None:
    status([StatusEvent(device.uid, False, "last will")])
    assert state(device) == ("offline", True, False)


def test_unknown_and_disabled_devices_are_passed_over(device: DeviceRow) -> None:
    disabled = make_device(make_tenant(), enabled=False)
    status([StatusEvent("a" * 26, True, "x"), StatusEvent(disabled.uid, True, "x"), StatusEvent(device.uid, True, "x")])
    assert state(disabled) == ("new", False, False)
    assert history(disabled) == []
    assert state(device)[0] == "online"


def test_a_long_reason_is_cut(device: DeviceRow) -> None:
    status([StatusEvent(device.uid, True, "x" * 1000)])
    assert history(device) == [(True, "x" * 200)]


def test_states_of_two_tenants_stay_apart(device: DeviceRow) -> None:
    other = make_device(make_tenant())
    status([StatusEvent(device.uid, True, "x")])
    assert state(other) == ("new", False, False)
    assert rows("SELECT DISTINCT tenant_id FROM iiot.connection_event WHERE device_id = %s", device.device_id) == [
        (device.tenant_id,)
    ]
