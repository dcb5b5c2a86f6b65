"""Messages of gateways for others, between the runner and the services: taken apart before the batch is stored, put together again after it.

Two kinds come here. `gateway`: `{"<child>": [readings], …}` of a device that is a gateway. `home`: a topic of the smart-home scheme; the broker lets
none but the home's gateway write there, and which device that is says the database.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from iiot import tenancy
from iiot.payloads import Parsed, PayloadError
from iiot.payloads.gateway import HomeTopic, Part, parse_children, parse_state, parse_status, read_topic
from iiot.payloads.reader import shown
from iiot.services import children, entities
from iiot.services.children import Place, Sighting
from iiot.services.entities import Report
from iiot.services.ingest import Incoming, StatusEvent
from iiot.services.ingest import Outcome as Result
from protocols import translate
from protocols.base import Message, Outcome, Refusal

GATEWAY: Final = "gateway"
HEARD_SECONDS: Final = 10.0
HEARD_KEPT: Final = 10_000
HOME: Final = "home"
KINDS: Final = frozenset((GATEWAY, HOME))
# Refusals of one message that are passed on; the adapter tells fewer, `rejected_message` has all of them.
MOST_REFUSALS: Final = 100

_MOST: Final = children.MOST_WAITING
# What is wrong with the gateway, not with what it says.
_OF_GATEWAY: Final[dict[str, str]] = {
    "not-a-gateway": "this device is no gateway; mark it as one in the portal, then it may send for others",
    "closed": "this gateway may not send now",
}


class _Said(NamedTuple):
    """What a message says of one child. `child`: its name for people; None when it is of the gateway itself. `content`: read, or why not."""

    place: int
    child: str | None
    sighting: Sighting
    content: Parsed | bool | PayloadError


def prepare(message: Message) -> Any:
    """Read a message of one of the two kinds: what is in it, or the PayloadError that says why nothing is. The database is not asked."""
    try:
        if message.kind == GATEWAY:
            return parse_children(message.payload, message.content_type, message.received_ms)
        topic = read_topic(message.topic)
        if not topic.kind:
            return topic, parse_status(message.payload)
        return topic, parse_state(topic, message.payload, message.received_ms)
    except PayloadError as error:
        return error


class Ears:
    """Notes that devices were heard which have sent no readings of their own, each once in a while."""

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol
        self._heard: dict[str, float] = {}

    def news(self, uids: set[str], reason: str = "telemetry") -> list[StatusEvent]:
        """What is to be told the presence of gateways that sent for others just now, or of devices that answered a command."""
        now = time.monotonic()
        due = [uid for uid in uids if now - self._heard.get(uid, -HEARD_SECONDS) >= HEARD_SECONDS]
        if len(self._heard) > HEARD_KEPT:
            self._heard.clear()
        self._heard.update(dict.fromkeys(due, now))
        return [StatusEvent(uid, True, reason, self.protocol, is_said=False) for uid in due]


class Through:
    """One batch of such messages, by their places in the runner's batch.

    After construction `incoming` goes through the one door and `events` to the presence; then `finish` with what the door said.
    """

    def __init__(self, protocol: str, messages: Mapping[int, Message]) -> None:
        self.protocol = protocol
        self.messages = messages
        self.incoming: list[Incoming] = []
        self.events: list[StatusEvent] = []
        # For each of `incoming` the place of its message, and the child that it is of; None: of the gateway itself.
        self._of: list[tuple[int, str | None]] = []
        self._refusals: dict[int, list[Refusal]] = {place: [] for place in messages}
        self._waiting: list[tuple[Sighting, Place]] = []
        self._reports: list[Report] = []
        self._whole: set[int] = set()
        # The gateways that have sent something just now, whatever became of it.
        self.heard: set[str] = set()
        said = [each for place in messages for each in self._read(place)]
        # Without anything to look up the database is not asked.
        for part, found in zip(said, children.resolve([part.sighting for part in said]), strict=True):
            self._take(part, found)

    def _read(self, place: int) -> Iterator[_Said]:
        """What a message says of each child. What cannot be read makes nothing new, so the database is asked for the gateway alone."""
        message = self.messages[place]
        content = message.prepared
        if message.kind == HOME:
            topic: HomeTopic | None = content[0] if isinstance(content, tuple) else None
            words = message.topic.split("/")
            sighting = Sighting(topic.child if topic else "", topic.part if topic else "", home=words[1])
            said = content[1] if isinstance(content, tuple) else content
            yield self._said(place, "/".join(words[1:3]), sighting, said, message.payload)
        elif isinstance(content, PayloadError):
            yield self._said(place, None, Sighting(gateway_uid=message.uid), content, message.payload)
        else:
            parts: dict[str, Part] = content
            for name, (said, payload) in parts.items():
                # Nor does what holds no good reading make anything new.
                is_bad = isinstance(said, PayloadError) or not said.items
                sighting = Sighting("" if is_bad else name, gateway_uid=message.uid)
                yield self._said(place, shown(name), sighting, said, payload)

    def _said(self, place: int, child: str | None, sighting: Sighting, said: Any, payload: bytes) -> _Said:
        message = self.messages[place]
        sighting.protocol, sighting.topic, sighting.payload = self.protocol, message.topic, payload
        sighting.received_ms, sighting.is_news = message.received_ms, not message.retained
        return _Said(place, child, sighting, said)

    def _take(self, part: _Said, found: Place) -> None:
        message = self.messages[part.place]
        message.uid = found.gateway.uid if found.gateway else "" if message.kind == HOME else message.uid
        if found.gateway is not None and not message.retained:
            self.heard.add(found.gateway.uid)
        if found.state == "unknown-home":
            # The home was given up a moment ago: nobody is there to be told, nor to keep it for.
            self._refusals[part.place].append(Refusal(found.state, "no gateway speaks for this home"))
        elif found.state in _OF_GATEWAY:
            if part.place not in self._whole:
                self._whole.add(part.place)
                self._refuse(part, PayloadError(found.state, _OF_GATEWAY[found.state]), message.payload)
        elif isinstance(part.content, PayloadError):
            self._refuse(part, part.content)
        elif isinstance(part.content, Parsed) and not part.content.items:
            payload = part.sighting.payload
            self.incoming.append(Incoming(message.uid, part.content, None, self.protocol, message.topic, payload))
            self._of.append((part.place, part.child))
        elif found.state == "full":
            reason = f"{part.child} is new, and {_MOST} things of this gateway wait in the portal's inbox; approve or ignore some"
            self._refuse(part, PayloadError("inbox-full", reason, "things_waiting", _MOST))
        elif found.state == "waiting":
            reason = f"{part.child} waits in the portal's inbox for somebody's approval; its newest message is kept"
            reason += f" ({found.reason})" if found.reason else ""
            self._refusals[part.place].append(Refusal("child-waiting", reason, child=part.child))
            self._waiting.append((part.sighting, found))
        elif found.state == "ignored":
            reason = f"{part.child} is ignored by the tenant's own choice; nothing of it is kept"
            self._refusals[part.place].append(Refusal("child-ignored", reason, child=part.child))
        elif found.state == "known":
            self._store(part, part.content, found)

    def _refuse(self, part: _Said, error: PayloadError, payload: bytes | None = None) -> None:
        """Kept with the rejected messages of the gateway."""
        message = self.messages[part.place]
        kept = part.sighting.payload if payload is None else payload
        self.incoming.append(Incoming(message.uid, None, error, self.protocol, message.topic, kept))
        self._of.append((part.place, part.child if payload is None else None))

    def _store(self, part: _Said, said: Parsed | bool, found: Place) -> None:
        message = self.messages[part.place]
        if isinstance(said, bool):
            self.events.append(StatusEvent(found.child_uid, said, "retained" if message.retained else "status"))
            return
        payload = part.sighting.payload
        self.incoming.append(Incoming(found.child_uid, said, None, self.protocol, message.topic, payload))
        self._of.append((part.place, part.child))
        if found.entity_id is not None and found.gateway is not None and said.items:
            values = {key.rpartition("/")[2]: value for key, value in said.items[-1][1].items()}
            self._reports.append(Report(found.gateway.tenant_id, found.entity_id, values))

    def finish(self, results: Sequence[Result], outcomes: list[Outcome]) -> None:
        """Note what waits, end the orders that are fulfilled, and put what became of each message into its place. Raises what the database raises."""
        accepted = dict.fromkeys(self.messages, 0)
        newest: dict[int, int] = {}
        for (place, child), result in zip(self._of, results, strict=True):
            outcome = translate.outcome(result, child)
            accepted[place] += outcome.accepted
            self._refusals[place] += outcome.refusals
            if outcome.ack_ts is not None:
                newest[place] = max(newest.get(place, 0), outcome.ack_ts)
        if self._waiting:
            children.note(self._waiting)
        if self._reports:
            with tenancy.work(tenancy.system("ingest")) as db:
                entities.confirm(db, self._reports)
        for place in self.messages:
            outcomes[place] = Outcome(accepted[place], tuple(self._refusals[place][:MOST_REFUSALS]), newest.get(place))
