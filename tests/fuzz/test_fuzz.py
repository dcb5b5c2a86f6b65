"""Every parser of strangers' bytes under atheris, IIOT_FUZZ_SECONDS each (60 in `make nightly`); a moment of each in every run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.seeds import SEEDS
from tests.fuzz.targets import TARGETS
from tests.poison.corpus import CORPUS
from tests.services import ROOT

SECONDS = int(os.environ.get("IIOT_FUZZ_SECONDS", "60"))


@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_takes_the_poison(name: str) -> None:
    """The corpus through every parser, also those it was not made for; and the seeds of its own."""
    for item in CORPUS:
        TARGETS[name](item.payload)
    for seed in SEEDS.get(name, []):
        # Whole, cut off anywhere, and with each bit of its beginning changed.
        for end in range(len(seed) + 1):
            TARGETS[name](seed[:end])
        for place in range(min(len(seed), 60) * 8):
            changed = bytearray(seed)
            changed[place // 8] ^= 1 << place % 8
            TARGETS[name](bytes(changed))


@pytest.mark.nightly
@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_takes_anything(name: str, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "tests.fuzz", name, str(SECONDS), str(tmp_path)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS + 100, check=False)
    said = (done.stdout + done.stderr)[-4000:]
    print(said)
    assert done.returncode == 0, [said, *(path.read_bytes()[:300] for path in tmp_path.glob("crash*"))]
