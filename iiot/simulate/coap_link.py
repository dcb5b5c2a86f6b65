"""A simulated device over CoAP."""

import asyncio
import contextlib
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import aiocoap
from aiocoap.error import Error as CoapError
from aiocoap.numbers import codes

from iiot.simulate.links import REQUEST_SECONDS, Answer, LinkError, Message, QueuedLink, Tally
from iiot.simulate.portal import Login, Portal

JSON = 50


class CoapLink(QueuedLink):
    """Confirmable POST /telemetry, with the token in the query."""

    batch = 20

    def __init__(self, portal: Portal, login: Login, tally: Tally) -> None:
        if portal.coap is None:
            raise LinkError("this portal has no CoAP server; take another --protocol")
        host, port = portal.coap
        self._where = f"{host}:{port}"
        place = f"[{host}]:{port}" if ":" in host else self._where
        self._uri = f"coap://{place}/telemetry?uid={quote(login.uid)}&token={quote(login.token)}"
        self._runner: asyncio.Runner | None = None
        self._context: Any = None
        super().__init__(login, tally)

    def _post(self, batch: Sequence[Message]) -> Answer:
        if self._runner is None:
            self._runner = asyncio.Runner()
        try:
            answer = self._runner.run(self._request(json.dumps(batch).encode()))
        except (CoapError, OSError, TimeoutError) as error:
            return Answer(reason=f"{self._where} does not answer ({error or type(error).__name__})", wait=0.0)
        text = answer.payload.decode("utf-8", "replace")
        if answer.code == codes.CHANGED:
            return _refusals(text)
        if answer.code in (codes.TOO_MANY_REQUESTS, codes.SERVICE_UNAVAILABLE):
            return Answer(reason=text, wait=float(answer.opt.max_age or 1))
        ends = answer.code in (codes.UNAUTHORIZED, codes.FORBIDDEN)
        return Answer(len(batch), text or str(answer.code), ends=ends)

    async def _request(self, payload: bytes) -> Any:
        if self._context is None:
            self._context = await aiocoap.Context.create_client_context(transports=["simple6"])
        request = aiocoap.Message(code=codes.POST, uri=self._uri, payload=payload, content_format=JSON)
        return await asyncio.wait_for(self._context.request(request).response, REQUEST_SECONDS)

    def _disconnect(self) -> None:
        if self._runner is not None:
            with contextlib.suppress(Exception), self._runner as runner:
                if self._context is not None:
                    runner.run(self._context.shutdown())


def _refusals(text: str) -> Answer:
    """An empty answer, or `{"refused": n, "refusals": […]}`."""
    if not text:
        return Answer()
    told = json.loads(text)
    listed = told.get("refusals") or [{}]
    return Answer(int(told.get("refused", 0)), str(listed[0].get("reason", "")))
