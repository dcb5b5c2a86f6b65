"""Sizes of modules and functions, and the layers. Exceptions are named with their reason; one that is not needed any more fails too."""

import ast

import pytest

from tests.architecture.source import python, tree

MODULE, FUNCTION, PARAMETERS = 400, 50, 6
CODE = python("iiot", "protocols", "bench", "scripts", "demo", "app_advanced.py", "config")
MIGRATION = "a migration is a list of what was made, and is never changed"
LONG_MODULES = {
    "migrations/versions/0001_first_schema.py": MIGRATION,
    "migrations/versions/0002_people_and_access.py": MIGRATION,
}
LONG_FUNCTIONS = {
    "migrations/versions/0001_first_schema.py:upgrade": MIGRATION,
    **{
        f"migrations/versions/0002_people_and_access.py:{name}": MIGRATION
        for name in ("_columns", "_people", "_secrets", "downgrade")
    },
}
MANY_PARAMETERS = {
    "iiot/errors.py:__init__": "the members of RFC 9457, all but three by keyword and optional",
    "protocols/base.py:__init__": "the fields of a message, with slots for speed",
}
SPOKEN = (
    "iiot/services",
    "iiot/tenancy.py",
    "iiot/db.py",
    "iiot/schema.py",
    "iiot/config.py",
    "iiot/payloads",
    "protocols/base.py",
)
BOILERPLATE = ("utils", "helpers", "common", "manager", "misc")


def _functions() -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    return [
        (name, node)
        for name in [*CODE, *python("migrations")]
        for node in ast.walk(tree(name))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def test_no_module_is_longer_than_its_budget() -> None:
    from tests.architecture.source import ROOT

    lengths = {name: len((ROOT / name).read_text().splitlines()) for name in [*CODE, *python("migrations")]}
    assert {name for name, length in lengths.items() if length > MODULE} == set(LONG_MODULES)


def test_no_function_is_longer_than_its_budget() -> None:
    long = {f"{name}:{node.name}" for name, node in _functions() if (node.end_lineno or 0) - node.lineno + 1 > FUNCTION}
    assert long == set(LONG_FUNCTIONS)


def test_no_function_has_too_many_parameters() -> None:
    many = set()
    for name, node in _functions():
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        if arguments and arguments[0].arg in ("self", "cls"):
            arguments = arguments[1:]
        # A command's parameters are its options; views get theirs from the route.
        decorated = " ".join(ast.unparse(item) for item in node.decorator_list)
        if (
            len(arguments) > PARAMETERS
            and "click." not in decorated
            and "_option" not in decorated
            and "command" not in decorated
        ):
            many.add(f"{name}:{node.name}")
    assert many == set(MANY_PARAMETERS)


@pytest.mark.parametrize("word", BOILERPLATE)
def test_no_module_has_a_name_that_says_nothing(word: str) -> None:
    assert [name for name in CODE if word in name.rpartition("/")[2]] == []


def test_every_public_function_says_what_it_does() -> None:
    """On the layers that others build on; a property or a click command counts as well."""
    silent = [
        f"{name}:{node.name}"
        for name in python(*SPOKEN)
        for node in tree(name).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
    ]
    assert silent == []


def test_every_module_says_what_it_is() -> None:
    assert [name for name in CODE if ast.get_docstring(tree(name)) is None and tree(name).body] == []


def test_the_layers_hold() -> None:
    """import-linter with the contracts of pyproject.toml: upper layers import lower ones, neighbours are strangers."""
    from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

    assert lint_imports(no_cache=True) == EXIT_STATUS_SUCCESS
