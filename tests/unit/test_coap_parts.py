"""Parts of the CoAP adapter by themselves: what strangers can send as OSCORE, blocks, and proofs that are kept alive."""

import asyncio
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
from aiocoap import Message
from aiocoap.numbers import codes
from aiocoap.optiontypes import BlockOption
from hypothesis import given
from hypothesis import strategies as st

from iiot import cache, config
from protocols import coap_oscore, coap_wire
from protocols.base import Proved, SharedKey
from protocols.renewal import Renewed
from tests import services
from tests.services import eventually

KEY = SharedKey(b"\x01" * 7, b"\x02" * 7, b"\x03" * 16, b"\x04" * 8, Proved("u" * 26, None))


REFUSALS = (codes.BAD_REQUEST, codes.REQUEST_ENTITY_INCOMPLETE, codes.REQUEST_ENTITY_TOO_LARGE)


def incoming(option: bytes, payload: bytes, code: int = codes.POST) -> Message:
    """A request with an OSCORE option, as it comes from the wire."""
    sent = Message(code=code, payload=payload, _mid=1, _mtype=0, _token=b"t", oscore=option)
    return Message.decode(sent.encode())


@given(option=st.binary(max_size=20), payload=st.binary(max_size=60), code=st.sampled_from([1, 2, 3, 4, 5]))
def test_whatever_stands_in_the_option_is_a_key_id_or_refused(option: bytes, payload: bytes, code: int) -> None:
    request = incoming(option, payload, code)
    kid, refused = b"", None
    try:
        kid = coap_oscore.kid_of(request)
    except coap_oscore.Unopened as error:
        refused = error.code
    assert refused in (None, codes.BAD_OPTION, codes.METHOD_NOT_ALLOWED)
    assert option.endswith(kid)


@given(number=st.integers(0, 2**40 - 1), payload=st.binary(max_size=60))
def test_what_was_not_protected_with_the_key_opens_nothing(number: int, payload: bytes) -> None:
    piv = number.to_bytes(5, "big")
    request = incoming(bytes([0x08 | len(piv)]) + piv + KEY.kid, payload)
    context = coap_oscore.Context(KEY)
    assert coap_oscore.kid_of(request) == KEY.kid
    with pytest.raises(coap_oscore.Unopened) as refused:
        coap_oscore.open_(request, KEY, context)
    assert refused.value.code in (codes.BAD_REQUEST, codes.BAD_OPTION)
    # Nobody without the key moves the window.
    assert not context.recipient_replay_window.is_initialized()


@given(
    sizes=st.lists(st.tuples(st.integers(0, 20), st.booleans(), st.integers(0, 6), st.integers(0, 1100)), max_size=30)
)
def test_blocks_in_any_order_give_a_body_or_a_refusal(sizes: list[tuple[int, bool, int, int]]) -> None:
    async def feed() -> None:
        transfers = coap_wire.Transfers()
        for number, more, exponent, length in sizes:
            block = BlockOption.BlockwiseTuple(number, more, exponent)
            body, refused = None, None
            try:
                body = transfers.feed(("device",), block, b"x" * length)
            except coap_wire.BlockError as error:
                refused = error.code
            assert refused in (None, *REFUSALS)
            assert refused is not None or (body is None) == more
            assert body is None or set(body) <= {ord("x")}

    asyncio.run(feed())


@pytest.fixture
def own_folder(tmp_path: Path) -> Iterator[None]:
    """A data dir of the test's own, where what was revoked is noted."""
    with services.active(config.read(_env_file=None, data_dir=tmp_path)):
        yield


def test_proofs_in_use_are_asked_about_together_and_revoked_ones_forgotten(own_folder: None) -> None:
    asked: list[int] = []
    closed: set[str] = set()

    def ask(values: Collection[str]) -> list[str]:
        asked.append(len(values))
        return [each for each in values if each not in closed]

    memory: Renewed[str, str] = Renewed(1.0, ask)
    memory.get("a")
    mark = memory.mark()
    memory.put("a", "proof of a", mark)
    memory.put("b", "proof of b", mark)
    # In use for longer than one proof lasts, without another one.
    eventually(lambda: memory.get("a") and memory.get("b") and len(asked) >= 5, 30, 0.01)
    assert memory.get("a") == "proof of a"
    assert max(asked) == 2
    closed.add("proof of b")
    eventually(lambda: memory.get("b") is None, 10)
    cache.forget_everywhere()
    assert memory.get("a") is None


def test_a_database_that_is_away_renews_nothing(own_folder: None) -> None:
    def ask(_values: Collection[str]) -> list[str]:
        raise ConnectionError("away")

    memory: Renewed[str, str] = Renewed(0.5, ask)
    memory.get("a")
    memory.put("a", "proof", memory.mark())
    assert memory.get("a") == "proof"
    eventually(lambda: memory.get("a") is None, 10)
