"""The one door for measurements: what is stored, what is refused and what a caller may rely on."""

import json
from typing import Any

import pytest
from sqlalchemy import delete, update

from iiot import tenancy
from iiot.clock import now_ms
from iiot.models import Device, Tenant
from iiot.payloads import PayloadError, parse
from iiot.services.ingest import Incoming, ingest
from tests import factories
from tests.factories import DeviceRow, make_device, make_signal, make_tenant, message, rows, store

pytestmark = pytest.mark.usefixtures("module_settings")


@pytest.fixture
def device() -> DeviceRow:
    return make_device(make_tenant())


def readings(device: DeviceRow) -> dict[str, list[tuple[Any, ...]]]:
    """key → [(num, txt)] in the order of time."""
    found: dict[str, list[tuple[Any, ...]]] = {}
    for key, num, txt in rows(
        "SELECT s.key, t.num, t.txt FROM iiot.telemetry t JOIN iiot.signal s ON s.tenant_id = t.tenant_id AND s.id = t.signal_id "
        "WHERE s.tenant_id = %s AND s.device_id = %s ORDER BY t.ts",
        device.tenant_id, device.device_id,
    ):  # fmt: skip
        found.setdefault(key, []).append((num, txt))
    return found


def kept(device: DeviceRow) -> list[tuple[Any, ...]]:
    return rows(
        "SELECT code, reason, payload, size, details FROM iiot.rejected_message WHERE tenant_id = %s AND device_id = %s ORDER BY id",
        device.tenant_id, device.device_id,
    )  # fmt: skip


def batches(device: DeviceRow) -> list[tuple[Any, ...]]:
    return rows(
        "SELECT signal_ids, ts, num, txt FROM iiot.telemetry_batch WHERE tenant_id = %s ORDER BY xid, id",
        device.tenant_id,
    )


# --- stored ------------------------------------------------------------------------------------------------------------------------------


def test_readings_are_stored_and_counted(device: DeviceRow) -> None:
    now = now_ms()
    outcomes = store(device.uid, (now, {"a": 1.0, "b": 2.5}), (now + 1, {"a": 3.0}))
    assert (outcomes.stored, outcomes.duplicate, len(outcomes)) == (3, 0, 1)
    (outcome,) = outcomes
    assert (outcome.status, outcome.accepted, outcome.rejected, outcome.newest_ts) == ("stored", 3, [], now + 1)
    assert readings(device) == {"a": [(1.0, None), (3.0, None)], "b": [(2.5, None)]}


def test_the_same_again_is_a_duplicate_and_the_first_value_stands(device: DeviceRow) -> None:
    now = now_ms()
    store(device.uid, (now, {"a": 1.0}))
    again = store(device.uid, (now, {"a": 2.0}), (now + 1, {"a": 3.0}))
    assert (again.stored, again.duplicate) == (1, 1)
    assert (again[0].status, again[0].accepted) == ("stored", 2)
    assert readings(device) == {"a": [(1.0, None), (3.0, None)]}


def test_the_quality_of_a_reading_is_stored_and_logged(device: DeviceRow) -> None:
    content = [
        {"values": {"a": 1.0, "b": 2.0, "name": "x"}, "quality": {"b": "bad", "name": "uncertain"}},
        {"ts": now_ms() - 9, "values": {"a": "a text", "b": 3.0}, "quality": "uncertain"},
    ]
    assert factories.send(device.uid, content).stored == 4
    query = """SELECT s.key, t.num, t.quality FROM iiot.telemetry t JOIN iiot.signal s ON s.tenant_id = t.tenant_id AND s.id = t.signal_id
        WHERE s.device_id = %s ORDER BY s.key, t.ts DESC"""
    assert rows(query, device.device_id) == [("a", 1.0, None), ("b", 2.0, 2), ("b", 3.0, 1), ("name", None, 1)]
    query = "SELECT quality FROM iiot.telemetry_batch WHERE tenant_id = %s ORDER BY xid, id"
    assert rows(query, device.tenant_id) == [([None, 2, 1, 1],)]
    store(device.uid, a=2.0)
    assert rows(query, device.tenant_id)[1:] == [(None,)]


def test_the_same_reading_twice_in_one_batch_counts_once(device: DeviceRow) -> None:
    now = now_ms()
    outcomes = ingest([message(device.uid, (now, {"a": 1.0})), message(device.uid, (now, {"a": 2.0}))])
    assert (outcomes.stored, outcomes.duplicate) == (1, 1)
    assert [outcome.status for outcome in outcomes] == ["stored", "stored"]
    assert readings(device) == {"a": [(1.0, None)]}


def test_every_type_is_stored_as_what_it_is(device: DeviceRow) -> None:
    store(
        device.uid,
        number=21.5,
        boolean=True,
        string='a "quoted" {text}, \\ NULL',
        json={"nested": [1, None, {"é": "ü"}]},
    )
    assert dict(rows("SELECT key, type FROM iiot.signal WHERE tenant_id = %s", device.tenant_id)) == {
        "number": "number", "boolean": "boolean", "string": "string", "json": "json",
    }  # fmt: skip
    found = readings(device)
    assert found["number"] == [(21.5, None)]
    assert found["boolean"] == [(1.0, None)]
    assert found["string"] == [(None, 'a "quoted" {text}, \\ NULL')]
    assert json.loads(found["json"][0][1]) == {"nested": [1, None, {"é": "ü"}]}


@pytest.mark.parametrize("number", [0.0, -0.0, 1e-308, 1.7976931348623157e308, 5e-324, 0.1 + 0.2, -273.15])
def test_numbers_keep_every_bit(device: DeviceRow, number: float) -> None:
    store(device.uid, a=number)
    ((stored, _),) = readings(device)["a"]
    assert (stored, str(stored)) == (number, str(number))


def test_a_boolean_signal_takes_zero_and_one(device: DeviceRow) -> None:
    now = now_ms()
    store(device.uid, (now, {"on": True}))
    outcomes = store(device.uid, (now + 1, {"on": 0.0}), (now + 2, {"on": 1.0}), (now + 3, {"on": 2.0}))
    assert outcomes[0].accepted == 2
    assert [item.code for item in outcomes[0].rejected] == ["wrong-type"]
    assert readings(device)["on"] == [(1.0, None), (0.0, None), (1.0, None)]


def test_a_wrong_type_rejects_that_reading_and_keeps_the_rest(device: DeviceRow) -> None:
    store(device.uid, a=1.0)
    outcomes = store(device.uid, (now_ms() + 1, {"a": "warm", "b": 2.0}))
    (outcome,) = outcomes
    assert (outcome.status, outcome.accepted) == ("stored", 1)
    (rejected,) = outcome.rejected
    assert (rejected.index, rejected.key, rejected.code) == (0, "a", "wrong-type")
    assert rejected.reason == "'a' is a number signal; this value is a string."
    ((code, _, _, _, details),) = kept(device)
    assert code == "wrong-type"
    assert details[0]["key"] == "a"


def test_a_message_with_nothing_acceptable_is_rejected(device: DeviceRow) -> None:
    store(device.uid, a=1.0)
    (outcome,) = store(device.uid, a="warm")
    assert (outcome.status, outcome.accepted, outcome.code, outcome.newest_ts) == ("rejected", 0, "wrong-type", None)


def test_nothing_is_not_an_error(device: DeviceRow) -> None:
    assert ingest([]) == []
    (outcome,) = ingest(
        [Incoming(device.uid, factories.Parsed(items=[], rejected=[], ack=True), None, "test", "t", b"[]")]
    )
    assert (outcome.status, outcome.accepted, outcome.ack, outcome.newest_ts) == ("stored", 0, True, None)


# --- the log -----------------------------------------------------------------------------------------------------------------------------


def test_a_batch_of_many_tenants_lands_in_each_and_logs_one_row_per_tenant() -> None:
    devices = [make_device(make_tenant()) for _ in range(3)]
    now = now_ms()
    outcomes = ingest(
        [message(device.uid, (now + n, {"a": float(index)})) for n in range(4) for index, device in enumerate(devices)]
    )
    assert outcomes.stored == 12
    for index, device in enumerate(devices):
        assert readings(device) == {"a": [(float(index), None)] * 4}
        signal = factories.signal_id(device, "a")
        assert batches(device) == [([signal] * 4, [now, now + 1, now + 2, now + 3], [float(index)] * 4, None)]
    xids = rows(
        "SELECT DISTINCT xid FROM iiot.telemetry_batch WHERE tenant_id = ANY (%s)",
        [device.tenant_id for device in devices],
    )
    assert len(xids) == 1, "one commit for all of them"


def test_the_log_carries_text_beside_numbers_and_repeats_duplicates(device: DeviceRow) -> None:
    now = now_ms()
    store(device.uid, (now, {"a": 1.0, "s": "x"}))
    store(device.uid, (now, {"a": 1.0}))
    first, second = batches(device)
    assert sorted(zip(first[2], first[3], strict=True), key=str) == [(1.0, None), (None, "x")]
    assert second[1:] == ([now], [1.0], None)


def test_a_batch_without_readings_leaves_no_row_in_the_log(device: DeviceRow) -> None:
    ingest([factories.refused(device.uid)])
    assert batches(device) == []


# --- refused -----------------------------------------------------------------------------------------------------------------------------


def test_an_unknown_device_is_refused_and_the_others_are_stored(device: DeviceRow) -> None:
    unknown, known = ingest([message("a" * 26, a=1.0), message(device.uid, a=1.0)])
    assert (unknown.status, unknown.code) == ("rejected", "unknown-device")
    assert "Create it in the portal" in str(unknown.reason)
    assert known.status == "stored"


@pytest.mark.parametrize("uid", ["", "' OR 1=1 --", "A" * 26, "é" * 26, "x" * 5000, "a\nb"])
def test_a_strange_uid_is_an_unknown_device(uid: str) -> None:
    (outcome,) = ingest([message(uid, a=1.0)])
    assert outcome.code == "unknown-device"


def test_a_disabled_device_and_a_suspended_tenant_are_refused_with_a_row() -> None:
    disabled = make_device(make_tenant(), enabled=False)
    suspended = make_device(make_tenant(status="suspended"))
    outcomes = ingest([message(disabled.uid, a=1.0), message(suspended.uid, a=1.0)])
    assert [outcome.code for outcome in outcomes] == ["device-disabled", "tenant-suspended"]
    for device, code in ((disabled, "device-disabled"), (suspended, "tenant-suspended")):
        assert [row[0] for row in kept(device)] == [code]
        assert readings(device) == {}


def test_what_the_parser_refused_is_kept_with_its_payload(device: DeviceRow) -> None:
    payload = b"\x00\xff{" + b"x" * 100_000
    error = PayloadError("not-utf-8", "The payload is not UTF-8.", "256 KiB")
    (outcome,) = ingest([Incoming(device.uid, None, error, "mqtt", "a/\0/topic", payload)])
    assert (outcome.status, outcome.code, outcome.reason, outcome.limit) == (
        "rejected",
        "not-utf-8",
        "The payload is not UTF-8.",
        "256 KiB",
    )
    ((code, reason, stored, size, details),) = kept(device)
    assert (code, reason, size, details) == ("not-utf-8", "The payload is not UTF-8.", len(payload), None)
    assert bytes(stored) == payload[: 256 * 1024]


def test_rejections_of_the_parser_are_kept_beside_the_good_readings(device: DeviceRow) -> None:
    now = now_ms()
    payload = json.dumps([{"ts": now, "values": {"a": 1}}, {"ts": 1, "values": {"a": 2}}, {"bad key": 3}]).encode()
    (outcome,) = ingest([Incoming(device.uid, parse(payload, None, now), None, "http", "t", payload)])
    assert (outcome.status, outcome.accepted, len(outcome.rejected)) == ("stored", 1, 2)
    assert [item["index"] for item in kept(device)[0][4]] == [1, 2]


NASTY = [
    {"a\0b": 1}, {"\0": "\0"}, {"a": "\0"}, {"a": {"\0": "\0"}}, {"a": ["\0"]}, {"\ud800": 1}, {"a": "\ud800"}, {"a": {"b": "\udfff"}},
    {"a": "\uffff\ufffe"}, {"{key}": 1}, {"{0}": "x"}, {"{": 1}, {"a": "{}"}, {"a": "NULL"}, {"a": "'; DROP TABLE iiot.telemetry; --"},
    {"<script>": "<script>"}, {"a": 10**400}, {"a": 1e308}, {"a": -(2**63)}, {"ts": "\0", "values": {"a": 1}}, {"a": {"k": 10**300}}, {"é": 1},
]  # fmt: skip


@pytest.mark.parametrize("content", NASTY, ids=range(len(NASTY)))
@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_whatever_the_parser_says_can_be_stored_and_the_next_good_message_too(
    device: DeviceRow, content: Any, ensure_ascii: bool
) -> None:
    """A message that cannot be written would be delivered again for ever, and everything behind it would wait."""
    payload = json.dumps(content, ensure_ascii=ensure_ascii).encode("utf-8", "surrogatepass")
    try:
        incoming = Incoming(device.uid, parse(payload, None, now_ms()), None, "mqtt", "t", payload)
    except PayloadError as error:
        incoming = Incoming(device.uid, None, error, "mqtt", "t", payload)
    nasty, good = ingest([incoming, message(device.uid, good=1.0)])
    assert good.status == "stored"
    assert readings(device)["good"] == [(1.0, None)]
    if nasty.status == "rejected":
        assert len(kept(device)) == 1


# --- isolation ---------------------------------------------------------------------------------------------------------------------------


def test_a_uid_never_writes_into_another_tenants_signal() -> None:
    """Telemetry has no foreign key, so the resolver is the guard: equal keys of two tenants stay two signals."""
    one, other = make_device(make_tenant()), make_device(make_tenant())
    signal = make_signal(one, "shared")
    store(one.uid, shared=1.0)
    store(other.uid, shared=2.0)
    ingest([message(uid, shared=float(n)) for n, uid in enumerate([other.uid, one.uid] * 5, 10)])
    pairs = rows(
        "SELECT DISTINCT t.tenant_id, t.signal_id FROM iiot.telemetry t WHERE t.tenant_id IN (%s, %s)",
        one.tenant_id,
        other.tenant_id,
    )
    assert len(pairs) == 2
    for tenant_id, signal_id in pairs:
        owner = rows("SELECT tenant_id FROM iiot.signal WHERE id = %s", signal_id)
        assert owner == [(tenant_id,)]
    assert (one.tenant_id, signal) in pairs


def test_every_stored_reading_belongs_to_a_signal_of_its_tenant() -> None:
    """Over everything that this module's tests have stored, in the rows and in the log."""
    strangers = (
        "SELECT 1 FROM {} t WHERE NOT EXISTS (SELECT FROM iiot.signal s WHERE s.tenant_id = t.tenant_id AND s.id = {})"
    )
    assert rows("SELECT count(*) > 0 FROM iiot.telemetry") == [(True,)]
    assert rows(strangers.format("iiot.telemetry", "t.signal_id")) == []
    assert (
        rows(
            strangers.format(
                "(SELECT tenant_id, unnest(signal_ids) AS signal_id FROM iiot.telemetry_batch)", "t.signal_id"
            )
        )
        == []
    )


def test_a_uid_in_the_payload_is_only_a_signal() -> None:
    one, other = make_device(make_tenant()), make_device(make_tenant())
    payload = json.dumps({"device_id": other.uid, "uid": other.uid, "tenant_id": other.tenant_id}).encode()
    ingest([Incoming(one.uid, parse(payload, None, now_ms()), None, "mqtt", f"iiot/{other.uid}/up/telemetry", payload)])
    assert set(readings(one)) == {"device_id", "uid", "tenant_id"}
    assert readings(other) == {}


# --- the cache ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def old_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the resolver has learnt counts as old at once."""
    monkeypatch.setattr("iiot.services.resolver.MAX_AGE", 0.0)


@pytest.mark.usefixtures("old_cache")
def test_what_is_switched_off_is_refused_when_the_cache_is_old(device: DeviceRow) -> None:
    store(device.uid, a=1.0)
    with tenancy.work(tenancy.of_device(device)) as db:
        db.execute(update(Device).where(Device.id == device.device_id).values(enabled=False))
    assert store(device.uid, a=2.0)[0].code == "device-disabled"
    with tenancy.work(tenancy.of_device(device)) as db:
        db.execute(update(Device).where(Device.id == device.device_id).values(enabled=True))
    with tenancy.work(tenancy.system("platform")) as db:
        db.execute(update(Tenant).where(Tenant.id == device.tenant_id).values(status="suspended"))
    assert store(device.uid, a=3.0)[0].code == "tenant-suspended"


@pytest.mark.usefixtures("old_cache")
def test_a_deleted_device_is_unknown_when_the_cache_is_old(device: DeviceRow) -> None:
    store(device.uid, a=1.0)
    with tenancy.work(tenancy.of_device(device)) as db:
        db.execute(delete(Device).where(Device.id == device.device_id))
    assert store(device.uid, a=2.0)[0].code == "unknown-device"


def test_a_device_deleted_within_the_caches_age_is_unknown_at_the_second_attempt(device: DeviceRow) -> None:
    """A new signal of a device that is gone fails on its foreign key; the runner repeats the batch, and the cache has forgotten."""
    store(device.uid, a=1.0)
    with tenancy.work(tenancy.of_device(device)) as db:
        db.execute(delete(Device).where(Device.id == device.device_id))
    with pytest.raises(Exception, match="fk_signal_device"):
        store(device.uid, fresh=1.0)
    assert store(device.uid, fresh=1.0)[0].code == "unknown-device"


def test_the_cache_forgets_everything_when_it_is_full(device: DeviceRow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iiot.services.resolver.MAX_ENTRIES", 0)
    other = make_device(make_tenant())
    assert [outcome.status for outcome in ingest([message(device.uid, a=1.0), message(other.uid, a=1.0)])] == [
        "stored"
    ] * 2
    assert [outcome.status for outcome in ingest([message(other.uid, a=2.0), message(device.uid, a=2.0)])] == [
        "stored"
    ] * 2
