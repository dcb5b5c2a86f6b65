"""Every adapter has its heading in the documents, knows its library and protocols.base alone, and offers the contract."""

import ast
import re

import pytest

from protocols.__main__ import adapter, names
from tests.architecture.source import ROOT, python, tree

# What an adapter must not know: the product, the database, the web, and the doors between them and the runner.
FOREIGN = ("iiot", "sqlalchemy", "psycopg2", "flask", "sklearn")
# The modules of the package that are contracts or tools, and that adapters share.
SHARED = ("base", "served", "buckets")


def test_the_package_is_looked_into() -> None:
    assert {"coap", "mqtt"} <= set(names())


@pytest.mark.parametrize("name", names())
def test_an_adapter_offers_the_contract(name: str) -> None:
    module = adapter(name)
    assert name == module.NAME
    assert 10 < len(module.DESCRIPTION) < 100
    [made] = [
        node.returns
        for node in tree(f"protocols/{name}.py").body
        if isinstance(node, ast.FunctionDef) and node.name == "make"
    ]
    assert made is not None
    methods = vars(module)[ast.unparse(made).strip("'\"")].__dict__
    for method in ("check", "run", "send"):
        assert methods[method].__doc__, f"{name}.{method}"


@pytest.mark.parametrize("name", names())
def test_an_adapter_has_its_heading_in_the_documents(name: str) -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "docs" / "adapters.md").read_text(), re.MULTILINE)
    assert name in [re.sub(r"\W", "", heading.lower()) for heading in headings], (
        f"docs/adapters.md has no heading for {name}"
    )


@pytest.mark.parametrize("name", names())
def test_an_adapter_knows_its_library_and_the_contract_alone(name: str) -> None:
    """So do the modules that belong to it: `<name>_….py`."""
    own = [path for path in python("protocols") if re.fullmatch(rf"protocols/{name}(_\w+)?\.py", path)]
    allowed = {path.removeprefix("protocols/").removesuffix(".py") for path in own} | set(SHARED)
    for path in own:
        for module in _imported(path):
            top, _, rest = module.partition(".")
            assert top not in FOREIGN, f"{path} imports {module}"
            assert top != "protocols" or rest.partition(".")[0] in allowed, f"{path} imports {module}"


def _imported(path: str) -> list[str]:
    found = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found
