"""The benchmarks run to their end, with little work; what they measure here means nothing. Their goals are not tests."""

import json
import subprocess
import sys

import pytest

from tests.services import ROOT

SHORT = {
    "bench.ingest": ["--messages", "2000", "--runs", "1", "--devices", "20", "--seconds", "3"],
    "bench.protocols": ["--seconds", "1", "--runs", "1"],
}


@pytest.mark.nightly
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SHORT)
def test_a_benchmark_ends_with_its_figures(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", name, *SHORT[name]], cwd=ROOT, capture_output=True, text=True, timeout=500, check=False
    )
    # 1: it ran, and did not reach its goal.
    assert done.returncode in (0, 1), done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["figure"] > 0
    assert found["limit"] > 0
