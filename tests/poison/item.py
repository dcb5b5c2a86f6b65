"""What a message of the corpus is."""

from collections.abc import Iterator
from typing import NamedTuple

KIB256 = 256 * 1024
CBOR, SENML, SENML_CBOR = "application/cbor", "application/senml+json", "application/senml+cbor"


class Item(NamedTuple):
    """One message and what becomes of it."""

    name: str
    payload: bytes
    content_type: str | None
    code: str | None
    key: str | None = None


def group(code: str | None, content_type: str | None, payloads: dict[str, bytes | str]) -> Iterator[Item]:
    """Messages of one content type that are all refused with one code: name → payload."""
    for name, payload in payloads.items():
        yield Item(name, payload.encode() if isinstance(payload, str) else payload, content_type, code)
