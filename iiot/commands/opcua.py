"""`python -m iiot opcua …`: which OPC UA clients the server trusts. The server looks at the folders at every new session."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from iiot.commands.output import json_option, show


@click.group()
def opcua() -> None:
    """Trust certificates of OPC UA clients, or no longer."""


@opcua.command(name="list")
@json_option
def list_certificates(as_json: bool) -> None:
    """List the certificates that are trusted, and those that were rejected."""
    rows = [_row(state, path) for state in ("trusted", "rejected") for path in _paths(state)]
    show(rows, as_json, "No client has come yet.")


@opcua.command()
@click.argument("what")
def trust(what: str) -> None:
    """Trust a client: WHAT is the thumbprint of a rejected certificate, or a file (DER or PEM)."""
    rejected = {path.stem: path for path in _paths("rejected")}
    source = rejected.get(what.lower(), Path(what))
    der = _der(source)
    thumbprint = _thumbprint(der)
    folder = _folder("trusted")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder / f"{thumbprint}.der").write_bytes(der)
    if thumbprint in rejected:
        rejected[thumbprint].unlink(missing_ok=True)
    click.echo(f"{thumbprint} is trusted.")


@opcua.command()
@click.argument("thumbprint")
def distrust(thumbprint: str) -> None:
    """Trust the certificate with this THUMBPRINT no longer; sessions that are open stay until they end."""
    for path in _paths("trusted"):
        if _row("trusted", path)["thumbprint"] == thumbprint.lower():
            path.unlink()
            click.echo(f"{thumbprint.lower()} is no longer trusted.")
            return
    raise click.ClickException(f"no trusted certificate has the thumbprint {thumbprint}")


def _folder(state: str) -> Path:
    from iiot import config

    return config.load().opcua_folder / state


def _paths(state: str) -> Iterator[Path]:
    folder = _folder(state)
    return iter(sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else ())


def _der(path: Path) -> bytes:
    """A certificate in DER, whatever form the file has."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        content = path.read_bytes()
        is_pem = content.startswith(b"-----")
        loaded = x509.load_pem_x509_certificate(content) if is_pem else x509.load_der_x509_certificate(content)
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{path} is neither a rejected thumbprint nor a certificate: {error}") from None
    return loaded.public_bytes(Encoding.DER)


def _thumbprint(der: bytes) -> str:
    import hashlib

    return hashlib.sha1(der, usedforsecurity=False).hexdigest()


def _row(state: str, path: Path) -> dict[str, Any]:
    from cryptography import x509

    try:
        der = _der(path)
    except click.ClickException:
        return {"state": "unreadable", "thumbprint": path.name, "subject": "", "until": None}
    loaded = x509.load_der_x509_certificate(der)
    return {
        "state": state,
        "thumbprint": _thumbprint(der),
        "subject": loaded.subject.rfc4514_string(),
        "until": loaded.not_valid_after_utc.date(),
    }
