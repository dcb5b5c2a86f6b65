"""Starts programs in order, watches them, restarts what dies, and stops everything in reverse order within a deadline."""

import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from iiot.embedded import EmbeddedError
from iiot.embedded.console import Console
from iiot.embedded.process import Child, Program, kill_group

STOP_SECONDS = 9.0
FIRST_DELAY = 0.1
LONGEST_DELAY = 30.0
STEADY_AFTER = 60.0
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Interrupted(Exception):
    """A signal asked to stop while the stack was starting."""


@dataclass
class Slot:
    """A program and the child that runs it now."""

    make: Callable[[], Program]
    name: str
    stage: int
    child: Child | None = None
    ready: bool = False
    delay: float = FIRST_DELAY
    restart_at: float | None = None
    restarts: int = 0


class Supervisor:
    """Runs in the main thread, which also starts every child: the kernel ties a child to the thread that started it."""

    def __init__(
        self, console: Console, changed: Callable[[Sequence[Slot]], None], died: Callable[[Slot, int], None]
    ) -> None:
        self.console = console
        self.slots: list[Slot] = []
        self._changed = changed
        self._died = died
        self._signals = 0
        self._listening = False
        self._wake, waker = socket.socketpair()
        self._wake.setblocking(False)
        waker.setblocking(False)
        self._waker = waker

    @property
    def stopping(self) -> bool:
        """Whether a signal asked to stop."""
        return self._signals > 0

    def listen(self) -> None:
        """Take the signals; SIGCHLD only interrupts the waiting."""
        self._listening = True
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: object) -> None:
        self._signals += 1
        if self._signals > 1:
            # Asked twice: no more patience. Servers that keep data survive this.
            for slot in self.slots:
                if slot.child is not None and slot.child.exit_code() is None:
                    kill_group(slot.child.pid)

    def launch(self, name: str, make: Callable[[], Program], stage: int) -> Slot:
        """Start a program without waiting for it. `stage` orders the stopping: higher stages go first."""
        slot = Slot(make, name, stage)
        self.slots.append(slot)
        self._start(slot)
        return slot

    def wait(self, slot: Slot, attempts: int = 5) -> None:
        """Block until a launched program serves; one that dies at once gets further attempts, with growing pauses.

        PostgreSQL needs that after a kill -9, while old processes still hold its shared memory.
        """
        for attempt in range(1, attempts + 1):
            try:
                self._wait_once(slot)
            except EmbeddedError:
                if attempt == attempts:
                    raise
                self._pause(0.2 * 2**attempt)
                self._restart(slot)
            else:
                slot.ready = True
                return

    def _wait_once(self, slot: Slot) -> None:
        if slot.child is None:
            raise EmbeddedError(f"{slot.name} does not run")
        slot.child.wait_ready(lambda: self.stopping)
        if self.stopping:
            raise Interrupted

    def _pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if self.stopping:
                raise Interrupted
            self._sleep(left)

    def _sleep(self, seconds: float) -> None:
        if select.select([self._wake], [], [], max(0.0, seconds))[0]:
            self._wake.recv(4096)

    def _start(self, slot: Slot) -> None:
        slot.ready = False
        slot.restart_at = None
        slot.child = Child(slot.make())
        self._changed(self.slots)

    def _restart(self, slot: Slot) -> None:
        if slot.child is not None:
            slot.child.stop(0.5)
        slot.restarts += 1
        self._start(slot)

    def run(self, every_second: Callable[[], None]) -> None:
        """Watch until a signal comes; `every_second` is called about once a second."""
        tick = 0.0
        while not self.stopping:
            now = time.monotonic()
            self.watch()
            if now - tick >= 1:
                tick = now
                every_second()
            due = [slot.restart_at for slot in self.slots if slot.restart_at is not None]
            pending = any(slot.child is not None and not slot.ready for slot in self.slots)
            self._sleep(min([1.0, *(moment - time.monotonic() for moment in due), *([0.1] if pending else [])]))

    def watch(self) -> None:
        """One look at every child: what died is buried, what is due is started, what got ready is said."""
        now = time.monotonic()
        for slot in self.slots:
            self._watch(slot, now)

    def _watch(self, slot: Slot, now: float) -> None:
        if slot.child is None:
            if slot.restart_at is not None and now >= slot.restart_at:
                self._revive(slot)
            return
        code = slot.child.exit_code()
        if code is not None:
            self._bury(slot, code, now)
        elif not slot.ready and slot.child.program.ready():
            slot.ready = True
            self.console.step(slot.name, f"is back after {now - slot.child.started:.1f} s")

    def _bury(self, slot: Slot, code: int, now: float) -> None:
        child = slot.child
        if child is None:
            return
        kill_group(child.pid)
        if now - child.started > STEADY_AFTER:
            slot.delay = FIRST_DELAY
        end = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        self.console.fail(slot.name, f"{end}; it is started again in {slot.delay:.1f} s")
        if code > 0 and (tail := child.log_tail(6)):
            self.console.say(tail)
        slot.child, slot.ready, slot.restart_at = None, False, now + slot.delay
        slot.delay = min(slot.delay * 2, LONGEST_DELAY)
        slot.restarts += 1
        self._changed(self.slots)
        self._died(slot, child.pid)

    def _revive(self, slot: Slot) -> None:
        try:
            self._start(slot)
        except (EmbeddedError, OSError) as error:
            self.console.fail(slot.name, f"cannot be started: {error}")
            slot.restart_at = time.monotonic() + slot.delay
            slot.delay = min(slot.delay * 2, LONGEST_DELAY)

    def drop(self, slot: Slot) -> None:
        """Stop a program and forget it."""
        if slot.child is not None:
            slot.child.stop()
        self.slots.remove(slot)
        self._changed(self.slots)

    def renew(self, slot: Slot) -> None:
        """Stop a program in order and start it again with fresh preparation."""
        if slot.child is not None:
            slot.child.stop()
            slot.child = None
        self._revive(slot)

    def stop(self) -> None:
        """Stop all, the higher stages first; what is not gone in time is killed."""
        deadline = time.monotonic() + STOP_SECONDS
        stages = sorted({slot.stage for slot in self.slots}, reverse=True)
        for index, stage in enumerate(stages):
            children = [slot.child for slot in self.slots if slot.stage == stage and slot.child is not None]
            # Each stage still to come keeps a second for itself.
            until = deadline - 1.0 * (len(stages) - index - 1)
            for child in children:
                child.ask_to_stop()
            for child in children:
                child.stop(min(child.program.stop_seconds, max(0.2, until - time.monotonic())))
        for slot in self.slots:
            slot.child = None
        self._changed(self.slots)
        if self._listening:
            signal.set_wakeup_fd(-1)
        self._wake.close()
        self._waker.close()
