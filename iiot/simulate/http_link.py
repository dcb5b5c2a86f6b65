"""A simulated device over HTTP."""

import base64
import http.client
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from iiot.simulate.links import REQUEST_SECONDS, Answer, Message, QueuedLink, Tally
from iiot.simulate.portal import Login, Portal


class HttpLink(QueuedLink):
    """POST /api/v1/telemetry on one kept connection."""

    def __init__(self, portal: Portal, login: Login, tally: Tally) -> None:
        self._address = urlsplit(portal.http)
        secret = base64.b64encode(f"{login.uid}:{login.token}".encode()).decode()
        self._headers = {"Authorization": f"Basic {secret}", "Content-Type": "application/json"}
        self._connection: http.client.HTTPConnection | None = None
        super().__init__(login, tally)

    def _post(self, batch: Sequence[Message]) -> Answer:
        try:
            status, patience, answer = self._request(batch)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._connection = None
            return Answer(reason=f"{self._address.netloc} does not answer ({error})", wait=0.0)
        if status == 200:
            rejected = answer.get("rejected", [])
            reason = str(rejected[0].get("reason", "")) if rejected else ""
            return Answer(len({item["index"] for item in rejected}), reason)
        reason = str(answer.get("detail", status))
        if status == 429 or status >= 500:
            return Answer(reason=reason, wait=patience)
        return Answer(len(batch), reason, ends=status in (401, 403))

    def _request(self, batch: Sequence[Message]) -> tuple[int, float, dict[str, Any]]:
        """(status, seconds to wait, body)."""
        if self._connection is None:
            kind = http.client.HTTPSConnection if self._address.scheme == "https" else http.client.HTTPConnection
            self._connection = kind(self._address.hostname or "", self._address.port, timeout=REQUEST_SECONDS)
        self._connection.request(
            "POST", f"{self._address.path.rstrip('/')}/api/v1/telemetry", json.dumps(batch), self._headers
        )
        response = self._connection.getresponse()
        patience = response.headers.get("Retry-After", "0")
        body = json.loads(response.read() or b"{}")
        return response.status, float(patience) if patience.isdigit() else 1.0, body

    def _disconnect(self) -> None:
        if self._connection:
            self._connection.close()
