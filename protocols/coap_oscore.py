"""OSCORE (RFC 8613) for the CoAP server: security contexts of devices, opened requests, sealed answers. Not an adapter.

A context lives in memory as long as this process. Its replay window is not stored: the first request after a start is
answered with an Echo option, and what the device sends with it opens the window (appendix B.1.2). Sequence numbers of our
own come from `Inbox.reserve`, stored before they are used; most answers need none, as they use the request's nonce.
"""

from __future__ import annotations

import secrets
from typing import Any, Final

from aiocoap import Message, oscore
from aiocoap.error import UnparsableMessage
from aiocoap.numbers import codes

from protocols import coap_wire
from protocols.base import SharedKey

WINDOW: Final = 32
ECHO_BYTES: Final = 8
# Contexts in memory; the device of one that was forgotten is asked for an Echo once more.
CONTEXTS: Final = 20_000
SUPPRESS_SUCCESS: Final = 2
# Stands where a datagram has what is not inside.
HEADER: Final = bytes(4)

NoNumber = oscore.ContextUnavailable


class Context(oscore.CanProtect, oscore.CanUnprotect, oscore.SecurityContextUtils):  # type: ignore[misc]
    """The security context of one key."""

    def __init__(self, key: SharedKey) -> None:
        self.alg_aead = oscore.algorithms["AES-CCM-16-64-128"]
        self.hashfun = oscore.hashfunctions["sha256"]
        self.id_context = None
        self.sender_id, self.recipient_id = key.own_id, key.kid
        self.derive_keys(key.salt, key.secret)
        self.recipient_replay_window = oscore.ReplayWindow(WINDOW, lambda: None)
        self.echo_recovery = secrets.token_bytes(ECHO_BYTES)
        self.numbers = range(0)
        self._until = 0

    def add(self, numbers: range) -> None:
        """Take reserved numbers over; those that were added before are not taken again."""
        if numbers.start >= self._until:
            self.numbers, self._until = numbers, numbers.stop

    def new_sequence_number(self) -> int:
        """The next of the numbers that were reserved; raises NoNumber when there is none."""
        if not self.numbers:
            raise NoNumber("no sequence number is reserved")
        number, self.numbers = self.numbers[0], self.numbers[1:]
        return number

    def _post_decrypt_checks(self, aad: bytes, plaintext: bytes, outer: Any, identifiers: Any) -> None:
        """Refuse options that would be dropped outside, before they are read: a device that has a key may be broken, too."""
        super()._post_decrypt_checks(aad, plaintext, outer, identifiers)
        if coap_wire.are_odd(HEADER + plaintext[1:]):
            raise oscore.DecodeError("odd options")

    def post_seqnoincrease(self) -> None:
        """Nothing: numbers are stored before they come here."""


class Contexts:
    """The contexts in memory, by the device's key id."""

    def __init__(self) -> None:
        self._by_kid: dict[bytes, Context] = {}

    def __contains__(self, kid: bytes) -> bool:
        return kid in self._by_kid

    def of(self, key: SharedKey) -> Context:
        """The context of a key; the one used longest ago is forgotten when there are too many."""
        context = self._by_kid.pop(key.kid, None) or Context(key)
        self._by_kid[key.kid] = context
        if len(self._by_kid) > CONTEXTS:
            del self._by_kid[next(iter(self._by_kid))]
        return context

    def drop(self, kid: bytes) -> None:
        """The key is gone."""
        self._by_kid.pop(kid, None)


class Unopened(Exception):
    """A protected request that is not answered in protected form; `code` and text as RFC 8613 section 8.2 has them."""

    def __init__(self, code: Any, text: str) -> None:
        super().__init__(text)
        self.code = code


class Seal:
    """What protects the answers to one request."""

    __slots__ = ("context", "identifiers", "key")

    def __init__(self, key: SharedKey, context: Context, identifiers: Any) -> None:
        self.key = key
        self.context = context
        self.identifiers = identifiers

    def close(self, answer: Any) -> Any:
        """Protect an answer or notification; raises NoNumber when a sequence number has to be reserved first."""
        number, suppressed = answer.opt.observe, answer.opt.no_response
        answer.opt.no_response = None
        if number is not None:
            # Inside, the option is empty (RFC 8613 section 4.1.3.5).
            answer.opt.observe = 0
        try:
            closed, _ = self.context.protect(answer, self.identifiers)
        finally:
            answer.opt.observe, answer.opt.no_response = number, suppressed
        closed.opt.observe = number
        if suppressed and suppressed & (1 << answer.code.class_ - 1):
            closed.opt.no_response = SUPPRESS_SUCCESS
        return closed


class Stale(Exception):
    """The request may be a replay: the replay window is not open yet. The device has to send it again with this Echo."""

    def __init__(self, seal: Seal) -> None:
        super().__init__()
        self.seal = seal

    def answer(self) -> Any:
        """4.01 with the Echo option, to be sealed."""
        return Message(code=codes.UNAUTHORIZED, echo=self.seal.context.echo_recovery)


def kid_of(request: Any) -> bytes:
    """The id of the key with which a request is protected; raises Unopened."""
    if request.code not in (codes.POST, codes.FETCH):
        raise Unopened(codes.METHOD_NOT_ALLOWED, "")
    try:
        said = oscore.verify_start(request)
        # A signature is for groups; aiocoap has no name for the error of a context that is of none.
        kid = None if oscore.COSE_COUNTERSIGNATURE0 in said else said.get(oscore.COSE_KID)
    except (oscore.DecodeError, IndexError, UnboundLocalError):
        kid = None
    if kid is None:
        raise Unopened(codes.BAD_OPTION, "Failed to decode COSE")
    return bytes(kid)


def open_(request: Any, key: SharedKey, context: Context) -> tuple[Any, Seal]:
    """The request inside a protected one, and what protects the answer; raises Unopened and Stale."""
    try:
        inner, identifiers = context.unprotect(request)
    except oscore.ReplayErrorWithEcho as error:
        raise Stale(Seal(key, context, error.request_id)) from None
    except oscore.ReplayError:
        raise Unopened(codes.UNAUTHORIZED, "Replay detected") from None
    except (oscore.DecodeError, IndexError):
        raise Unopened(codes.BAD_OPTION, "Failed to decode COSE") from None
    except (oscore.ProtectionInvalid, UnparsableMessage, ValueError):
        raise Unopened(codes.BAD_REQUEST, "Decryption failed") from None
    if not inner.code.is_request():
        raise Unopened(codes.BAD_REQUEST, "Decryption failed")
    inner.remote, inner.token, inner.mid, inner.mtype = request.remote, request.token, request.mid, request.mtype
    return inner, Seal(key, context, identifiers)
