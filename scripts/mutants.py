"""Mutation test of the authorisation: breaks one thing at a time in the modules that decide who may do what, and asks the tests to notice.

    python scripts/mutants.py [--module iiot/auth.py]

The tests need real servers, so each module is tried against the few test files that concern it. Every mutant is one change of the
syntax tree: a comparison turned, `and` for `or`, a condition negated, a constant or an argument changed, a statement left out, a return emptied.
The last line is one JSON object with the score; exit status 1 below the limit.
"""

import argparse
import ast
import copy
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIMIT = 0.90
# Module → the functions and classes that decide (None: all of it), and the tests that run against each mutant, the fastest first.
TARGETS: dict[str, tuple[tuple[str, ...] | None, tuple[str, ...]]] = {
    "iiot/auth.py": (("Principal",), ("tests/unit/test_authorisation.py",)),
    "iiot/services/standing.py": (None, ("tests/api/test_standing.py",)),
    "iiot/services/roles.py": (None, ("tests/api/test_roles.py", "tests/api/test_standing.py")),
    "iiot/tenancy.py": (None, ("tests/unit/test_tenancy_scopes.py", "tests/integration/test_tenancy.py")),
}
SWAPS = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt, ast.And: ast.Or, ast.Or: ast.And, ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr, ast.Sub: ast.Add, ast.Add: ast.Sub,
}  # fmt: skip


def mutants(source: str, names: tuple[str, ...] | None) -> Iterator[tuple[int, str, str]]:
    """(line, what was changed, the whole module with it) for every mutant."""
    tree = ast.parse(source)
    for index, node in enumerate(ast.walk(tree)):
        for change in range(3):
            mutant = copy.deepcopy(tree)
            target = next(each for number, each in enumerate(ast.walk(mutant)) if number == index)
            if not _is_inside(tree, node, names):
                break
            what = _mutate(target, change)
            if what is None:
                break
            yield getattr(node, "lineno", 0), what, ast.unparse(ast.fix_missing_locations(mutant))


def _is_inside(tree: ast.Module, node: ast.AST, names: tuple[str, ...] | None) -> bool:
    """Whether the node is in a function of the module, or in one of the named definitions."""
    line = getattr(node, "lineno", None)
    if line is None:
        return False
    for top in tree.body:
        if isinstance(top, ast.FunctionDef | ast.ClassDef) and top.lineno <= line <= (top.end_lineno or 0):
            return names is None or top.name in names
    return False


def _mutate(node: ast.AST, change: int) -> str | None:  # noqa: PLR0911 - one per kind of mutant
    """Change the node in place; the description, or None when there is nothing (more) to change."""
    if change:
        return None
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        node.ops[0] = SWAPS[type(node.ops[0])]()
        return f"comparison → {type(node.ops[0]).__name__}"
    if isinstance(node, ast.BoolOp | ast.BinOp) and type(node.op) in SWAPS:
        node.op = SWAPS[type(node.op)]()
        return f"operator → {type(node.op).__name__}"
    if isinstance(node, ast.If | ast.IfExp):
        node.test = ast.UnaryOp(ast.Not(), node.test)
        return "condition negated"
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        node.op = ast.UAdd()
        node.operand = ast.Call(ast.Name("bool", ast.Load()), [node.operand], [])
        return "not left out"
    if isinstance(node, ast.Raise):
        node.exc, node.cause = ast.Call(ast.Name("RuntimeError", ast.Load()), [], []), None
        return "another exception"
    if isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        node.value = ast.Constant(None)
        return "returns None"
    if isinstance(node, ast.keyword) and not _is_none(node.value):
        node.value = ast.Constant(None)
        return f"argument {node.arg} → None"
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        node.value = not node.value
        return f"constant → {node.value}"
    return None


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def survives(path: Path, content: str, tests: tuple[str, ...]) -> bool:
    """Whether all tests still pass with this content of the module. The tree is never changed: a finder hands the mutant to Python instead."""
    with tempfile.TemporaryDirectory() as folder:
        mutant = Path(folder) / "mutant.py"
        mutant.write_text(content, encoding="utf-8")
        module = ".".join(path.with_suffix("").parts)
        hook = HOOK.format(module=module, path=str(mutant))
        (Path(folder) / "sitecustomize.py").write_text(hook, encoding="utf-8")
        options = ["-x", "-q", "--no-header", "-p", "no:cacheprovider", "--timeout", "120"]
        command = [sys.executable, "-m", "pytest", *options, *tests]
        environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"}
        try:
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=600, check=False)
        except subprocess.TimeoutExpired:
            # A mutant that never ends is noticed.
            return False
    return done.returncode == 0


HOOK = """
import importlib.util, sys
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return importlib.util.spec_from_file_location(name, {path!r}) if name == {module!r} else None
sys.meta_path.insert(0, Finder)
"""


def main() -> int:
    """Run all mutants, or those of one module."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--module", choices=sorted(TARGETS), action="append")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="mutants that are tried at once")
    arguments = parser.parse_args()
    killed = survived = 0
    for name in arguments.module or TARGETS:
        names, tests = TARGETS[name]
        source = (ROOT / name).read_text(encoding="utf-8")
        if not survives(Path(name), source, tests):
            print(f"{name}: the tests fail without any mutant", flush=True)
            return 1
        every = list(mutants(source, names))
        with ThreadPoolExecutor(arguments.jobs) as pool:
            alive = pool.map(lambda mutant: survives(Path(name), mutant[2], tests), every)  # noqa: B023 - used up at once
            for (line, what, _), is_alive in zip(every, alive, strict=True):
                killed, survived = killed + (not is_alive), survived + is_alive
                if is_alive:
                    print(f"survived  {name}:{line}  {what}: {source.splitlines()[line - 1].strip()[:120]}", flush=True)
                print(f"\r{killed + survived} mutants, {survived} survived", end="", file=sys.stderr, flush=True)
    score = killed / max(killed + survived, 1)
    result = {
        "bench": "mutants",
        "figure": round(score, 4),
        "unit": "killed",
        "limit": LIMIT,
        "killed": killed,
        "survived": survived,
    }
    print(json.dumps(result))
    return 0 if score >= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
