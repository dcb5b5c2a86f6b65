"""What templates need: filters for numbers, moments and payloads, and addresses of static files that never go stale."""

import functools
import hashlib
import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from iiot import clock

STATIC = Path(__file__).parent / "static"
LONGEST_VALUE = 120
LONGEST_PAYLOAD = 8192


@functools.cache
def assets_version() -> str:
    """Twelve characters that change when any static file does; the address of every file carries them."""
    digest = hashlib.sha256()
    for path in sorted(STATIC.rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(STATIC).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def asset(name: str) -> str:
    """`"css/app.css"` → its address. Modules import each other by relative paths, so they share the version."""
    return f"/assets/{assets_version()}/{name}"


def grouped(number: int) -> str:
    """1234567 → `1,234,567`."""
    return f"{number:,}"


def utc(moment: datetime) -> str:
    """`2026-01-31 12:00:00 UTC`."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def reading(value: Any) -> str:
    """A reading for people: six significant digits, grouped; the same rules as values.js."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return _number(float(value))
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"


def _number(value: float) -> str:
    size = abs(value)
    if value.is_integer() and size < 1e15:
        return f"{value:,.0f}"
    if size < 1e-4 or size >= 1e9:
        return f"{value:.3e}"
    decimals = max(0, 5 - math.floor(math.log10(size)))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def json_text(value: Any) -> str:
    """JSON for people: indented, keys in their order."""
    return json.dumps(value, ensure_ascii=False, indent=2)


def payload(content: bytes) -> str:
    """A refused payload as text: UTF-8 where it is, anything that cannot be shown as `\\xNN`; cut at 8 KiB."""
    text = bytes(content[:LONGEST_PAYLOAD]).decode("utf-8", "backslashreplace")
    shown = "".join(each if each.isprintable() or each in "\n\t" else f"\\x{ord(each):02x}" for each in text)
    return shown + ("\n…" if len(content) > LONGEST_PAYLOAD else "")


def mark_part(text: str, part: str | None) -> Markup:
    """`text` escaped, with every `part` of it inside <mark>."""
    if not part:
        return escape(text)
    return Markup("<mark>{}</mark>").format(part).join(escape(piece) for piece in text.split(part))


FILTERS = {
    "grouped": grouped,
    "json_text": json_text,
    "mark_part": mark_part,
    "ms": clock.to_ms,
    "payload": payload,
    "reading": reading,
    "rfc3339": clock.rfc3339,
    "utc": utc,
}
