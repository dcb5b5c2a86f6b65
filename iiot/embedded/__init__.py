"""The embedded stack behind `python -m iiot up`: launchers for PostgreSQL, Valkey and the MQTT broker, and their supervisor."""


class EmbeddedError(Exception):
    """An embedded service cannot run; the text says why and what to do."""
