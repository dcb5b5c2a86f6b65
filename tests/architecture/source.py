"""The repository as text and syntax trees, for the tests that read it."""

import ast
import functools
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("iiot", "protocols")


@functools.cache
def files() -> tuple[str, ...]:
    """Every file that belongs to the repository, as paths relative to it; what git ignores is left out."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    names = (
        listed.stdout.split("\0")
        if listed.returncode == 0
        else [str(path.relative_to(ROOT)) for path in ROOT.rglob("*")]
    )
    skipped = (".venv", "node_modules", "var", ".git", "iiot/portal/static/vendor")
    return tuple(sorted(name for name in names if name and not name.startswith(skipped) and (ROOT / name).is_file()))


def python(*folders: str) -> list[str]:
    """The Python files below the folders; a file counts as a folder of itself."""
    return [
        name
        for name in files()
        if name.endswith(".py") and any(name == folder or name.startswith(f"{folder}/") for folder in folders)
    ]


@functools.cache
def tree(name: str) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse((ROOT / name).read_text(), name)


def documents() -> list[str]:
    """The Markdown files."""
    return [name for name in files() if name.endswith(".md")]


def called(node: ast.Call) -> str:
    """`connect` of `engine.connect(…)`."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
