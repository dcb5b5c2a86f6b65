"""Public identifiers and secrets."""

import base64
import secrets

UID_LENGTH = 26


def new_uid() -> str:
    """A random public identifier: 26 characters of `a-z2-7`, 130 bits, never reused, says nothing about its owner."""
    return base64.b32encode(secrets.token_bytes(17)).decode("ascii").lower()[:UID_LENGTH]


def new_token() -> str:
    """A random secret of 256 bits in URL-safe base64 without padding (43 characters)."""
    return secrets.token_urlsafe(32)


def is_uid(text: str) -> bool:
    """Whether `text` has the form of a public identifier; says nothing about its existence."""
    return len(text) == UID_LENGTH and all("a" <= c <= "z" or "2" <= c <= "7" for c in text)
