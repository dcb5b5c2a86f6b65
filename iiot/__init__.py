"""The IIoT Portal: one multi-tenant place where devices report, are watched and are commanded."""

__version__ = "2.0.0b1"
