"""Mail to a real SMTP server: what is sent, what is refused, and what happens when the server is not well."""

import datetime
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import SecretStr

from iiot import config, metrics, tenancy
from iiot.config import Settings
from iiot.services import mail
from tests.mails import SENDER, Mailbox, receiving
from tests.services import active, eventually


@pytest.fixture
def base(tmp_path: Path) -> Settings:
    """Settings without any server."""
    return config.read(_env_file=None, secret_key="k" * 40, data_dir=tmp_path, public_url="https://portal.example.com/")


@pytest.fixture
def box(base: Settings) -> Iterator[Mailbox]:
    """A server that the active settings name."""
    with receiving() as running, active(running.settings(base)):
        yield running


def counted(result: str) -> float:
    return float(metrics.mails.labels(result)._value.get())


def test_a_mail_arrives_as_text_with_the_headers_of_a_machine(box: Mailbox) -> None:
    before = counted("sent")
    mail.send("anna@example.com", "Größe", "Zwei Zeilen:\näöü €\n")
    (taken,) = box.taken
    assert (taken["From"], taken["To"], taken["Subject"]) == (SENDER, "anna@example.com", "Größe")
    assert taken.get_content_type() == "text/plain"
    assert taken.get_content().splitlines() == ["Zwei Zeilen:", "äöü €"]
    assert taken["Auto-Submitted"] == "auto-generated"
    assert taken["Message-ID"].endswith("@example.com>")
    assert taken["Date"]
    assert counted("sent") == before + 1


@pytest.mark.parametrize(
    ("to", "subject"),
    [
        ("a@example.com\r\nBcc: b@example.com", "Hello"),
        ("a@example.com", "Hello\nBcc: b@example.com"),
        ("a@example.com, b@example.com", "Hello"),
        ("not an address", "Hello"),
        ("", "Hello"),
    ],
)
def test_headers_cannot_be_added(box: Mailbox, to: str, subject: str) -> None:
    with pytest.raises(mail.MailError):
        mail.send(to, subject, "text")
    assert not box.taken


def test_a_name_from_outside_may_stand_in_the_text(box: Mailbox) -> None:
    mail.send("a@example.com", "Hello", ".\r\nBcc: b@example.com\r\n.\r\n")
    (taken,) = box.taken
    assert taken["Bcc"] is None
    assert "Bcc: b@example.com" in taken.get_content()


def test_a_server_that_refuses_is_an_error(box: Mailbox) -> None:
    box.refuse = "550 mailbox unavailable"
    with pytest.raises(mail.MailError, match="550"):
        mail.send("a@example.com", "Hello", "text")


def test_without_a_server_nothing_is_sent(base: Settings) -> None:
    with active(base), pytest.raises(mail.MailError, match="IIOT_SMTP_URL"):
        mail.send("a@example.com", "Hello", "text")


def test_a_server_that_is_not_there_or_says_nothing_ends_in_an_error(
    base: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mail, "TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"smtp://127.0.0.1:{silent.getsockname()[1]}"
        named = base.model_copy(update={"smtp_url": SecretStr(url), "mail_from": SENDER})
        with active(named), pytest.raises(mail.MailError):
            mail.send("a@example.com", "Hello", "text")
    with active(named), pytest.raises(mail.MailError):
        mail.send("a@example.com", "Hello", "text")


def certificate(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A context of a server for 127.0.0.1, and the certificate that signs it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    made = made.add_extension(names, False).add_extension(x509.BasicConstraints(True, None), True)
    signed = made.sign(key, hashes.SHA256())
    path, secret = folder / "certificate.pem", folder / "key.pem"
    path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path, secret)
    return context, path


def named(base: Settings, url: str) -> Settings:
    return base.model_copy(update={"smtp_url": SecretStr(url), "mail_from": "portal@example.com"})


def test_a_password_goes_over_starttls_to_a_server_whose_certificate_is_known(
    base: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, path = certificate(tmp_path)
    with receiving(context, auth_required=True, require_starttls=True) as box:
        box.accounts["portal@example.com"] = "p@ss:word/1"
        url = f"smtp://portal%40example.com:p%40ss%3Aword%2F1@localhost:{box._server.port}"
        with active(named(base, url)):
            with pytest.raises(mail.MailError, match="CERTIFICATE_VERIFY_FAILED"):
                mail.send("a@example.com", "Hello", "text")
            assert not box.logins, "the password is not given to a server that proves nothing"
            monkeypatch.setenv("SSL_CERT_FILE", str(path))
            mail.send("a@example.com", "Hello", "text")
        assert len(box.taken) == 1
        wrong = url.replace("p%40ss", "other")
        with active(named(base, wrong)), pytest.raises(mail.MailError) as refused:
            mail.send("a@example.com", "Hello", "text")
        assert "other" not in str(refused.value)


def test_a_password_never_travels_in_plain_text_to_another_machine(base: Settings) -> None:
    with receiving(auth_require_tls=False) as box:
        port = box._server.port
        with active(named(base, f"smtp://user:secret@127.0.0.1:{port}")):
            box.accounts["user"] = "secret"
            mail.send("a@example.com", "Hello", "text")
        assert box.logins == ["user"]
        # `127.1` stands for another machine: it is none of the names that mean this one.
        with active(named(base, f"smtp://user:secret@127.1:{port}")), pytest.raises(mail.MailError, match="plain text"):
            mail.send("a@example.com", "Hello", "text")
        assert box.logins == ["user"]


def test_tls_from_the_start(base: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, path = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with receiving(ssl_context=context) as box, active(named(base, f"smtps://localhost:{box._server.port}")):
        mail.send("a@example.com", "Hello", "text")
        assert len(box.taken) == 1


def test_links_come_from_the_settings(base: Settings) -> None:
    with active(base):
        assert mail.link("/reset?token=x") == "https://portal.example.com/reset?token=x"
        assert not mail.configured()
    with active(base.model_copy(update={"public_url": None})):
        assert mail.link("/") == "http://127.0.0.1:5002/"


def test_after_the_commit_alone_and_beside_the_caller(box: Mailbox, settings: Settings) -> None:
    with active(box.settings(settings)):
        with pytest.raises(ZeroDivisionError):
            _send_and_fail()
        with tenancy.work(tenancy.system("health")) as db:
            mail.after_commit(db, "a@example.com", "Hello", "text")
            assert not box.taken
        box.wait("a@example.com")
    assert not box.to("never@example.com")


def _send_and_fail() -> None:
    with tenancy.work(tenancy.system("health")) as db:
        mail.after_commit(db, "never@example.com", "Hello", "text")
        raise ZeroDivisionError


def test_a_failure_beside_the_caller_is_counted_and_stops_nothing(box: Mailbox) -> None:
    box.refuse = "451 later"
    before = counted("failed")
    mail.soon(mail.send, "a@example.com", "Hello", "text")
    eventually(lambda: counted("failed") == before + 1)
    eventually(lambda: mail._slots._value == mail.AT_ONCE)


def test_mails_without_end_are_dropped_and_counted(base: Settings) -> None:
    gate, before = threading.Event(), counted("dropped")

    def hang() -> None:
        gate.wait(10)

    with active(base):
        for _ in range(mail.AT_ONCE + 1):
            mail.soon(hang)
        assert counted("dropped") == before + 1
        gate.set()
        eventually(lambda: mail._slots._value == mail.AT_ONCE)


def test_the_settings_are_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refusal(**values: str) -> str:
        with pytest.raises(config.SettingsError) as error:
            config.read(_env_file=None, data_dir=tmp_path, **values)
        return str(error.value)

    assert "smtp://user:password@host" in refusal(smtp_url="http://x", mail_from="a@example.com")
    assert "smtp://user:password@host" in refusal(smtp_url="smtp://", mail_from="a@example.com")
    assert "IIOT_SMTP_URL" in refusal(smtp_url="smtp://host:port", mail_from="a@example.com")
    assert "IIOT_MAIL_FROM is not set" in refusal(smtp_url="smtp://host")
    assert "IIOT_PUBLIC_URL is not set" in refusal(env="production", smtp_url="smtp://host", mail_from="a@example.com")
    assert config.read(_env_file=None, smtp_url="", mail_from="").smtp_url is None
    secret = tmp_path / "smtp"
    secret.write_text("smtp://user:hidden@host\n")
    monkeypatch.setenv("IIOT_SMTP_URL_FILE", str(secret))
    read = config.read(_env_file=None, data_dir=tmp_path, mail_from="a@example.com")
    assert read.smtp_url is not None
    assert read.smtp_url.get_secret_value() == "smtp://user:hidden@host"
    assert "hidden" not in repr(read)
