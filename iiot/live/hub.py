"""Between Redis and the clients of one worker: subscribes to the rooms that somebody is in, and brings their events.

While Redis is away events are lost here, so every client is given what it missed from the batch log once Redis is back, before anything newer.
"""

import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import Any

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from iiot import config, events, ids, metrics
from iiot.live import guard
from iiot.live.clients import Client, Event

log = structlog.get_logger(__name__)

CONFIRM_SECONDS = 5.0
# A wake-up may be lost with a connection; orders wait no longer than this for the next look.
LISTEN_SECONDS = 1.0
LONGEST_PAUSE = 2.0
MAX_HELD = 2_000
# Packets that may wait for one client; one that reads slower is disconnected and resumes when it can.
MAX_QUEUE = 1_000
SWEEP_SECONDS = 0.5
REPORT_SECONDS = 30.0
# A connection that does not say who it is.
STRANGER_SECONDS = 10.0


class Hub:
    """The clients of this worker. Its methods are called from greenlets of one thread; `_run` alone talks to Redis about rooms."""

    def __init__(self, server: Any) -> None:
        self.clients: dict[str, Client] = {}
        self._server = server
        self._members: dict[str, set[str]] = {}
        self._confirmed: dict[str, threading.Event] = {}
        self._orders: deque[tuple[str, str]] = deque()
        self._wake = f"iiot:worker:{ids.new_uid()}"
        # All rooms are heard; while it is False, what is missed is owed to every client.
        self.connected = False
        self._awaited = 0
        # Everything up to here came by, while the connection to Redis stood.
        self._cursor: str | None = None
        self._started = False
        self._strangers: dict[str, float] = {}

    # --- clients ------------------------------------------------------------------------------------------------------

    def add(self, client: Client) -> None:
        """A client has connected."""
        self.clients[client.sid] = client
        metrics.live_clients.inc()
        if not self._started:
            self._started = True
            self._server.start_background_task(self._run)
            self._server.start_background_task(self._sweep)

    def remove(self, sid: str) -> None:
        """A client has gone; unknown ones are no mistake."""
        client = self.clients.pop(sid, None)
        if client is None:
            return
        metrics.live_clients.dec()
        client.devices, client.tenant = set(), False
        self.settle(client)
        guard.leave(client)

    def drop(self, client: Client, why: str) -> None:
        """Disconnect a client, without waiting for what it has not read."""
        log.info("client disconnected", user=client.principal.user_uid, reason=why)
        metrics.live_refused.labels("dropped").inc()
        socket = self._socket(client)
        self._server.disconnect(client.sid)
        self.remove(client.sid)
        if socket is not None and socket.queue.qsize() > MAX_QUEUE // 2:
            socket.close(wait=False, abort=True)

    def send(self, client: Client, event: Event) -> None:
        """Queue an event for one client."""
        self._server.emit(event[0], event[1], to=client.sid)

    def waiting(self, client: Client) -> int:
        """How many packets wait for the client's connection."""
        socket = self._socket(client)
        return 0 if socket is None else int(socket.queue.qsize())

    def _socket(self, client: Client) -> Any:
        eio_sid = self._server.manager.eio_sid_from_sid(client.sid, "/")
        return self._server.eio.sockets.get(eio_sid)

    # --- rooms --------------------------------------------------------------------------------------------------------

    def settle(self, client: Client) -> bool:
        """Bring the client into its rooms; False when Redis has not confirmed them in time, or when the client has gone meanwhile.

        While Redis is away it returns True: what is missed until it is back will be sent from the log.
        """
        sid, wanted = client.sid, client.rooms
        for room in [room for room, sids in self._members.items() if sid in sids and room not in wanted]:
            self._leave(room, sid)
        for room in wanted:
            if not self._enter(room, sid):
                return False
        deadline = time.monotonic() + CONFIRM_SECONDS
        for room in wanted:
            confirmed = self._confirmed.get(room)
            while self.connected and confirmed and not confirmed.wait(0.2):
                if time.monotonic() > deadline:
                    return False
        return True

    def _enter(self, room: str, sid: str) -> bool:
        """False when the client is gone: whoever asks waits for the database and for Redis, and people leave pages meanwhile."""
        if sid not in self.clients:
            return False
        if sid in self._members.get(room, ()):
            return True
        try:
            self._server.enter_room(sid, room)
        except ValueError:
            # The connection has ended, and `remove` is about to be told.
            return False
        self._members.setdefault(room, set()).add(sid)
        if room not in self._confirmed:
            self._confirmed[room] = threading.Event()
            self._order("subscribe", room)
        return True

    def _leave(self, room: str, sid: str) -> None:
        members = self._members.get(room)
        if members is None or sid not in members:
            # Another greenlet was faster.
            return
        members.discard(sid)
        if sid in self.clients:
            self._server.leave_room(sid, room)
        if not members:
            del self._members[room]
            self._confirmed.pop(room, None)
            self._order("unsubscribe", room)

    def _order(self, what: str, room: str) -> None:
        self._orders.append((what, room))
        if self.connected:
            try:
                events.client().publish(self._wake, "")
            except redis.RedisError:
                return

    # --- holding ------------------------------------------------------------------------------------------------------

    def release(self, client: Client) -> None:
        """End the holding: send what was held, in order, then send at once."""
        while client.held:
            held, client.held = client.held, []
            for event in held:
                self.send(client, event)
        client.held = None

    def owe(self, client: Client) -> None:
        """Begin catching up with the log for a client that may have missed events; they are held until it is done."""
        from iiot.live.replay import catch_up

        client.held = client.held or []
        if client.replaying:
            client.again = True
        else:
            self._server.start_background_task(catch_up, self, client)

    # --- Redis --------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            try:
                self._session()
            except (redis.RedisError, OSError) as error:
                log.warning("live events interrupted", error=str(error))
            except Exception as error:
                log.error("live events interrupted", exc_info=error)
            self.connected = False
            failures = 0 if time.monotonic() - began > 10 else failures + 1
            time.sleep(min(LONGEST_PAUSE, 0.05 * 2 ** min(failures, 10)))

    def _session(self) -> None:
        """One connection to Redis. A client of its own, as redis-py would reconnect silently and lose events unnoticed."""
        url = config.load().redis_url or ""
        connection: Any = redis.Redis.from_url(
            url, retry=Retry(NoBackoff(), 0), health_check_interval=5, socket_connect_timeout=2
        )
        pubsub = connection.pubsub()
        try:
            for client in self.clients.values():
                if client.cursor is not None and client.held is None:
                    # Nothing was owed to it, so it has what came until the connection ended.
                    client.cursor = max(client.cursor, self._cursor or "")
                    client.held = []
            self._cursor = None
            self._orders.clear()
            rooms = list(self._members)
            self._confirmed = {room: threading.Event() for room in rooms}
            self._awaited = 2 + len(rooms)
            pubsub.subscribe(events.PROGRESS, self._wake, *[events.PREFIX + room for room in rooms])
            while True:
                self._obey(pubsub)
                message = pubsub.get_message(timeout=LISTEN_SECONDS)
                if message is not None:
                    self._take(message)
        finally:
            pubsub.close()
            connection.close()

    def _obey(self, pubsub: Any) -> None:
        while self._orders:
            what, room = self._orders.popleft()
            getattr(pubsub, what)(events.PREFIX + room)

    def _take(self, message: dict[str, Any]) -> None:
        channel = message["channel"].decode()
        room = channel.removeprefix(events.PREFIX)
        if message["type"] == "subscribe":
            if room in self._confirmed:
                self._confirmed[room].set()
            self._awaited -= 1
            if self._awaited == 0:
                self.connected = True
                # Those too who subscribed meanwhile and were not made to wait for Redis.
                for client in list(self.clients.values()):
                    if client.cursor is not None:
                        self.owe(client)
        elif message["type"] == "message" and channel == events.PROGRESS:
            self._progress(message["data"].decode())
        elif message["type"] == "message" and channel != self._wake:
            self._deliver(room, events.unframe(message["data"]))

    def _deliver(self, room: str, event: Event) -> None:
        waiting = []
        for sid in self._members.get(room, ()):
            client = self.clients.get(sid)
            if client is not None and client.held is not None:
                waiting.append(sid)
                if len(client.held) < MAX_HELD:
                    client.held.append(event)
                else:
                    client.held, client.again = [], True
        self._emit(event, room, waiting)

    def _emit(self, event: Event, room: str, skip: list[str]) -> None:
        try:
            self._server.emit(event[0], event[1], to=room, skip_sid=skip or None)
        except Exception as error:
            # One broken connection must not take the event from the others in the room; twice is better than never.
            log.warning("emitting one by one", error=str(error))
            for client in self._in_room(room, skip):
                try:
                    self.send(client, event)
                except Exception:
                    self.drop(client, "broken connection")

    def _in_room(self, room: str, skip: Iterable[str]) -> list[Client]:
        sids = self._members.get(room, set()) - set(skip)
        return [self.clients[sid] for sid in sids if sid in self.clients]

    def _progress(self, cursor: str) -> None:
        if not self.connected:
            return
        self._cursor = cursor
        for client in list(self.clients.values()):
            if client.held is None and client.cursor is not None:
                self.send(client, ("cursor", {"cursor": cursor}))

    # --- sweeping -----------------------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        seen, report_due = guard.mark(), 0.0
        while True:
            time.sleep(SWEEP_SECONDS)
            try:
                mark = guard.mark()
                self._revalidate(everybody=mark != seen)
                seen = mark
                self._drop_slow()
                self._drop_strangers()
                if time.monotonic() >= report_due:
                    guard.report(list(self.clients.values()))
                    report_due = time.monotonic() + REPORT_SECONDS
            except Exception as error:
                log.error("sweep failed", exc_info=error)

    def _revalidate(self, *, everybody: bool) -> None:
        now = time.monotonic()
        due = [client for client in self.clients.values() if everybody or now - client.checked_at > guard.CHECK_SECONDS]
        for client in due:
            if not guard.still_allowed(client):
                self.drop(client, "session ended")

    def _drop_slow(self) -> None:
        for client in list(self.clients.values()):
            if self.waiting(client) > MAX_QUEUE:
                self.drop(client, "too slow")

    def _drop_strangers(self) -> None:
        """Connections that never said who they are, or were told to go and have not gone."""
        known = {self._server.manager.eio_sid_from_sid(sid, "/") for sid in list(self.clients)}
        now = time.monotonic()
        sockets = self._server.eio.sockets
        self._strangers = {sid: self._strangers.get(sid, now) for sid in list(sockets) if sid not in known}
        for sid, since in self._strangers.items():
            if now - since > STRANGER_SECONDS and sid in sockets:
                sockets[sid].close(wait=False, abort=True)
