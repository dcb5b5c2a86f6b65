"""Messages of adapters in the words of the services, and outcomes back. Used by the runner."""

from __future__ import annotations

from iiot.payloads import PayloadError, parse
from iiot.services.ingest import Incoming, StatusEvent
from iiot.services.ingest import Outcome as Result
from protocols.base import Message, Outcome, Refusal


def is_no_news(message: Message) -> bool:
    """Retained telemetry was stored when it was news; without a time of its own it would become a reading of today.
    An empty status is how MQTT clears a retained one, in homes an empty state as well."""
    if message.kind in ("telemetry", "gateway"):
        return message.retained
    if message.kind == "home":
        return not message.payload or (message.retained and not message.topic.endswith("/status"))
    return message.kind == "status" and not message.payload


def incoming(message: Message, protocol: str) -> Incoming:
    """Parse one message, or say why it is none."""
    parsed, error = None, None
    try:
        if message.kind == "telemetry":
            parsed = parse(message.payload, message.content_type, message.received_ms)
        elif message.kind == "status":
            error = PayloadError(
                "status-invalid", "a status is the word online or offline", "status", "online, offline"
            )
        else:
            reason = f"nothing is expected on the topic {message.topic}; telemetry goes to iiot/<uid>/up/telemetry"
            error = PayloadError("unknown-topic", reason)
    except PayloadError as refused:
        error = refused
    return Incoming(
        message.uid, parsed, error, protocol, message.topic, message.payload, message.content_type, message.received_ms
    )


def status_event(message: Message, protocol: str) -> StatusEvent | None:
    """What a status message says; None when it says nothing known."""
    word = message.payload.strip().lower()
    if word not in (b"online", b"offline"):
        return None
    return StatusEvent(message.uid, word == b"online", "retained" if message.retained else "status", protocol)


def outcome(result: Result, child: str | None = None) -> Outcome:
    """What the service says, in the words of the contract between runner and adapter. `child`: the device that a gateway spoke of."""
    refusals = tuple(
        Refusal(item.code, item.reason, item.limit, None, item.index, item.key, item.allowed, child)
        for item in result.rejected
    )
    if not refusals and result.status != "stored":
        reason = result.reason or "the message was not stored"
        code = result.code or "rejected"
        refusals = (Refusal(code, reason, result.limit, result.retry_after, allowed=result.allowed, child=child),)
    return Outcome(result.accepted, refusals, result.newest_ts if result.ack else None)
