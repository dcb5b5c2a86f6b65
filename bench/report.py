"""What every bench prints: a progress line while it runs, a table, and as the last line one JSON object."""

import json
import sys
from typing import Any


def progress(text: str) -> None:
    """Say what is being measured; overwritten on a terminal, a line of its own elsewhere."""
    end = "\r" if sys.stderr.isatty() else "\n"
    print(f"… {text:<60}", end=end, file=sys.stderr, flush=True)


def row(name: str, **figures: Any) -> None:
    """A line of the table."""
    cells = "  ".join(f"{key} {_short(value)}" for key, value in figures.items())
    print(f"{name:<16} {cells}", flush=True)


def final(bench: str, figure: float, unit: str, limit: float, **more: Any) -> None:
    """The last line. `limit`: what was possible in the same run; `ratio`: figure / limit."""
    ratio = round(figure / limit, 3) if limit else None
    print(
        json.dumps({"bench": bench, "figure": figure, "unit": unit, "limit": limit, "ratio": ratio, **more}), flush=True
    )


def _short(value: Any) -> str:
    return (
        f"{value:,.2f}".rstrip("0").rstrip(".")
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else str(value)
    )
