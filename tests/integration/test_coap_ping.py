"""The links go to those alone who are at the address that their request came from."""

from collections.abc import Iterator

import pytest
from aiocoap import Message
from aiocoap.numbers import codes

from iiot.config import Settings
from protocols import coap_ping
from protocols.coap_exchange import LINKS
from tests.integration.coap_devices import Raw, Server, request, within

PING = b"\x40\x00"
RESET = b"\x70\x00"
# The shortest request for the links: a header, and the two parts of the path.
SHORTEST = bytes.fromhex("40010001bb") + b".well-known" + b"\x04core"
SILENCE = 1.0


@pytest.fixture
def quick(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that pings, and gives up, within a second."""
    monkeypatch.setattr(coap_ping, "AGAIN", (0.2, 0.4))
    monkeypatch.setattr(coap_ping, "LOST_SECONDS", 0.6)
    with within(settings) as found:
        yield found


def all_of(raw: Raw) -> list[bytes]:
    """What comes, until nothing comes any more."""
    found = []
    while datagram := raw.receive(SILENCE):
        found.append(datagram)
    return found


def test_who_does_not_answer_gets_no_more_than_was_sent(quick: Server) -> None:
    with quick.raw() as raw:
        raw.send(SHORTEST)
        came = all_of(raw)
        pings = [each for each in came if each[:2] == PING]
        assert len(pings) == 3
        assert len(set(pings)) == 1
        assert sorted(came) == sorted([*pings, b"\x60\x00\x00\x01"])
        assert sum(map(len, came)) <= len(SHORTEST)
        # Too late, and a guess.
        raw.send(RESET + pings[0][2:])
        raw.send(RESET + bytes([pings[0][2] ^ 1, pings[0][3]]))
        assert all_of(raw) == []


def first_ping(raw: Raw) -> bytes:
    """The id of the next ping."""
    while (datagram := raw.receive())[:2] != PING:
        assert datagram, "no ping"
    return datagram[2:]


@pytest.mark.parametrize("kind", [b"\x70", b"\x60"], ids=["reset", "acknowledged"])
@pytest.mark.parametrize("confirmable", [True, False], ids=["confirmable", "not confirmable"])
def test_who_answers_gets_them_whole(quick: Server, kind: bytes, confirmable: bool) -> None:
    with quick.raw() as raw:
        raw.send(request(codes.GET, quick.uri(".well-known/core"), 300, confirmable=confirmable))
        mid = first_ping(raw)
        raw.send(kind + b"\x00" + mid)
        answer = next(found for each in all_of(raw) if (found := Message.decode(each)).code != codes.EMPTY)
        assert (answer.code, answer.payload, answer.token) == (codes.CONTENT, LINKS, (300).to_bytes(2, "big"))
        # One answer to one request.
        raw.send(kind + b"\x00" + mid)
        assert [each for each in all_of(raw) if Message.decode(each).code != codes.EMPTY and each[0] & 0x30] == []


def test_an_answer_from_elsewhere_is_none(quick: Server) -> None:
    with quick.raw() as raw, quick.raw() as elsewhere:
        raw.send(SHORTEST)
        elsewhere.send(RESET + first_ping(raw))
        assert all(len(each) == 4 for each in all_of(raw))
        assert all_of(elsewhere) == []


def test_a_large_request_needs_no_proof(quick: Server) -> None:
    with quick.raw() as raw:
        raw.send(request(codes.GET, quick.uri(f".well-known/core?rt={'x' * 200}"), 301))
        assert Message.decode(raw.receive()).payload == LINKS


def test_more_than_can_be_asked_are_told_to_come_back(quick: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coap_ping, "MOST_PINGED", 1)
    with quick.raw() as raw, quick.raw() as other:
        raw.send(SHORTEST)
        assert raw.receive()[:2] == PING
        other.send(SHORTEST)
        refused = other.receive()
        assert Message.decode(refused).code == codes.SERVICE_UNAVAILABLE
        assert len(refused) <= len(SHORTEST)
        raw.send(RESET + b"\x00\x00")
        # The place is free again once the first one is given up.
        all_of(raw)
        assert quick.get(".well-known/core").payload == LINKS
