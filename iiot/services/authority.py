"""The portal's own certificate authorities, one per installation: `device` signs the certificates of devices, `server` that of the embedded broker.

Two, so that a device trusts the broker's certificate without trusting other devices, and the broker the other way round. Their keys lie in
`IIOT_PKI_DIR` as PKCS #8, encrypted under a key derived from the secret key; they are made at first use. Profile: RFC 5280; P-256 and SHA-256.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from iiot import clock, config
from iiot.errors import Invalid, Problem

Name = Literal["device", "server"]
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey

AUTHORITY_DAYS: Final = 7300
SERVER_DAYS: Final = 1825
# The broker's certificate is made anew at a start when it has less than this.
SERVER_LEFT: Final = timedelta(days=90)
# Clocks of devices differ from ours.
BACKDATED: Final = timedelta(minutes=10)
LIST_DAYS: Final = 90
LONGEST_REQUEST: Final = 16_384
RSA_BITS: Final = (2048, 8192)
TITLES: Final[Mapping[Name, str]] = {"device": "IIoT Portal device CA", "server": "IIoT Portal server CA"}


@dataclass(frozen=True)
class Authority:
    """A key and its own certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> str:
        """The certificate, for those who are to trust it."""
        return pem(self.certificate)


def pem(item: x509.Certificate | x509.CertificateRevocationList) -> str:
    """As text."""
    return item.public_bytes(serialization.Encoding.PEM).decode("ascii")


def key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    """A private key as text, PKCS #8 without encryption: to be shown once, or for a server."""
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode("ascii")


def new_key() -> ec.EllipticCurvePrivateKey:
    """A key on the curve P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def read_request(text: str) -> PublicKey:
    """The public key of a certificate request (PKCS #10, RFC 2986) whose signature proves that the sender has the private one. Raises Invalid."""
    if len(text) > LONGEST_REQUEST:
        raise _wrong(f"at most {LONGEST_REQUEST} characters")
    try:
        request = x509.load_pem_x509_csr(text.encode())
        key = request.public_key()
    except (ValueError, TypeError, UnicodeError, x509.InvalidVersion, NotImplementedError) as error:
        raise _wrong("not a certificate request in PEM; make one with: openssl req -new") from error
    except Exception as error:
        # cryptography names unknown curves and algorithms by exceptions of its own.
        raise _wrong("a key of a kind that is not supported; take P-256, Ed25519 or RSA") from error
    if isinstance(key, rsa.RSAPublicKey):
        if not RSA_BITS[0] <= key.key_size <= RSA_BITS[1]:
            raise _wrong(f"an RSA key has {RSA_BITS[0]} to {RSA_BITS[1]} bits")
    elif not isinstance(key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey) or _is_weak(key):
        raise _wrong("a key of a kind that is not supported; take P-256, Ed25519 or RSA")
    if not _proves_its_key(request):
        raise _wrong("its signature does not fit its key")
    return key


def _is_weak(key: PublicKey) -> bool:
    return isinstance(key, ec.EllipticCurvePublicKey) and key.curve.key_size < 256


def _proves_its_key(request: x509.CertificateSigningRequest) -> bool:
    try:
        return request.is_signature_valid
    except Exception:
        return False


def _wrong(message: str) -> Invalid:
    return Invalid("The certificate request is not valid.", [{"loc": ["body", "csr"], "msg": message}])


def ours() -> Pki:
    """The authorities of this installation, by the settings."""
    settings = config.load()
    return Pki(settings.pki_folder, settings.derived_key("authority"))


class Pki:
    """The folder with keys and certificates. Processes that meet there wait for each other."""

    def __init__(self, folder: Path, passphrase: bytes) -> None:
        self.folder = folder
        self._passphrase = passphrase.hex().encode()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time."""
        self.folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        with open(self.folder / "lock", "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def path(self, name: Name) -> Path:
        """The file of an authority's certificate."""
        return self.folder / f"{name}-ca.crt"

    def authority(self, name: Name) -> Authority:
        """An authority, made at first use. Raises Problem when the secret key is not the one that its key was encrypted under."""
        if not self.path(name).exists():
            with self.locked():
                if not self.path(name).exists():
                    self._make(name)
        certificate = x509.load_pem_x509_certificate(self.path(name).read_bytes())
        try:
            key = serialization.load_pem_private_key((self.folder / f"{name}-ca.key").read_bytes(), self._passphrase)
        except (OSError, ValueError, TypeError) as error:
            raise Problem(
                500,
                "internal",
                "The key of the certificate authority cannot be read: it is missing, or the portal's secret key has changed. Ask the operator.",
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise Problem(500, "internal", "The key of the certificate authority is of another kind. Ask the operator.")
        return Authority(key, certificate)

    def _make(self, name: Name) -> None:
        key = new_key()
        title = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, TITLES[name])])
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = _builder(title, title, key.public_key(), clock.now() + timedelta(days=AUTHORITY_DAYS))
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        sealed = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(self._passphrase),
        )
        write(self.folder / f"{name}-ca.key", sealed.decode("ascii"), 0o600)
        # The certificate comes last: where it is, the key is, too.
        write(self.path(name), pem(certificate), 0o644)

    def issue(self, device_uid: str, certificate_uid: str, key: PublicKey, expires_at: datetime) -> x509.Certificate:
        """A certificate by which a device logs in at the broker: its subject names the device and the certificate itself (`broker.certificate_user`)."""
        authority = self.authority("device")
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.SERIAL_NUMBER, certificate_uid),
                x509.NameAttribute(NameOID.COMMON_NAME, device_uid),
            ]
        )
        builder = _builder(subject, authority.certificate.subject, key, expires_at)
        return _leaf(builder, authority, ExtendedKeyUsageOID.CLIENT_AUTH)

    def server_files(self, names: Iterable[str]) -> dict[str, str]:
        """`server.crt` and `server.key` for a server that is reached by these names and addresses; made anew when the names change or it ends soon."""
        wanted = sorted(set(names))
        authority = self.authority("server")
        with self.locked():
            files = {name: self.folder / name for name in ("server.crt", "server.key")}
            if not all(file.exists() for file in files.values()) or not self._serves(files["server.crt"], wanted):
                key = new_key()
                subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "IIoT Portal")])
                until = clock.now() + timedelta(days=SERVER_DAYS)
                builder = _builder(subject, authority.certificate.subject, key.public_key(), until)
                builder = builder.add_extension(x509.SubjectAlternativeName([_general(name) for name in wanted]), False)
                certificate = _leaf(builder, authority, ExtendedKeyUsageOID.SERVER_AUTH)
                write(files["server.key"], key_pem(key), 0o600)
                write(files["server.crt"], pem(certificate), 0o644)
            return {name: file.read_text() for name, file in files.items()}

    def _serves(self, file: Path, wanted: list[str]) -> bool:
        certificate = x509.load_pem_x509_certificate(file.read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        ours = certificate.issuer == self.authority("server").certificate.subject
        fits = sorted(str(each.value) for each in names) == wanted
        return ours and fits and certificate.not_valid_after_utc > clock.now() + SERVER_LEFT

    def revocation_list(self, revoked: Mapping[int, datetime]) -> str:
        """A list of revoked certificates (RFC 5280 section 5): serial number → when."""
        authority, now = self.authority("device"), clock.now()
        builder = x509.CertificateRevocationListBuilder().issuer_name(authority.certificate.subject)
        builder = builder.last_update(now - timedelta(seconds=1)).next_update(now + timedelta(days=LIST_DAYS))
        for serial, at in revoked.items():
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at)
            builder = builder.add_revoked_certificate(entry.build())
        return pem(builder.sign(authority.key, hashes.SHA256()))


def _builder(subject: x509.Name, issuer: x509.Name, key: PublicKey, until: datetime) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(clock.now() - BACKDATED).not_valid_after(until)


def _leaf(builder: x509.CertificateBuilder, authority: Authority, purpose: x509.ObjectIdentifier) -> x509.Certificate:
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(signer, critical=False)
        .sign(authority.key, hashes.SHA256())
    )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def write(path: Path, text: str, mode: int) -> None:
    """Write a file whole or not at all."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
