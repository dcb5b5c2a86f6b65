"""Adding an adapter takes one file, its settings and its heading: the example becomes the next one in a copy of the repository."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.source import files
from tests.services import ROOT

NAME = "spool"
FOLDERS = ("iiot/", "protocols/", "tests/", "migrations/", "scripts/", "docs/", "config/")


@pytest.fixture
def copy(folder: Path) -> Path:
    """The repository with one file more."""
    for name in files():
        if name.startswith(FOLDERS) or "/" not in name:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    shutil.copy(ROOT / "tests" / "examples" / f"{NAME}.py", folder / "protocols" / f"{NAME}.py")
    return folder


def run(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m <arguments>` in the copy, with nothing of this run."""
    env = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("IIOT_", "PYTEST_", "COV_", "PROMETHEUS_"))
    }
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=copy, env=env, capture_output=True, text=True, timeout=200, check=False
    )


@pytest.mark.timeout(240)
def test_an_adapter_is_one_file_and_one_heading(copy: Path) -> None:
    suite = ["pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-p", "no:randomly", "-k", NAME]
    forgotten = run(copy, *suite, "tests/architecture/test_adapters.py")
    assert f"docs/adapters.md has no heading for {NAME}" in forgotten.stdout
    with open(copy / "docs" / "adapters.md", "a") as page:
        page.write(f"\n## {NAME.title()}\n\nFiles in a folder.\n")
    assert f"{NAME}    Files" in run(copy, "protocols", "list").stdout
    passed = run(copy, *suite, "tests/architecture/test_adapters.py", "tests/integration/test_protocols.py")
    assert passed.returncode == 0, passed.stdout + passed.stderr
    assert re.search(r"^1[5-9] passed", passed.stdout, re.MULTILINE), passed.stdout
