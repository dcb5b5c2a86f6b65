"""The figures of the home page, and the list of refused messages."""

import json

import pytest

from iiot import payloads, tenancy
from iiot.clock import now_ms
from iiot.config import Settings
from iiot.services import rejections, usage
from iiot.services.batchlog import START, read_rows
from iiot.services.ingest import Incoming, ingest
from iiot.services.overview import RATE_STEPS, overview
from tests import factories

pytestmark = pytest.mark.usefixtures("module_settings")


def _send(uid: str, content: bytes) -> None:
    try:
        parsed, error = payloads.parse(content, None, now_ms()), None
    except payloads.PayloadError as refusal:
        parsed, error = None, refusal
    ingest([Incoming(uid, parsed, error, "test", "", content)])


def test_an_empty_tenant_has_nothing() -> None:
    tenant = factories.make_tenant()
    with tenancy.work(tenancy.of(tenant)) as db:
        found = overview(db)
    assert (found.counts.devices, found.counts.readings_today, found.counts.rejected_today, sum(found.rate)) == (
        0,
        0,
        0,
        0,
    )
    assert len(found.rate) == RATE_STEPS
    assert found.activity == []


def test_figures_are_of_the_tenant_alone(module_settings: Settings) -> None:
    mine, other = factories.make_tenant(), factories.make_tenant()
    device, stranger = factories.make_device(mine), factories.make_device(other)
    now = now_ms()
    _send(device.uid, json.dumps([{"ts": now - number, "values": {"a": number}} for number in range(7)]).encode())
    _send(stranger.uid, b'{"a": 1}')
    _send(stranger.uid, b"not json")
    with tenancy.work(tenancy.system("stream")) as db:
        rows, _, _ = read_rows(db, START)
        usage.count(db, rows)
    with tenancy.work(tenancy.of(mine)) as db:
        found = overview(db)
    assert (
        found.counts.devices,
        found.counts.never_seen,
        found.counts.readings_today,
        found.counts.rejected_today,
    ) == (1, 1, 7, 0)
    assert sum(found.rate) == 7
    assert [(item.kind, item.uid) for item in found.activity] == [("created", device.uid)]
    with tenancy.work(tenancy.of(other)) as db:
        found = overview(db)
    assert (found.counts.readings_today, found.counts.rejected_today) == (1, 1)
    assert {item.kind for item in found.activity} == {"created", "rejected"}


def test_refused_messages_are_paged_from_the_newest() -> None:
    tenant = factories.make_tenant()
    device = factories.make_device(tenant)
    for number in range(5):
        _send(device.uid, b"not json " + str(number).encode())
    mine = rejections.Filters(device=device.uid)
    with tenancy.work(tenancy.of(tenant)) as db:
        first = rejections.search(db, mine, 3)
        shown = rejections.heads(db, first.items)
        assert [shown[item.uid] for item in first.items] == [b"not json 4", b"not json 3", b"not json 2"]
        assert first.next_position is not None
        second = rejections.search(db, mine, 3, first.next_position)
        shown = rejections.heads(db, second.items)
    assert [shown[item.uid] for item in second.items] == [b"not json 1", b"not json 0"]
    assert second.next_position is None
