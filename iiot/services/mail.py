"""Mail: short English texts through the operator's SMTP server (RFC 5321), by the setting IIOT_SMTP_URL.

`smtp://user:password@host:587` uses STARTTLS where the server offers it, `smtps://` TLS from the start. A password travels over TLS or to this
machine alone.
"""

import contextvars
import smtplib
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import localtime, make_msgid
from typing import ParamSpec
from urllib.parse import unquote, urlsplit

import structlog
from sqlalchemy.orm import Session

from iiot import config, metrics, tenancy

log = structlog.get_logger(__name__)
P = ParamSpec("P")

TIMEOUT_SECONDS = 10.0
# Mails of one process on their way at once; a server that hangs must not gather threads without end.
AT_ONCE = 50
SUBMISSION, SUBMISSIONS = 587, 465
LOOPBACK = ("localhost", "127.0.0.1", "::1")

_slots = threading.BoundedSemaphore(AT_ONCE)


class MailError(Exception):
    """A mail was not taken by the server; the text says why and holds no secret."""


@dataclass(frozen=True)
class _Server:
    host: str
    port: int
    is_tls: bool
    user: str
    password: str


def configured() -> bool:
    """Whether the operator named an SMTP server."""
    return config.load().smtp_url is not None


def link(path: str) -> str:
    """The absolute address of a path of the portal. It comes from the settings, never from the Host header, which a stranger can choose."""
    settings = config.load()
    base = settings.public_url or f"http://{settings.http_bind}"
    return base.rstrip("/") + path


def send(to: str, subject: str, text: str) -> None:
    """Hand a mail to the server; returns once the server has taken it. Raises MailError, after ten seconds of silence at the latest."""
    try:
        message = _message(to, subject, text)
        _deliver(message)
    except (OSError, smtplib.SMTPException, MailError) as error:
        metrics.mails.labels("failed").inc()
        raise MailError(f"The mail was not sent: {error}") from error
    metrics.mails.labels("sent").inc()


def after_commit(db: Session, to: str, subject: str, text: str) -> None:
    """Send a mail once `db`'s transaction is committed, beside the request, so that its time tells nothing; failures are logged and counted."""
    tenancy.after_commit(db, lambda: soon(send, to, subject, text))


def soon(work: Callable[P, None], *arguments: P.args, **named: P.kwargs) -> None:
    """Do `work`, which ends in a mail, beside the caller: in a thread, under gevent a greenlet. What it raises is logged.

    Also for looking up whom to write to: an answer must take the same time whether there is anybody or not. What waits is lost when the process
    ends; people ask again.
    """
    if not _slots.acquire(blocking=False):
        metrics.mails.labels("dropped").inc()
        log.error("mail dropped, too many are on their way", work=work.__name__)
        return
    context = contextvars.copy_context()

    def run() -> None:
        try:
            context.run(work, *arguments, **named)
        except Exception as error:
            # Nobody waits for the outcome, so it ends here, whatever it is.
            log.error("mail not sent", work=work.__name__, error=str(error)[:500])
        finally:
            _slots.release()

    threading.Thread(target=run, name="mail", daemon=True).start()


def _message(to: str, subject: str, text: str) -> EmailMessage:
    """A text mail. Line breaks in an address or a subject would add headers; they are refused, never cleaned."""
    if any(ord(each) < 32 or ord(each) == 127 for each in to + subject):
        raise MailError("an address or a subject holds control characters")
    sender = config.load().mail_from or ""
    message = EmailMessage(policy=SMTP)
    try:
        message["From"] = sender
        message["To"] = Address(addr_spec=to)
        message["Subject"] = subject
    except (ValueError, IndexError, MessageError) as error:
        raise MailError(f"not an address or not a subject: {type(error).__name__}") from None
    message["Date"] = localtime()
    message["Message-ID"] = make_msgid(domain=sender.rpartition("@")[2].strip("> ") or None)
    # RFC 3834: nobody's absence note shall answer.
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(text)
    return message


def _server() -> _Server:
    url = config.load().smtp_url
    if url is None:
        raise MailError("no SMTP server is configured (IIOT_SMTP_URL)")
    parts = urlsplit(url.get_secret_value())
    is_tls = parts.scheme == "smtps"
    return _Server(
        parts.hostname or "",
        parts.port or (SUBMISSIONS if is_tls else SUBMISSION),
        is_tls,
        unquote(parts.username or ""),
        unquote(parts.password or ""),
    )


def _deliver(message: EmailMessage) -> None:
    server = _server()
    tls = ssl.create_default_context()
    if server.is_tls:
        client: smtplib.SMTP = smtplib.SMTP_SSL(server.host, server.port, timeout=TIMEOUT_SECONDS, context=tls)
    else:
        client = smtplib.SMTP(server.host, server.port, timeout=TIMEOUT_SECONDS)
    with client:
        is_private = server.is_tls
        client.ehlo_or_helo_if_needed()
        if not is_private and client.has_extn("starttls"):
            client.starttls(context=tls)
            is_private = True
        if server.user:
            if not is_private and server.host not in LOOPBACK:
                raise MailError("the server offers no TLS, and the password does not travel in plain text")
            client.login(server.user, server.password)
        client.send_message(message)
