"""The IIoT Portal: one multi-tenant place where devices report, are watched and are commanded."""

import sys

__version__ = "2.0.0b1"


def _import_structlog() -> None:
    """structlog loads rich where it finds it, for coloured tracebacks: 10 MB in each of nine processes whose logs are JSON.

    `None` makes an import fail (docs.python.org, sys.modules), which structlog takes for "not installed".
    """
    if "rich" in sys.modules or "structlog" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        import structlog  # noqa: F401
    finally:
        del sys.modules["rich"]


_import_structlog()
