"""`python -m iiot simulate` against the real stack, and its reading of CSV files."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from iiot.simulate.links import Tally
from iiot.simulate.replay import Pace, Player, replay
from iiot.simulate.tracks import Point, Track, TrackError, make_track, merge, read_csv
from tests.services import ROOT, Stack, eventually


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_file_with_several_columns_is_one_device_with_several_signals(tmp_path: Path) -> None:
    track = read_csv(
        write(
            tmp_path / "pump.csv",
            "time,flow,pressure\n2026-01-01 00:00:00,1,2\n2026-01-01T00:01:00Z,3,\n2026-01-01T01:02:00+01:00,4,5\n",
        )
    )
    assert track.name == "pump"
    assert track.points == [
        Point(0, {"flow": 1, "pressure": 2}),
        Point(60, {"flow": 3}),
        Point(120, {"flow": 4, "pressure": 5}),
    ]
    assert track.length == 180


def test_a_column_called_value_is_named_after_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "cpu.csv", "timestamp,value\n1700000000,1\n1700000300000,2\n")
    assert read_csv(path).points == [Point(0, {"cpu": 1}), Point(300, {"cpu": 2})]
    assert read_csv(path, "load").points[0].values == {"load": 1}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "first line"),
        ("time\n1\n", "first line"),
        ("time,a\n2026-01-01T00:00:00Z,1\n", "two readings"),
        ("time,a\n2026-01-01T00:00:00Z,1\nyesterday,2\n", "line 3"),
        ("time,a\n1,1\n2,nan\n", "line 3: a value is not finite"),
        ("time,a\n1,1\n2,x\n", "line 3"),
    ],
)
def test_a_file_that_cannot_be_replayed_is_refused_with_the_line(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(TrackError, match=reason):
        read_csv(write(tmp_path / "bad.csv", text))


def test_a_track_repeats_without_a_gap() -> None:
    track = make_track("t", [Point(0, {"a": 1}), Point(10, {"a": 2})])
    points = track.from_offset(15, loop=True)
    assert [next(points).offset for _ in range(4)] == [20, 30, 40, 50]
    assert [point.offset for point in track.from_offset(5, loop=False)] == [10]
    assert list(track.from_offset(25, loop=False)) == []


def test_series_of_one_device_are_sent_together() -> None:
    one = make_track("one", [Point(0, {"a": 1}), Point(10, {"a": 2})])
    two = make_track("two", [Point(100, {"b": 1}), Point(105, {"b": 2}), Point(110, {"b": 3})])
    assert merge("both", [one, two]).points == [
        Point(0, {"a": 1, "b": 1}),
        Point(5, {"b": 2}),
        Point(10, {"a": 2, "b": 3}),
    ]


class Notes:
    """A link that keeps what it was given."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any]) -> None:
        self.messages.append(message)

    def poll(self) -> None:
        pass

    def close(self) -> None:
        pass


def test_points_are_sent_in_order_when_they_are_due_with_the_time_they_are_due() -> None:
    link = Notes()
    track = Track("t", [Point(i * 10.0, {"a": float(i)}) for i in range(5)], 50)
    began = time.time()
    replay([Player(track, link)], Pace(speed=200, loop=True, seconds=0.5), threading.Event())
    assert 0.45 < time.time() - began < 2
    assert 10 <= len(link.messages) <= 11
    steps = [b["ts"] - a["ts"] for a, b in zip(link.messages, link.messages[1:], strict=False)]
    assert all(49 <= step <= 51 for step in steps)
    assert [message["values"]["a"] for message in link.messages[:6]] == [0, 1, 2, 3, 4, 0]


def test_acknowledged_are_those_that_were_answered_well() -> None:
    tally = Tally()
    tally.add(sent=5)
    tally.add(settled=4, errors=1, reason="no")
    assert (tally.acknowledged, tally.last_error) == (3, "no")


def test_without_a_portal_the_error_says_how_to_start_one(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "iiot", "simulate", "--data-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert "make run" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--protocol", "smoke"],
        ["--uid", "x"],
        ["--url", "http://x"],
        ["--duration", "soon"],
        ["--speed", "0"],
        ["missing.csv"],
    ],
)
def test_wrong_use_is_exit_status_two(arguments: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "iiot", "simulate", *arguments], cwd=ROOT, capture_output=True, timeout=60, check=False
    )
    assert result.returncode == 2


@pytest.fixture(scope="module")
def tenant(stack: Stack) -> str:
    """A tenant of the running stack."""
    made = stack.command("tenant", "create", "Simulated", "--json")
    assert made.returncode == 0, made.stderr
    return str(json.loads(made.stdout)["slug"])


@pytest.fixture
def series(tmp_path: Path) -> Path:
    rows = "".join(f"{1_700_000_000 + i * 10},{i}\n" for i in range(200))
    return write(tmp_path / "ramp.csv", f"timestamp,value\n{rows}")


# Over AMQP: tests/integration/test_amqp_up.py, as this stack has no RabbitMQ.
@pytest.mark.parametrize("protocol", ["coap", "http", "mqtt"])
def test_a_file_is_replayed_and_every_message_stored(stack: Stack, tenant: str, series: Path, protocol: str) -> None:
    options = (
        "--protocol",
        protocol,
        "--speed",
        "2000",
        "--devices",
        "3",
        "--tenant",
        tenant,
        "--history",
        "20m",
        "--json",
    )
    result = stack.command("simulate", str(series), *options, "--duration", "2s")
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["devices"] == 3
    assert told["errors"] == 0
    assert told["sent"] == told["acknowledged"] == 3 * 200
    listed = json.loads(stack.command("device", "list", "--tenant", tenant, "--json").stdout)
    assert {device["name"] for device in listed} >= {"ramp", "ramp 2", "ramp 3"}


def test_a_wrong_token_is_one_line_and_exit_status_one(stack: Stack, series: Path) -> None:
    for protocol in ("amqp", "coap", "http", "mqtt"):
        result = stack.command(
            "simulate", str(series), "--protocol", protocol, "--uid", "a" * 26, "--token", "wrong", "--speed", "2000"
        )
        assert result.returncode == 1
        assert "Traceback" not in result.stderr


def test_ctrl_c_ends_it_cleanly(stack: Stack, tenant: str, series: Path) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "iiot",
            "simulate",
            str(series),
            "--loop",
            "--speed",
            "100",
            "--tenant",
            tenant,
            "--json",
        ],
        cwd=ROOT,
        env=stack.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def is_sending() -> bool:
        devices = json.loads(stack.command("device", "list", "--tenant", tenant, "--json").stdout)
        return any(device["name"] == "ramp" and device["status"] == "online" for device in devices)

    try:
        eventually(is_sending, 30, 0.3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, err
    assert "Traceback" not in err
    told = json.loads(out)
    assert told["sent"] == told["acknowledged"] > 0
