"""The server's certificate, and which clients' certificates are trusted.

    <folder>/own/        certificate.der and key.pem, made at the first start
    <folder>/trusted/    certificates of clients that may open a session, DER or PEM, one per file
    <folder>/rejected/   those that were refused, to be looked at and moved: `python -m iiot opcua trust`

A certificate is trusted when exactly it lies in `trusted`; issuers are not looked at (OPC UA Part 4 section 6.1.3 with the
trust list alone). The folders are read at every new session, so a change needs no restart.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import os
import socket
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protocols.base import AdapterError

# OPC UA Part 7, Basic256Sha256 and Aes256_Sha256_RsaPss.
SMALLEST_KEY: Final = 2048
LARGEST_KEY: Final = 4096
VALID_DAYS: Final = 5 * 365
RENEW_DAYS: Final = 30
# Strangers fill this folder: the oldest goes when there are more.
REJECTED_KEPT: Final = 100


def application_uri() -> str:
    """The name of this server, the same in its certificate and in its endpoints."""
    return f"urn:{socket.gethostname() or 'localhost'}:iiot-portal"


def thumbprint(der: bytes) -> str:
    """SHA-1 of a certificate in hexadecimal, by which OPC UA names certificates (Part 6 section 6.7.2.3)."""
    return hashlib.sha1(der, usedforsecurity=False).hexdigest()


class Keyring:
    """The folder of certificates. `certificate` and `key`: files of the operator that are used instead of `own/`."""

    def __init__(self, folder: Path, certificate: Path | None = None, key: Path | None = None) -> None:
        self.folder = folder
        self._certificate = certificate
        self._key = key

    def own(self, url: str) -> tuple[bytes, bytes]:
        """The server's certificate (DER) and key (PEM); made, or made anew before it expires. Raises AdapterError."""
        if self._certificate is not None and self._key is not None:
            try:
                loaded = _load(self._certificate.read_bytes())
                return loaded.public_bytes(serialization.Encoding.DER), self._key.read_bytes()
            except (OSError, ValueError) as error:
                raise AdapterError(f"IIOT_OPCUA_CERTIFICATE or IIOT_OPCUA_KEY cannot be read: {error}") from error
        for name in ("own", "trusted", "rejected"):
            (self.folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        certificate, key = self.folder / "own" / "certificate.der", self.folder / "own" / "key.pem"
        if not key.exists() or not certificate.exists() or _expires_soon(certificate.read_bytes()):
            made, secret = _make(url)
            _write(key, secret)
            _write(certificate, made)
        return certificate.read_bytes(), key.read_bytes()

    def is_trusted(self, der: bytes) -> bool:
        """Whether exactly this certificate lies in `trusted`."""
        for path in sorted(self._folder("trusted").iterdir()):
            try:
                if _load(path.read_bytes()).public_bytes(serialization.Encoding.DER) == der:
                    return True
            except (OSError, ValueError):
                continue
        return False

    def trust(self, der: bytes) -> Path:
        """Put a certificate into `trusted`."""
        path = self._folder("trusted") / f"{thumbprint(der)}.der"
        _write(path, der)
        (self.folder / "rejected" / path.name).unlink(missing_ok=True)
        return path

    def reject(self, der: bytes) -> Path:
        """Keep a certificate that was refused, so that somebody can look at it."""
        folder = self._folder("rejected")
        path = folder / f"{thumbprint(der)}.der"
        if not path.exists():
            _write(path, der)
            for old in sorted(folder.iterdir(), key=lambda each: each.stat().st_mtime)[:-REJECTED_KEPT]:
                old.unlink(missing_ok=True)
        return path

    def _folder(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder


def mistake(der: bytes) -> str | None:
    """Why a client's certificate cannot be used, whoever trusts it; None when it can."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        key = certificate.public_key()
    except ValueError:
        return "it is no certificate"
    if not isinstance(key, rsa.RSAPublicKey) or not SMALLEST_KEY <= key.key_size <= LARGEST_KEY:
        return f"its key is not RSA of {SMALLEST_KEY} to {LARGEST_KEY} bits"
    now = datetime.datetime.now(datetime.UTC)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        return "it is not valid at this time"
    return None


def _load(content: bytes) -> x509.Certificate:
    if content.startswith(b"-----"):
        return x509.load_pem_x509_certificate(content)
    return x509.load_der_x509_certificate(content)


def _write(path: Path, content: bytes) -> None:
    part = path.with_suffix(".part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
    part.replace(path)


def _expires_soon(der: bytes) -> bool:
    try:
        left = x509.load_der_x509_certificate(der).not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    except ValueError:
        return True
    return left < datetime.timedelta(days=RENEW_DAYS)


def _names(url: str) -> list[x509.GeneralName]:
    hosts = list(
        dict.fromkeys([urlsplit(url).hostname or "localhost", socket.gethostname() or "localhost", "localhost"])
    )
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(application_uri())]
    for host in [*hosts, "127.0.0.1"]:
        try:
            name: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            name = x509.DNSName(host)
        if name not in names:
            names.append(name)
    return names


def _make(url: str) -> tuple[bytes, bytes]:
    """A self-signed application instance certificate (OPC UA Part 6 section 6.2.2), DER, and its key, PEM."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=SMALLEST_KEY)
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, "IIoT Portal"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "IIoT Portal"),
        ]
    )
    now = datetime.datetime.now(datetime.UTC)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=True, key_encipherment=True, data_encipherment=True,
        key_agreement=False, key_cert_sign=True, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName(_names(url)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
    )
    certificate = builder.sign(key, hashes.SHA256())
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.DER), secret
