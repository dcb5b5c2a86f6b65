"""The IIoT Portal: one multi-tenant place where devices report, are watched and are commanded."""

from iiot import lean

__version__ = "2.0.0b1"

# Its coloured tracebacks cost 5 MB in each of nine processes, whose logs are JSON.
lean.load("structlog", "rich")
