"""Who sends a request to the CoAP server: by a token in the query, or by the key of OSCORE. Not an adapter."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aiocoap.numbers import codes

from protocols import coap_oscore as sealed
from protocols.base import Refusal, SharedKey
from protocols.coap_exchange import (
    RETRY_SECONDS,
    Exchange,
    Refused,
    check_options,
    credentials_of,
    is_larger,
    links,
    refusal,
)

if TYPE_CHECKING:
    from protocols.coap_server import Resource, Server


class Entry:
    """Lets requests in. For the event loop alone; everything raises Refused."""

    def __init__(self, server: Server, takes_tokens: bool) -> None:
        self.server = server
        self.takes_tokens = takes_tokens
        self.contexts = sealed.Contexts()

    def admit(self, exchange: Exchange) -> None:
        """Find out who it is and let the resource serve it, at once or in a task."""
        if exchange.wire.opt.oscore is None:
            self._plain(exchange)
        else:
            self._protected(exchange)

    def _plain(self, exchange: Exchange) -> None:
        resource = self.server.resource(exchange)
        if resource is None:
            self.check_stranger(exchange)
            self._tell_links(exchange)
            return
        uid, token = self._told_credentials(exchange)
        exchange.proof = functools.partial(self._authenticate, exchange, uid, token)
        exchange.device = self.server.inbox.recall(uid, token)
        if exchange.device is not None:
            resource(exchange)
            return
        is_known = self.server.inbox.knows(uid, token)
        if not is_known:
            self.check_stranger(exchange)
        self.server.spawn(exchange, self._prove(exchange, resource, uid, token, not is_known), is_stranger=not is_known)

    def _tell_links(self, exchange: Exchange) -> None:
        """Anybody may ask for them, and they are larger than the request: the address is proved before."""
        answer = links(exchange.request)
        is_error = not answer.code.is_successful()
        if is_error or not is_larger(answer, exchange.wire) or self.server.guard.is_echoed(exchange.wire):
            self.server.answer(exchange, answer, known=not is_error)
        elif not self.server.pings.ask(exchange.wire.remote, lambda: self.server.answer(exchange, answer)):
            raise Refused(codes.SERVICE_UNAVAILABLE, "too much at once", max_age=RETRY_SECONDS)

    def _told_credentials(self, exchange: Exchange) -> tuple[str, str]:
        try:
            if not self.takes_tokens:
                raise Refused(codes.UNAUTHORIZED, "unauthorized: tokens are not taken in plain text, use OSCORE")
            return credentials_of(exchange.request)
        except Refused:
            self.check_stranger(exchange)
            raise

    def _authenticate(self, exchange: Exchange, uid: str, token: str, is_stranger: bool = False) -> Any:
        guard = self.server.guard
        source, address = guard.source(exchange.request), guard.address(exchange.request)
        return self.server.ask(
            (uid, token, source), self.server.inbox.authenticate, uid, token, source, address, is_stranger=is_stranger
        )

    async def _prove(self, exchange: Exchange, resource: Resource, uid: str, token: str, is_stranger: bool) -> None:
        found = await self._authenticate(exchange, uid, token, is_stranger)
        if isinstance(found, Refusal):
            raise refusal(found, echo=self._echo_for(exchange, found))
        exchange.device = found
        resource(exchange)

    def _protected(self, exchange: Exchange) -> None:
        """A request under OSCORE: find its key, open it, go on with what is inside."""
        kid = self._opened(lambda: sealed.kid_of(exchange.wire))
        check_options(exchange.wire, protected=True)
        key = self.server.inbox.recall_key(kid)
        if key is not None:
            self._open(exchange, key)
            return
        is_known = kid in self.contexts
        if not is_known:
            self.check_stranger(exchange)
        self.server.spawn(exchange, self._find_key(exchange, kid, not is_known), is_stranger=not is_known)

    async def _find_key(self, exchange: Exchange, kid: bytes, is_stranger: bool) -> None:
        found = await self.server.ask(kid, self.server.inbox.shared_key, kid, is_stranger=is_stranger)
        if isinstance(found, Refusal):
            if found.code != "unauthorized":
                raise refusal(found)
            self.contexts.drop(kid)
            raise Refused(codes.UNAUTHORIZED, "Security context not found", max_age=0)
        self._open(exchange, found)

    def _open(self, exchange: Exchange, key: SharedKey) -> None:
        try:
            exchange.request, exchange.seal = self._opened(
                lambda: sealed.open_(exchange.wire, key, self.contexts.of(key))
            )
        except sealed.Stale as stale:
            flood = self.server.guard.stale(key.kid)
            if flood is not None:
                raise refusal(flood) from None
            exchange.seal = stale.seal
            self.server.answer(exchange, stale.answer(), False)
            return
        if key.refused is not None:
            raise refusal(key.refused)
        exchange.device = key.device
        exchange.proof = functools.partial(self.server.ask, key.kid, self.server.inbox.shared_key, key.kid)
        resource = self.server.resource(exchange)
        if resource is None:
            self.server.answer(exchange, links(exchange.request))
        else:
            resource(exchange)

    @staticmethod
    def _opened(work: Callable[[], Any]) -> Any:
        try:
            return work()
        except sealed.Unopened as error:
            raise Refused(error.code, str(error), max_age=0) from None

    def check_stranger(self, exchange: Exchange) -> None:
        refused = self.server.guard.stranger(exchange.wire)
        if refused is not None:
            raise refusal(refused, echo=self._echo_for(exchange, refused))

    def _echo_for(self, exchange: Exchange, refused: Refusal) -> bytes | None:
        """Who is slowed down for what may have been forged gets the means to prove the address."""
        return self.server.guard.echo(exchange.wire.remote) if refused.code == "rate-limited" else None
