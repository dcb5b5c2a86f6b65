"""Readings that a client missed, from the batch log, in order with the live ones."""

import time
from typing import Any

import numpy as np
import structlog

from iiot import metrics, tenancy
from iiot.errors import Problem
from iiot.live.clients import Client, Event
from iiot.live.hub import Hub
from iiot.services import batchlog
from iiot.services.directory import Directory, telemetry

log = structlog.get_logger(__name__)

PAGE_READINGS = 20_000
# More than this is loaded faster by REST.
MAX_READINGS = 200_000
# How many packets may wait for a client before the next page, and how long a client may take to receive them.
MAX_WAITING = 100
PATIENCE_SECONDS = 30.0
# How long the database may be away before a client that is owed something is sent to another worker, and the longest pause until the next attempt.
CATCH_UP_SECONDS = 60.0
LONGEST_PAUSE = 1.0

HINT = "Load the readings with GET /api/v1/devices/{id}/telemetry and go on from there."


class Expired(Problem):
    """What was missed is no longer in the log, or too much."""

    def __init__(self) -> None:
        super().__init__(
            410, "cursor-expired", "Too much has happened since then to be sent again.", extra={"hint": HINT}
        )


def resume(hub: Hub, client: Client, data: Any) -> str:
    """Send again what the client's subscriptions brought after `cursor`; returns the cursor up to which everything was sent."""
    try:
        after = batchlog.Cursor.parse(data.get("cursor") if isinstance(data, dict) else None)
    except ValueError:
        raise Problem(400, "invalid", 'Send {"cursor": "<the newest cursor you have seen>"}.') from None
    if client.replaying:
        raise Problem(409, "busy", "A resume is under way on this connection. Try again in a moment.")
    client.replaying = True
    client.held = client.held or []
    done = False
    try:
        reached = _replay(hub, client, after)
        done = True
        return str(reached)
    finally:
        client.replaying = False
        # Catching up, which was called while this one failed, has to begin anew; else the client is as it was before.
        if client.again and not done:
            hub.owe(client)
        else:
            hub.release(client)


def catch_up(hub: Hub, client: Client) -> None:
    """After the worker itself had lost Redis: send what it missed. A client that cannot be helped is disconnected and resumes by itself.

    Nothing newer is sent before, however long the database is away: the cursor of an event promises that everything up to there has come.
    """
    if client.replaying:
        client.again = True
        return
    client.replaying = True
    deadline, pause = time.monotonic() + CATCH_UP_SECONDS, 0.1
    try:
        while client.cursor is not None and client.sid in hub.clients:
            try:
                if hub.settle(client):
                    _replay(hub, client, batchlog.Cursor.parse(client.cursor))
                    break
            except Expired as problem:
                hub.send(client, ("gap", {"error": problem.code, "detail": problem.detail, "hint": HINT}))
                break
            except Exception as error:
                log.warning("catching up failed", error=str(error))
            if time.monotonic() > deadline:
                hub.drop(client, "cannot catch up")
                break
            time.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 2)
    finally:
        client.replaying = False
        hub.release(client)


def _replay(hub: Hub, client: Client, after: batchlog.Cursor) -> batchlog.Cursor:
    """Live events are held meanwhile. What is not yet readable at the last look will be sent live: the client was in its rooms before."""
    directory, sent = Directory(), 0
    while True:
        client.again = False
        page, after, more = _page(client, directory, after)
        for event, count in page:
            hub.send(client, event)
            sent += count
        client.cursor = str(after)
        if sent > MAX_READINGS:
            raise Expired
        _wait_for_room(hub, client)
        if not more and not client.again:
            return after


def _page(
    client: Client, directory: Directory, after: batchlog.Cursor
) -> tuple[list[tuple[Event, int]], batchlog.Cursor, bool]:
    """(events with their number of readings, how far they go, whether there is more)."""
    with tenancy.work(client.scope) as db:
        if after < batchlog.floor(db):
            raise Expired
        rows, more, _ = batchlog.read_rows(db, after, max_readings=PAGE_READINGS)
        if not rows:
            return [], after, False
        readings = batchlog.read_live(db, after, rows)
        device_ids = directory.device_ids(db, readings)
    if client.tenant:
        chosen = device_ids > 0
    else:
        wanted = [id_ for id_, device in directory.devices.items() if device.uid in client.devices]
        chosen = np.isin(device_ids, wanted)
    cursor = str(after)
    page: list[tuple[Event, int]] = [
        (("telemetry", told.event(cursor)), told.size) for told in telemetry(directory, readings, device_ids, chosen)
    ]
    metrics.live_replayed.inc(sum(count for _, count in page))
    return page, rows[-1].cursor, more


def _wait_for_room(hub: Hub, client: Client) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while hub.waiting(client) > MAX_WAITING:
        if time.monotonic() > deadline or client.sid not in hub.clients:
            hub.drop(client, "too slow")
            raise Problem(408, "too-slow", "The connection is too slow for what was missed.", extra={"hint": HINT})
        time.sleep(0.02)
