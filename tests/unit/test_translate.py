"""What the runner makes of a message before it reads it."""

import pytest

from protocols import translate
from protocols.base import Kind, Message


def _message(kind: Kind, topic: str, payload: bytes, retained: bool) -> Message:
    return Message("uid", kind, payload, topic, lambda *_: None, retained=retained)


@pytest.mark.parametrize("retained", [False, True])
@pytest.mark.parametrize(
    ("kind", "topic"),
    [
        ("telemetry", "iiot/uid/up/telemetry"),
        ("gateway", "iiot/uid/up/gateway/telemetry"),
        ("home", "home/h/n/light/l/state"),
    ],
)
def test_retained_readings_are_no_news(kind: Kind, topic: str, retained: bool) -> None:
    assert translate.is_no_news(_message(kind, topic, b'{"state": "ON"}', retained)) is retained


def test_retained_states_are_news_and_cleared_ones_are_not() -> None:
    for kind, topic in (("status", "iiot/uid/up/status"), ("home", "home/h/n/status")):
        assert not translate.is_no_news(_message(kind, topic, b"online", True))  # type: ignore[arg-type]
        assert translate.is_no_news(_message(kind, topic, b"", False))  # type: ignore[arg-type]
