"""Log lines: one line of JSON each, with the request's id, without secrets, safe with several processes."""

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from iiot import config, logs
from tests.services import ROOT


@pytest.fixture
def console(tmp_path: Path) -> Iterator[io.StringIO]:
    """Logging set up as a process does it, into a text; everything is put back after the test."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    for handler in handlers:
        root.removeHandler(handler)
    stream = io.StringIO()
    logs.setup("test", config.read(_env_file=None, log_dir=tmp_path / "logs", log_level="info"), stream)
    yield stream
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_lines_of_both_kinds_of_loggers_look_alike(console: io.StringIO) -> None:
    logs.request.set({"request_id": "r-1", "tenant": "t-1"})
    try:
        structlog.get_logger("one").info("hello", count=3)
        logging.getLogger("two").warning("hello %s", "you")
    finally:
        logs.request.set(None)
    ours, theirs = lines(console)
    assert (ours["event"], ours["count"], ours["level"], ours["logger"]) == ("hello", 3, "info", "one")
    assert (theirs["event"], theirs["level"], theirs["logger"]) == ("hello you", "warning", "two")
    for line in (ours, theirs):
        assert (line["request_id"], line["tenant"], line["process"]) == ("r-1", "t-1", "test")
        assert line["timestamp"].endswith("Z")


CANARY = "canary-5f3c9a"


@pytest.mark.parametrize(
    "fields",
    [
        {"password": CANARY},
        {"new_password": CANARY},
        {"headers": {"Authorization": CANARY, "Cookie": CANARY}},
        {"items": [{"api_key": CANARY}]},
        {"refresh_token": CANARY},
        {"text": f"Bearer {CANARY}abcdef"},
        {"text": f"connect postgresql://user:{CANARY}@host/db"},
        {"text": f"password={CANARY}&x=1"},
        {"text": f'{{"token": "{CANARY}"}}'},
    ],
    ids=str,
)
def test_secrets_do_not_reach_the_log(console: io.StringIO, fields: dict[str, Any]) -> None:
    structlog.get_logger("x").info("event", **fields)
    assert CANARY not in console.getvalue()
    assert "[hidden]" in console.getvalue()


def test_secrets_in_exceptions_and_messages_are_hidden_too(console: io.StringIO) -> None:
    try:
        raise ValueError(f"cannot connect to redis://:{CANARY}@host")
    except ValueError:
        structlog.get_logger("x").exception("failed")
        logging.getLogger("y").exception("password=%s", CANARY)
    assert CANARY not in console.getvalue()
    assert all("ValueError" in line["exception"] for line in lines(console))


def test_hostile_text_stays_in_its_line(console: io.StringIO) -> None:
    structlog.get_logger("x").info("name", name='a\nb\r{"event": "forged"}\x1b[31m\u2028', long="x" * 9000)
    assert len(console.getvalue().splitlines()) == 1
    assert "\x1b" not in console.getvalue()
    assert len(lines(console)[0]["long"]) < 2100


def test_errors_are_also_in_a_file_of_their_own(console: io.StringIO, tmp_path: Path) -> None:
    structlog.get_logger("x").info("usual")
    structlog.get_logger("x").error("broken")
    both = (tmp_path / "logs" / "test.log").read_text()
    errors = (tmp_path / "logs" / "test-error.log").read_text()
    assert "usual" in both
    assert "broken" in both
    assert "usual" not in errors
    assert "broken" in errors


def test_several_processes_share_a_file_while_it_rotates(tmp_path: Path) -> None:
    program = """
import sys, structlog
from iiot import config, logs
logs.FILE_BYTES = 40_000
logs.setup("web", config.read(_env_file=None, log_dir=sys.argv[2]), open("/dev/null", "w"))
log = structlog.get_logger("x")
for number in range(150):
    log.info("line", worker=sys.argv[1], number=number, filler="x" * 200)
"""
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", program, str(number), str(tmp_path)],
            env=environment,
            stderr=subprocess.PIPE,
        )
        for number in range(3)
    ]
    for worker in workers:
        _, problems = worker.communicate(timeout=60)
        assert worker.returncode == 0, problems
    files = [path for path in tmp_path.iterdir() if path.name.startswith("web.log")]
    assert 1 < len(files) <= logs.FILE_COUNT + 1
    found = {
        (line["worker"], line["number"]) for path in files for line in map(json.loads, path.read_text().splitlines())
    }
    assert len(found) == 450
