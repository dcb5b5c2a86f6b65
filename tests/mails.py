"""A real SMTP server for the tests; what it takes is kept."""

import contextlib
import email
import email.policy
import re
import ssl
import threading
from collections.abc import Iterator
from email.message import EmailMessage
from typing import Any, ClassVar

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from pydantic import SecretStr

from iiot import config
from iiot.config import Settings
from iiot.embedded import ports
from tests.services import active, eventually

SENDER = "IIoT Portal <portal@example.com>"


class _Connection(SMTP):  # type: ignore[misc]
    """A connection that is counted while it is open."""

    open: ClassVar[set[int]] = set()

    def connection_made(self, transport: Any) -> None:
        self.open.add(id(self))
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self.open.discard(id(self))


class _Controller(Controller):  # type: ignore[misc]
    def factory(self) -> SMTP:
        """What serves a connection."""
        return _Connection(self.handler, **self.SMTP_kwargs)


class Mailbox:
    """Takes every mail. `refuse`: what the server answers instead of taking one. `accounts`: user → password."""

    def __init__(self, **options: Any) -> None:
        self.taken: list[EmailMessage] = []
        self.refuse: str | None = None
        self.accounts: dict[str, str] = {}
        self.logins: list[str] = []
        self._server = _Controller(
            self, hostname="127.0.0.1", port=ports.free_port(), authenticator=self._authenticate, **options
        )

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        # Mails leave beside the requests: one may be on its way although nobody waits for it.
        eventually(lambda: not any(thread.name == "mail" for thread in threading.enumerate()))
        eventually(lambda: not _Connection.open)
        self._server.stop()

    def _authenticate(self, _server: SMTP, _session: Session, _envelope: Envelope, _way: str, data: Any) -> AuthResult:
        assert isinstance(data, LoginPassword)
        user = data.login.decode()
        self.logins.append(user)
        return AuthResult(success=self.accounts.get(user) == data.password.decode(), handled=False)

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's name
        if self.refuse:
            return self.refuse
        content = envelope.content
        assert isinstance(content, bytes)
        message = email.message_from_bytes(content, policy=email.policy.SMTP)
        assert isinstance(message, EmailMessage)
        self.taken.append(message)
        return "250 taken"

    @property
    def url(self) -> str:
        return f"smtp://127.0.0.1:{self._server.port}"

    def settings(self, base: Settings) -> Settings:
        """`base` with this server."""
        return base.model_copy(update={"smtp_url": SecretStr(self.url), "mail_from": SENDER})

    def to(self, address: str) -> list[EmailMessage]:
        """The mails to an address so far."""
        return [each for each in self.taken if each["To"] == address]

    def wait(self, address: str, count: int = 1) -> str:
        """The text of the newest mail to an address, once there are `count`."""
        eventually(lambda: len(self.to(address)) >= count)
        found = self.to(address)
        assert len(found) == count
        return str(found[-1].get_content())


def link_in(text: str) -> str:
    """The first link of a mail."""
    found = re.search(r"https?://\S+", text)
    assert found, text
    return found.group()


def token_in(text: str) -> str:
    """The token of the first link of a mail."""
    return link_in(text).partition("token=")[2]


@contextlib.contextmanager
def receiving(tls: ssl.SSLContext | None = None, **options: Any) -> Iterator[Mailbox]:
    """A running server, with STARTTLS when it has a certificate."""
    box = Mailbox(tls_context=tls, **options)
    box.start()
    try:
        yield box
    finally:
        box.stop()


@contextlib.contextmanager
def portal_with_mail() -> Iterator[Mailbox]:
    """A running server that the active settings name."""
    with receiving() as box, active(box.settings(config.load())):
        yield box
