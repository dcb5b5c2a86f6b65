"""Cursors, pacing and decoding: what needs no server."""

import contextlib
import struct
import threading
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iiot.services import batchlog
from iiot.services.batchlog import Cursor, Readings, Row
from iiot.stream.latest import newest_per_signal
from iiot.stream.log import Tailer
from iiot.stream.loop import Doorbell, Pace, back_off

PLACES = st.integers(0, 2**63 - 1)


@given(PLACES, PLACES, PLACES, PLACES)
def test_a_cursor_survives_its_text_and_sorts_like_it(xid: int, id_: int, other_xid: int, other_id: int) -> None:
    one, other = Cursor(xid, id_), Cursor(other_xid, other_id)
    assert Cursor.parse(str(one)) == one
    assert (str(one) < str(other)) == (one < other)


@pytest.mark.parametrize(
    "text", [None, 5, "", "0" * 31, "0" * 33, "g" * 32, "f" * 32, "-" + "0" * 31, "٣" * 32, " " * 32]
)
def test_what_is_no_cursor_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="32 hexadecimal"):
        Cursor.parse(text)


@given(st.text(max_size=40))
def test_parsing_a_cursor_raises_nothing_but_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert str(Cursor.parse(text)) == text


def _binary(values: list[float | None]) -> memoryview:
    """What array_send() writes for float8[]."""
    data = (
        struct.pack(">iiIii", 1, int(None in values), 701, len(values), 1) if values else struct.pack(">iiI", 0, 0, 701)
    )
    for value in values:
        data += struct.pack(">i", -1) if value is None else struct.pack(">id", 8, value)
    return memoryview(data)


@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=False))))
def test_arrays_are_decoded_with_and_without_null(values: list[float | None]) -> None:
    found = batchlog._decode(_binary(values), batchlog._DOUBLE)
    assert found.dtype == np.float64
    assert [None if np.isnan(value) else value for value in found.tolist()] == values


def _readings(rows: list[tuple[int, int, int]]) -> Readings:
    row = Row(Cursor(1, 1), 1, datetime.now(UTC), len(rows))
    tenants, signals, ts = (
        np.array(column, dtype=np.int64) for column in (zip(*rows, strict=True) if rows else ([], [], []))
    )
    empty = np.zeros(len(rows))
    return Readings(
        [row], empty.astype(np.int32), tenants.astype(np.int32), signals.astype(np.int32), ts, empty, {}, {}
    )


@given(st.lists(st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(0, 3))))
def test_the_newest_reading_of_a_signal_is_the_first_of_the_highest_timestamp(rows: list[tuple[int, int, int]]) -> None:
    # A signal belongs to one tenant.
    rows = [(signal % 2 + 1, signal, ts) for _, signal, ts in rows]
    expected: dict[int, tuple[int, int]] = {}
    for position, (_, signal, ts) in enumerate(rows):
        if signal not in expected or ts > expected[signal][0]:
            expected[signal] = (ts, position)
    chosen = newest_per_signal(_readings(rows), np.ones(len(rows), bool)).tolist()
    assert sorted(chosen) == sorted(position for _, position in expected.values())


def test_a_busy_tailer_rests_longer_but_never_too_long() -> None:
    pace = Pace(duty=0.25, longest=1.0)
    assert pace.rest(0.01) == pytest.approx(0.03)
    assert pace.rest(10) == 1.0
    assert Pace(least=0.2).rest(0.001) == 0.2


def test_back_off_grows_to_three_seconds() -> None:
    assert 0.05 <= back_off(0) <= 0.1
    assert 1.5 <= back_off(1000) <= 3


def test_the_doorbell_is_not_missed_between_two_waits() -> None:
    bell = Doorbell()
    seen = bell.wait(0, 0)
    bell.ring()
    bell.ring()
    later = bell.wait(seen, 60)
    assert later == seen + 2
    threading.Timer(0.01, bell.ring).start()
    assert bell.wait(later, 60) == later + 1


@pytest.mark.parametrize("name", ["", batchlog.FLOOR])
def test_a_tailer_has_a_name_of_its_own(name: str) -> None:
    with pytest.raises(ValueError, match="taken"):
        Tailer(name, lambda _db, _batch: None)
