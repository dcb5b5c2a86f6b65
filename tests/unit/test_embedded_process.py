"""Supervised processes: their end with the parent, within deadlines, and their identity."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest

from iiot.embedded import EmbeddedError
from iiot.embedded.console import Console
from iiot.embedded.process import Child, Program, start_ticks
from iiot.embedded.supervisor import Slot, Supervisor
from tests.services import ROOT, eventually

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


def program(tmp_path: Path, code: str, **fields: object) -> Program:
    values = {"name": "one", "argv": [sys.executable, "-c", code], "log": tmp_path / "one.log", **fields}
    return Program(**values)  # type: ignore[arg-type]


def test_a_child_that_ignores_the_stop_signal_is_killed_after_its_deadline(tmp_path: Path) -> None:
    child = Child(program(tmp_path, STUBBORN, ready=lambda: "up" in (tmp_path / "one.log").read_text()))
    child.wait_ready()
    child.stop(0.3)
    assert child.exit_code() == -signal.SIGKILL


def test_a_child_that_dies_early_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    child = Child(program(tmp_path, "raise SystemExit('no such table')", ready=lambda: False))
    with pytest.raises(EmbeddedError, match="no such table"):
        child.wait_ready()


def test_grandchildren_end_with_the_child(tmp_path: Path) -> None:
    code = "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    child = Child(program(tmp_path, code, ready=lambda: (tmp_path / "one.log").stat().st_size > 0))
    child.wait_ready()
    grandchild = int((tmp_path / "one.log").read_text())
    child.stop()
    eventually(lambda: start_ticks(grandchild) is None)


def test_children_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    parent_code = textwrap.dedent(f"""
        import pathlib, sys, time
        from iiot.embedded.process import Child, Program
        log = pathlib.Path({str(tmp_path / "child.log")!r})
        print(Child(Program("one", ["sleep", "60"], log)).pid, flush=True)
        time.sleep(60)
    """)
    with subprocess.Popen([sys.executable, "-c", parent_code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert start_ticks(child) is not None
        parent.kill()
    eventually(lambda: start_ticks(child) is None)


def test_start_ticks_name_a_process(tmp_path: Path) -> None:
    mine = start_ticks(os.getpid())
    assert mine is not None
    assert mine == start_ticks(os.getpid())
    child = Child(program(tmp_path, ""))
    eventually(lambda: child.exit_code() is not None)
    assert start_ticks(child.pid) is None


class Recorder:
    """What a supervisor reported."""

    def __init__(self) -> None:
        self.deaths: list[str] = []
        self.running: list[str] = []

    def changed(self, slots: Sequence[Slot]) -> None:
        self.running = [slot.name for slot in slots if slot.child is not None]

    def died(self, slot: Slot, _pid: int) -> None:
        self.deaths.append(slot.name)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def test_what_dies_is_started_again_with_growing_pauses(tmp_path: Path, recorder: Recorder) -> None:
    watching = Supervisor(Console(color=False), recorder.changed, recorder.died)
    slot = watching.launch("one", lambda: program(tmp_path, "raise SystemExit(3)"), 0)

    def died_three_times() -> bool:
        watching.watch()
        return len(recorder.deaths) >= 3

    eventually(died_three_times)
    assert slot.restarts >= 3
    assert slot.delay >= 0.8
    watching.stop()
    assert recorder.running == []


def test_higher_stages_stop_first(tmp_path: Path, recorder: Recorder) -> None:
    watching = Supervisor(Console(color=False), recorder.changed, recorder.died)
    ends = tmp_path / "ends"
    code = "import signal, sys, time\ndef end(*_):\n    open({ends!r}, 'a').write({name!r} + ' ')\n    sys.exit()\n"
    code += "signal.signal(signal.SIGTERM, end)\nprint('up', flush=True)\ntime.sleep(60)"
    for stage, name in enumerate(["database", "broker", "portal"]):
        log = tmp_path / f"{name}.log"
        text = code.format(ends=str(ends), name=name)

        def make(text: str = text, log: Path = log) -> Program:
            return program(tmp_path, text, log=log, ready=lambda: log.stat().st_size > 0)

        watching.wait(watching.launch(name, make, stage))
    watching.stop()
    assert ends.read_text().split() == ["portal", "broker", "database"]


def test_a_program_that_never_gets_ready_fails_the_start(tmp_path: Path, recorder: Recorder) -> None:
    watching = Supervisor(Console(color=False), recorder.changed, recorder.died)
    slot = watching.launch("one", lambda: program(tmp_path, "raise SystemExit('broken')", ready=lambda: False), 0)
    with pytest.raises(EmbeddedError, match="broken"):
        watching.wait(slot, attempts=2)
    watching.stop()
