"""What services raise when a request cannot be served; every edge renders it in its protocol's own way."""

from typing import Any


class Problem(Exception):
    """A refusal that the caller may read: HTTP status, a stable code and a text that says what to do (RFC 9457)."""

    def __init__(  # noqa: PLR0913 - the fields of RFC 9457, by keyword
        self,
        status: int,
        code: str,
        detail: str,
        *,
        title: str | None = None,
        errors: list[dict[str, Any]] | None = None,
        headers: dict[str, str] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.title = title or code.replace("-", " ").capitalize()
        self.errors = errors
        self.headers = headers or {}
        self.extra = extra or {}


class NotFound(Problem):
    """The thing does not exist, or is not the caller's: both read the same."""

    def __init__(self, what: str = "resource") -> None:
        super().__init__(404, "not-found", f"There is no such {what}, or it is not yours.")


class Unauthorized(Problem):
    """No proof of identity, or a wrong one."""

    def __init__(self, detail: str = "Sign in first.", scheme: str = "Bearer") -> None:
        super().__init__(401, "unauthorized", detail, headers={"WWW-Authenticate": scheme})


class WrongDevice(Unauthorized):
    """A device without proof of its identity, or with a wrong one (RFC 7617)."""

    def __init__(self, detail: str = "The device uid or token is wrong.") -> None:
        super().__init__(detail, 'Basic realm="devices", charset="UTF-8"')


class Forbidden(Problem):
    """The caller is known and may not do this."""

    def __init__(self, detail: str, code: str = "forbidden") -> None:
        super().__init__(403, code, detail)


class Conflict(Problem):
    """The request contradicts what is stored."""

    def __init__(self, detail: str, code: str = "conflict") -> None:
        super().__init__(409, code, detail)


class Invalid(Problem):
    """The request is well-formed and wrong; `errors` is a list of `{"loc", "msg"}`."""

    def __init__(self, detail: str, errors: list[dict[str, Any]] | None = None) -> None:
        super().__init__(422, "invalid", detail, errors=errors)


class QuotaExceeded(Problem):
    """A tenant's limit is reached; nothing was changed."""

    def __init__(self, name: str, limit: int, used: int) -> None:
        super().__init__(
            403,
            "quota-exceeded",
            f"The quota '{name}' allows {limit} and {used} are in use. Remove some, or ask the platform administrator for more.",
            extra={"quota": name, "limit": limit, "used": used},
        )


class Unavailable(Problem):
    """Something the portal needs is down or busy; trying again later helps."""

    def __init__(self, detail: str, retry_after: int = 5) -> None:
        super().__init__(503, "unavailable", detail, headers={"Retry-After": str(retry_after)})
