"""Protocol adapters: each brings messages of devices in, and answers out, over one protocol."""

# Before structlog, see there.
import iiot  # noqa: F401
