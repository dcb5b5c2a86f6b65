"""Documents say what the code does: generated pages are compared, links are followed, names are looked up."""

import importlib.util
import re
from types import ModuleType

import pytest

from iiot.config import PREFIX, Settings
from scripts import error_texts
from tests.architecture.source import ROOT, documents, files

LINK = re.compile(r"(?<!`)!?\[[^\]]*\]\(([^)\s]+)\)")
CODE_BLOCK = re.compile(r"```.*?```", re.DOTALL)


def _reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = _reference()


# --- the reference -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["settings.md", "scopes.md", "metrics.md", "commands.md", "errors.md", "access.md"])
def test_a_page_of_the_reference_says_what_the_code_says(name: str) -> None:
    page = reference.PAGES / name
    assert page.exists(), "run `make docs`"
    assert page.read_text() == reference.pages()[name], f"docs/reference/{name} is old: run `make docs`"


def test_every_setting_is_explained() -> None:
    page = (reference.PAGES / "settings.md").read_text()
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert f"`{PREFIX}{name.upper()}`" in page


def test_every_metric_is_explained_and_names_no_tenant() -> None:
    metrics = reference.metrics()
    assert len(metrics) > 20
    assert len({name for name, *_ in metrics}) == len(metrics), "a metric is defined once"
    for name, kind, labels, text in metrics:
        assert text.endswith("."), name
        assert not {"tenant", "tenant_id", "device", "uid", "user", "email"} & set(labels.split(", ")), name
        assert kind != "counter" or name.endswith("_total"), name


def test_every_code_of_an_error_is_explained() -> None:
    from iiot.web.problems import CODES

    known = error_texts.MORE_PROBLEMS | CODES
    assert reference.problem_codes().keys() <= known.keys()
    assert reference.refusal_codes() == error_texts.REFUSALS.keys()
    assert set(error_texts.MORE_PROBLEMS) - set(CODES) <= reference.problem_codes().keys(), "codes that nothing raises"


def test_every_command_is_explained() -> None:
    from iiot.cli import cli

    listed = list(reference.commands(cli, "python -m iiot"))
    assert len(listed) > 10
    for line, text in listed:
        assert text, line


# --- the rest ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", documents())
def test_links_lead_to_files_and_headings_that_exist(name: str) -> None:
    text = CODE_BLOCK.sub("", (ROOT / name).read_text())
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), f"{name} links to {target}"
        if anchor and file.suffix == ".md":
            assert anchor in _anchors(file.read_text()), f"{name} links to {target}"


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", documents())
def test_no_document_names_a_place_outside_the_repository(name: str) -> None:
    text = (ROOT / name).read_text()
    outside = re.findall(r"(?<![\w.:/}>\])*])/(?:home|root|tmp|work|Users|opt|mnt|usr|var|srv)/[\w./-]*", text)
    assert outside == []
    assert "../shared" not in text


@pytest.mark.parametrize("name", ["README.md", "CLAUDE.md", "CONTRIBUTING.md"])
def test_make_targets_and_commands_in_documents_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^ {4}|\$ )make ([a-z-]+)", text, re.MULTILINE))
    assert named
    assert named <= targets
    from iiot.cli import COMMANDS

    assert set(re.findall(r"python -m iiot ([a-z]+)", text)) <= set(COMMANDS)
    for module in re.findall(r"python -m ((?:bench|demo|protocols)[\w.]*)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


@pytest.mark.parametrize(
    "name", ["README.md", "CLAUDE.md", "CONTRIBUTING.md", "SECURITY.md", "docs/troubleshooting.md"]
)
def test_files_that_documents_name_exist(name: str) -> None:
    text = CODE_BLOCK.sub("", (ROOT / name).read_text())
    for path in re.findall(r"`((?:iiot|protocols|tests|bench|docs|config|migrations|scripts|demo)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), f"{name} names {path}"


def test_every_decision_is_numbered_and_has_its_four_parts() -> None:
    names = sorted(name for name in files() if name.startswith("docs/adr/"))
    assert [name.removeprefix("docs/adr/")[:4] for name in names] == [
        f"{number:04}" for number in range(1, len(names) + 1)
    ]
    for name in names:
        text = (ROOT / name).read_text()
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == [
            "Objective",
            "Decision",
            "Alternatives",
            "Consequences",
        ], name
        assert len(text.splitlines()) <= 60, f"{name}: one page"


def test_the_example_names_every_setting_that_production_requires() -> None:
    example = (ROOT / "config" / "iiot.example.env").read_text()
    for name in ("ENV", "DATABASE_URL", "REDIS_URL", "MQTT_URL", "SECRET_KEY", "ALLOWED_HOSTS", "PUBLIC_URL"):
        assert re.search(rf"^#?\s*IIOT_{name}(_FILE)?=", example, re.MULTILINE), name
    for name in re.findall(r"IIOT_([A-Z_]+?)(?:_FILE)?=", example):
        assert name.lower() in Settings.model_fields, name


def test_no_text_promises_what_is_not_there() -> None:
    for name in documents():
        text = (ROOT / name).read_text()
        for word in ("TODO", "FIXME", "TBD", "lorem ipsum"):
            assert word not in text, f"{name}: {word}"


def test_the_changelog_begins_with_the_version_that_runs() -> None:
    from iiot import __version__

    assert re.search(rf"^## {re.escape(__version__)}", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
