"""Requests and answers of the CoAP server: what is read of the one and said in the other. Not an adapter."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any, Final

import aiocoap
from aiocoap.numbers import codes
from aiocoap.numbers.optionnumbers import OptionNumber
from aiocoap.numbers.types import CON

from protocols import coap_wire as wire
from protocols.base import Outcome, Proved, Refusal
from protocols.coap_oscore import Seal

TOLD_PER_MESSAGE: Final = 5
ANSWER_BYTES: Final = 1_000
# When somebody shall come back who could not be served.
RETRY_SECONDS: Final = 5

JSON: Final = 50
LINK_FORMAT: Final = 40
LINKS: Final = (
    b'</telemetry>;rt="iiot.telemetry";ct="50 60 110 112",</devices>;rt="iiot.device";ct=50,'
    b'</commands>;rt="iiot.command";ct=50;obs'
)
CODES: Final = {
    "unauthorized": codes.UNAUTHORIZED,
    "unknown-device": codes.UNAUTHORIZED,
    "device-disabled": codes.FORBIDDEN,
    "tenant-suspended": codes.FORBIDDEN,
    "tenant-deleting": codes.FORBIDDEN,
    "unknown-command": codes.NOT_FOUND,
    "command-finished": codes.CONFLICT,
    "too-large": codes.REQUEST_ENTITY_TOO_LARGE,
    "unsupported-content-type": codes.UNSUPPORTED_CONTENT_FORMAT,
    "rate-limited": codes.TOO_MANY_REQUESTS,
    "readings-quota": codes.TOO_MANY_REQUESTS,
    "unavailable": codes.SERVICE_UNAVAILABLE,
    "not-storable": codes.INTERNAL_SERVER_ERROR,
}
STRANGERS: Final = frozenset({"unauthorized", "rate-limited", "unavailable"})
# Critical options that are followed; others are refused (RFC 7252 section 5.4.1).
FOLLOWED: Final = frozenset(
    {
        OptionNumber.URI_HOST, OptionNumber.URI_PORT, OptionNumber.URI_PATH, OptionNumber.URI_QUERY, OptionNumber.ACCEPT,
        OptionNumber.BLOCK1, OptionNumber.BLOCK2,
    }
)  # fmt: skip
REPEATABLE: Final = frozenset({OptionNumber.URI_PATH, OptionNumber.URI_QUERY})
PROXY: Final = frozenset({OptionNumber.PROXY_URI, OptionNumber.PROXY_SCHEME})


class Exchange:
    """One request on its way through the server.

    - `wire`: as it came; `request`: what is inside, under OSCORE; `seal` then protects the answers;
    - `device`: who has proved itself; `proof`: asks once more for it, from a thread, for what lasts longer than an answer;
    - `answered`: the id of the command that it answers.
    """

    __slots__ = ("answered", "device", "is_answered", "proof", "request", "seal", "wire")

    def __init__(self, request: Any) -> None:
        self.wire = request
        self.request = request
        self.seal: Seal | None = None
        self.device: Proved | None = None
        self.proof: Callable[[], Any] | None = None
        self.answered: str | None = None
        self.is_answered = False

    @property
    def uid(self) -> str:
        """The device that has proved itself."""
        assert self.device is not None, "nobody has proved anything"
        return self.device.uid

    @property
    def endpoint(self) -> Any:
        """Where the blocks of one body come from: a device may change its address under OSCORE."""
        return self.wire.remote if self.seal is None else self.seal.key.kid

    @property
    def is_simple(self) -> bool:
        """Whether nothing but a code has to be answered."""
        if self.seal is not None or self.wire.mtype is not CON:
            return False
        return self.wire.opt.block1 is None and self.wire.opt.no_response is None


class Refused(Exception):
    """An answer that is no success. `known`: whether it goes to a device that has proved itself."""

    def __init__(
        self, code: Any, text: str = "", known: bool = False, max_age: int | None = None, echo: bytes | None = None
    ) -> None:
        super().__init__(text)
        self.code = code
        self.known = known
        self.max_age = max_age
        self.echo = echo

    def answer(self) -> Any:
        """With a diagnostic payload (RFC 7252 section 5.5.2)."""
        message = aiocoap.Message(code=self.code, payload=str(self).encode("utf-8", "replace")[:ANSWER_BYTES])
        message.opt.max_age = self.max_age
        message.opt.echo = self.echo
        if self.code == codes.REQUEST_ENTITY_TOO_LARGE:
            message.opt.size1 = wire.BODY_BYTES
        return message


def refusal(refused: Refusal, known: bool | None = None, echo: bytes | None = None) -> Refused:
    """A refusal in CoAP's words. `known`: as in Refused; unless given the code says it."""
    code = CODES.get(refused.code, codes.BAD_REQUEST)
    return Refused(
        code, refused.text(), refused.code not in STRANGERS if known is None else known, refused.retry_after, echo
    )


def shorten(answer: Any, request: Any) -> None:
    """Make an answer no larger than its request: without text, then without Echo, then without Max-Age."""
    if is_larger(answer, request):
        answer.payload = b""
    if is_larger(answer, request):
        answer.opt.echo = None
    if is_larger(answer, request):
        answer.opt.max_age = None


def check_options(request: Any, protected: bool = False) -> None:
    """Refuse what is critical and not followed, or given twice (RFC 7252 section 5.4.5); `protected`: outside of OSCORE, where its own
    option stands."""
    former = None
    for option in request.opt.option_list():
        number = option.number
        if number in PROXY:
            raise Refused(codes.PROXYING_NOT_SUPPORTED)
        if number == former and number.is_critical() and number not in REPEATABLE:
            raise Refused(codes.BAD_OPTION, f"option {int(number)} stands twice")
        former = number
        if number.is_critical() and number not in FOLLOWED and not (protected and number == OptionNumber.OSCORE):
            raise Refused(codes.BAD_OPTION, f"option {int(number)} is not supported")


def check_accept(request: Any, offered: int) -> None:
    """Refuse to answer in another format than there is."""
    if request.opt.accept is not None and int(request.opt.accept) != offered:
        raise Refused(codes.NOT_ACCEPTABLE)


def credentials_of(request: Any) -> tuple[str, str]:
    """uid and token of the query; each stands there once."""
    given = [each.partition("=")[::2] for each in request.opt.uri_query]
    found = [[value for name, value in given if name == wanted] for wanted in ("uid", "token")]
    if any(len(values) != 1 for values in found):
        raise Refused(codes.UNAUTHORIZED, "unauthorized: send ?uid=<uid>&token=<token>")
    return found[0][0], found[1][0]


def links(request: Any) -> Any:
    """The links (RFC 6690)."""
    check_accept(request, LINK_FORMAT)
    answer = aiocoap.Message(code=codes.CONTENT, payload=LINKS, content_format=LINK_FORMAT)
    return wire.paged(answer, request.opt.block2)


def is_larger(answer: Any, request: Any) -> bool:
    """Whether an answer has more bytes than its request."""
    return wire.size_of(answer, request.token) > wire.size_of(request, request.token)


def representation(request: Any, content: Any, max_age: int = 0) -> Any:
    """2.05 with JSON, or with bytes that are JSON already; in blocks when it is long."""
    body = content if isinstance(content, bytes) else encode(content)
    answer = aiocoap.Message(code=codes.CONTENT, payload=body, content_format=JSON)
    answer.opt.max_age = max_age
    answer.opt.etag = hashlib.sha256(body).digest()[:4]
    return wire.paged(answer, request.opt.block2)


def encode(content: Any) -> bytes:
    """JSON without spaces."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def told(outcome: Outcome) -> Any:
    """2.04, with at most five refusals as JSON where some readings were refused; raises Refused when all were."""
    if outcome.refusals and not outcome.accepted:
        raise refusal(outcome.refusals[0], known=True)
    answer = aiocoap.Message(code=codes.CHANGED)
    listed = [each.receipt() for each in outcome.refusals[:TOLD_PER_MESSAGE]]
    while listed:
        notice = {"accepted": outcome.accepted, "refused": len(outcome.refusals), "refusals": listed}
        answer.payload = encode(notice)
        answer.opt.content_format = JSON
        if len(answer.payload) <= ANSWER_BYTES:
            break
        listed = listed[:-1]
    return answer
