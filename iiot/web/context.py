"""What a view knows of its request."""

from typing import Any

from flask import request

from iiot import auth, tenancy
from iiot.errors import Invalid, Problem, Unauthorized


class Context:
    """Handed to every view: who asks, in which scope, and what the answer's headers shall be."""

    __slots__ = ("_principal", "headers", "request_id")

    def __init__(self, principal: auth.Principal | None, request_id: str) -> None:
        self._principal = principal
        self.request_id = request_id
        self.headers: dict[str, str] = {}

    @property
    def principal(self) -> auth.Principal:
        """Who asks; raises Unauthorized on a route that lets strangers in and was asked by one."""
        if self._principal is None:
            raise Unauthorized
        return self._principal

    @property
    def is_signed_in(self) -> bool:
        """Whether somebody proved who they are."""
        return self._principal is not None

    @property
    def scope(self) -> tenancy.Scope:
        """The scope for `tenancy.work`: the caller's tenant, never another."""
        principal = self.principal
        return tenancy.of_device(principal) if principal.kind == "device" else tenancy.of(principal)

    @property
    def csrf_token(self) -> str:
        """What pages of this session send back as X-CSRF-Token; empty before signing in."""
        session_uid = self._principal.session_uid if self._principal else None
        return auth.csrf_token(session_uid) if session_uid else ""

    @property
    def address(self) -> str:
        """The caller's IP address."""
        return request.remote_addr or ""

    @property
    def user_agent(self) -> str:
        """The caller's User-Agent, at most 256 characters."""
        return request.headers.get("User-Agent", "")[:256]

    @property
    def media_type(self) -> str | None:
        """The Content-Type as it was sent, None without one."""
        return request.headers.get("Content-Type")

    def idempotency_key(self, given: str | None) -> str | None:
        """What makes a repeated request the same one: `given` in the body, else the header Idempotency-Key, quoted or not (a draft of the IETF).

        Raises Invalid when both are there and differ.
        """
        text = request.headers.get("Idempotency-Key")
        key = text if text is None else text.strip().strip('"')
        if given is not None and key is not None and key != given:
            message = "the header Idempotency-Key says another one; send one of them"
            raise Invalid("The body is not valid.", [{"loc": ["body", "idempotency_key"], "msg": message}])
        return key if given is None else given

    def body(self, longest: int) -> bytes:
        """The raw body, for routes with `raw`; raises 413 when it has more than `longest` bytes, without reading them."""
        request.max_content_length = longest
        return request.get_data(cache=False)

    def beginning(self, size: int) -> bytes:
        """The first bytes of a body that `body` refused, for the record."""
        return bytes(request.environ["wsgi.input"].read(size))

    def etag(self, version: Any) -> None:
        """Name the version of what is answered (RFC 9110 section 8.8.3)."""
        self.headers["ETag"] = f'"{version}"'

    def expected_version(self, *, required: bool = False) -> str | None:
        """The version in `If-Match`, None when it is absent or `*`; raises 428 when it is required and absent.

        The service compares it inside its transaction; a service raises `precondition-failed` (412) when it differs.
        """
        text = request.headers.get("If-Match")
        if text is None:
            if required:
                raise Problem(
                    428,
                    "precondition-required",
                    "Read it first and send its ETag as If-Match, so that nobody's change is lost.",
                )
            return None
        text = text.strip()
        if text == "*":
            return None
        return text.removeprefix("W/").strip('"')
