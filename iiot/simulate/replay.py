"""Sends tracks at their pace, with timestamps of now, and shows how it goes."""

import heapq
import itertools
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

from iiot.simulate.links import Link, Tally
from iiot.simulate.tracks import Point, Track

TICK_SECONDS = 0.2
DRAIN_SECONDS = 15.0


@dataclass(frozen=True)
class Player:
    """A device at work: what it replays and how it sends."""

    track: Track
    link: Link


@dataclass(frozen=True)
class Pace:
    """`speed`: recorded seconds per second. `begin`: offset of the first point. `seconds`: how long to replay, None: to the end."""

    speed: float = 1.0
    begin: float = 0.0
    loop: bool = False
    seconds: float | None = None


def history(players: Sequence[Player], seconds: float, stop: threading.Event) -> None:
    """Send the first `seconds` of every track at once, with timestamps that end now."""
    now = time.time()
    for player in players:
        for point in player.track.from_offset(0, loop=True):
            if point.offset >= seconds or stop.is_set():
                break
            player.link.send(_message(now - seconds + point.offset, point))
        player.link.poll()


def replay(players: Sequence[Player], pace: Pace, stop: threading.Event) -> None:
    """Send every point when it is due, until the tracks, the time or the patience end. Timestamps are the times at which points are due."""
    began = time.time()
    turn = itertools.count()
    due: list[tuple[float, int, Player, Point, Iterator[Point]]] = []

    def line_up(player: Player, points: Iterator[Point]) -> None:
        point = next(points, None)
        if point is not None:
            heapq.heappush(due, (began + (point.offset - pace.begin) / pace.speed, next(turn), player, point, points))

    for player in players:
        line_up(player, player.track.from_offset(pace.begin, pace.loop))
    while due and not stop.is_set():
        moment, _, player, point, points = due[0]
        if pace.seconds is not None and moment > began + pace.seconds:
            stop.wait(max(0.0, began + pace.seconds - time.time()))
            return
        wait = moment - time.time()
        if wait > 0:
            stop.wait(min(wait, TICK_SECONDS))
            for each in players:
                each.link.poll()
            continue
        heapq.heappop(due)
        player.link.send(_message(moment, point))
        line_up(player, points)


def drain(players: Sequence[Player], tally: Tally, stop: threading.Event, seconds: float = DRAIN_SECONDS) -> bool:
    """Wait until every message was answered; False when that takes longer than `seconds`, or `stop` is set."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for player in players:
            player.link.poll()
        if tally.settled >= tally.sent:
            return True
        if stop.wait(0.02):
            return False
    return False


def _message(moment: float, point: Point) -> dict[str, object]:
    return {"ts": round(moment * 1000), "values": point.values}


class Progress:
    """A line on stderr that is overwritten on a terminal, and comes every ten seconds elsewhere."""

    def __init__(self, tally: Tally, stream: TextIO | None = None) -> None:
        self._tally = tally
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._ended = threading.Event()
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._show(self._rate(self._began, 0))
        if self._terminal:
            self._stream.write("\n")

    def _run(self) -> None:
        every = 0.5 if self._terminal else 10.0
        before, sent = time.monotonic(), 0
        while not self._ended.wait(every):
            self._show(self._rate(before, sent))
            before, sent = time.monotonic(), self._tally.sent

    def _rate(self, since: float, sent: int) -> float:
        return (self._tally.sent - sent) / max(1e-3, time.monotonic() - since)

    def _show(self, rate: float) -> None:
        tally = self._tally
        seconds = int(time.monotonic() - self._began)
        text = (
            f"{seconds // 60:02}:{seconds % 60:02}  {rate:,.1f} messages/s  sent {tally.sent:,}  "
            f"acknowledged {tally.acknowledged:,}  errors {tally.errors:,}"
        )
        if tally.last_error:
            text += f"  last: {tally.last_error[:80]}"
        self._stream.write(f"\r\x1b[2K  {text}" if self._terminal else f"{text}\n")
        self._stream.flush()
