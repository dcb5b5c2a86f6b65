"""Libraries are loaded without what they would take along, and others still find it."""

import subprocess
import sys

import pytest

from tests.services import ROOT


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import iiot, structlog", "rich"),
        ("import protocols.mqtt", "dns"),
        ("import protocols.mqtt", "numpy"),
        ("import protocols.coap", "numpy"),
        ("import iiot.dynsec", "paho"),
    ],
)
def test_a_process_holds_no_library_that_it_does_not_use(code: str, absent: str) -> None:
    told = f"{code}\nimport sys\nprint({absent!r} in sys.modules)\nimport {absent}\nprint({absent!r} in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", told], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["False", "True"]
