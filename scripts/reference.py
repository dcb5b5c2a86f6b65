"""Writes docs/reference from the code: settings, scopes, metrics, commands, error codes, who may call which route.

    python scripts/reference.py            write the pages
    python scripts/reference.py --check    list pages that are not what the code says; exit status 1 when there are any

A test compares the pages with what this program would write, so a new setting, metric, command or code cannot go undocumented.
"""

import ast
import functools
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "reference"
GENERATED = "<!-- Written by scripts/reference.py from the code; change it there. -->"
KEBAB = re.compile(r"[a-z0-9]+(-[a-z0-9]+)+")
METRIC_KINDS = ("Counter", "Gauge", "Histogram", "Summary")

REFUSAL_FILES = (
    *(ROOT / "iiot/payloads").glob("*.py"),
    "iiot/services/ingest.py",
    "iiot/services/command_delivery.py",
    "protocols/translate.py",
    "protocols/runner.py",
    "protocols/halving.py",
    "protocols/gateways.py",
)


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def sources(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    """Every Python file below the folders, parsed; paths are relative to the repository."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "__pycache__" not in path.parts:
                yield path.relative_to(ROOT), _tree(path)


def _text(node: ast.AST | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _table(head: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    cells = [
        head,
        ("---",) * len(head),
        *[tuple(cell.replace("|", "\\|").replace("\n", " ") for cell in line) for line in lines],
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def settings_page() -> str:
    """Every field of `iiot.config.Settings`."""
    from iiot.config import PREFIX, Settings

    lines = []
    for name, field in Settings.model_fields.items():
        default: Any = field.get_default(call_default_factory=True)
        secret = hasattr(default, "get_secret_value")
        shown = (
            ""
            if default is None or secret or default == []
            else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        )
        lines.append((f"`{PREFIX}{name.upper()}`", shown, field.description or ""))
    return f"""# Settings
{GENERATED}

A setting comes from, in this order: an environment variable, the file named by `IIOT_<NAME>_FILE` (for secrets), `.env` in the
working folder, what an embedded stack left in its data dir, the default. Nothing set means: everything embedded.
`python -m iiot config check` lists every mistake at once; `python -m iiot config show` prints what is in force, secrets hidden.

`IIOT_ENV=production` refuses embedded services, missing or weak secrets, debug, an empty list of hosts, and plain-text
listeners off loopback. [config/iiot.example.env](../../config/iiot.example.env) holds what production needs.

{_table(("name", "default", "what it is"), lines)}
"""


def scopes_page() -> str:
    """Every reason for which the portal acts without a signed-in principal."""
    from iiot.tenancy import REASONS

    lines = [(f"`{reason}`", f"`iiot_{role}`", why) for reason, (role, why) in REASONS.items()]
    lines[[reason for reason, _, _ in lines].index("`migrate`")] = (
        "`migrate`",
        "the login of `IIOT_DATABASE_URL`",
        REASONS["migrate"][1],
    )
    return f"""# Scopes
{GENERATED}

Every database session belongs to a scope. A scope is made in three ways: from a signed-in principal, from an authenticated
device (both act as the PostgreSQL role `iiot_app`, limited by row-level security to their tenant), or by
`tenancy.system(reason)` for one of these reasons. Any other reason raises. See [ADR 2](../adr/0002-tenancy-door.md).

{_table(("reason", "PostgreSQL role", "why"), lines)}
"""


def metrics() -> list[tuple[str, str, str, str]]:
    """(name, kind, labels, help) of every metric that the code defines, by name."""
    found = []
    for _, tree in sources("iiot", "protocols"):
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and _called(node) in METRIC_KINDS
                and node.args
                and (_text(node.args[0]) or "").startswith("iiot_")
            ):
                given = next(
                    (item for item in (*node.args[2:3], *[k.value for k in node.keywords if k.arg == "labelnames"])),
                    None,
                )
                labels = [_text(item) or "" for item in given.elts] if isinstance(given, ast.List | ast.Tuple) else []
                found.append(
                    (_text(node.args[0]) or "", _called(node).lower(), ", ".join(labels), _text(node.args[1]) or "")
                )
    return sorted(found)


def metrics_page() -> str:
    """Every Prometheus metric."""
    lines = [(f"`{name}`", kind, labels, text) for name, kind, labels, text in metrics()]
    return f"""# Metrics
{GENERATED}

`GET /metrics` on `IIOT_METRICS_BIND` (loopback; never through the portal's own address) answers for all processes together.
No metric carries a tenant or a device.

{_table(("name", "kind", "labels", "what it counts"), lines)}
"""


def commands(group: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """(command line, first sentence of its help) of a click group, depth first."""
    import click

    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        arguments = [
            parameter.make_metavar(context) for parameter in command.params if isinstance(parameter, click.Argument)
        ]
        options = [
            max(parameter.opts, key=len)
            for parameter in command.params
            if isinstance(parameter, click.Option) and not parameter.hidden
        ]
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix} {name}")
        else:
            line = " ".join([prefix, name, *arguments, *[f"[{option}]" for option in options]])
            yield line, (command.help or "").strip().partition("\n\n")[0].replace("\n", " ")


def commands_page() -> str:
    """The make targets and every command of the two command lines."""
    targets = re.findall(r"^([a-z-]+):.*?## (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    iiot = importlib.import_module("iiot.cli").cli
    adapters = importlib.import_module("protocols.__main__").main
    tool = [(f"`{line}`", text) for line, text in commands(iiot, "python -m iiot")]
    protocol = [(f"`{line}`", text) for line, text in commands(adapters, "python -m protocols")]
    return f"""# Commands
{GENERATED}

Every command has `--help`. Exit status: 0 done, 1 failed, 2 wrong use.

## make

{_table(("target", "what it does"), [(f"`make {name}`", text) for name, text in targets])}

## python -m iiot

{_table(("command", "what it does"), tool)}

## python -m protocols

{_table(("command", "what it does"), protocol)}
"""


@functools.cache
def problem_codes() -> dict[str, set[int]]:
    """Code of every problem that the code raises → its statuses, as far as they stand in the source."""
    defaults = {"Forbidden": 403, "Conflict": 409}
    found: dict[str, set[int]] = {}
    for path, tree in sources("iiot"):
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            name, named = _called(node), {k.arg: k.value for k in node.keywords}
            if name == "Problem" or (path.name == "errors.py" and name == "__init__" and len(node.args) > 2):
                status, code = node.args[0], _text(node.args[1])
                known = status.value if isinstance(status, ast.Constant) else 0
            elif name in ("Forbidden", "Conflict"):
                code = _text(node.args[1] if len(node.args) > 1 else named.get("code"))
                known = defaults[name]
            else:
                continue
            if code:
                found.setdefault(code, set()).update({known} - {0})
    return found


# Which argument of a call is the code.
CODE_PLACES = {"PayloadError": 0, "Refusal": 0, "_reject": 0, "Rejected": 1}


def refusal_codes() -> set[str]:
    """Codes of refused messages and readings: words with hyphens that stand as literals in the modules that refuse, and what the calls name."""
    found = {
        text
        for name in REFUSAL_FILES
        for node in ast.walk(_tree(ROOT / name))
        if (text := _text(node)) and KEBAB.fullmatch(text)
    }
    called = {
        _text(node.args[place])
        for path in (*(ROOT / "protocols").glob("*.py"), *(ROOT / "iiot" / "payloads").glob("*.py"))
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Call) and (place := CODE_PLACES.get(_called(node), len(node.args))) < len(node.args)
    }
    return (found | {text for text in called if text}) - {"utf-8", "adapter-writer"}


def errors_page() -> str:
    """Codes of HTTP and Socket.IO problems, and of refused messages."""
    from iiot.web.problems import CODES
    from scripts.error_texts import MORE_PROBLEMS, REFUSALS

    raised = problem_codes()
    texts = MORE_PROBLEMS | CODES
    lines = [
        (f"`{code}`", ", ".join(str(status) for status in sorted(raised.get(code, set()))), texts.get(code, ""))
        for code in sorted(raised.keys() | CODES.keys())
    ]
    refused = [(f"`{code}`", REFUSALS.get(code, "")) for code in sorted(refusal_codes())]
    return f"""# Error codes
{GENERATED}

## Problems (HTTP and Socket.IO)

HTTP errors are `application/problem+json` (RFC 9457): `type` ends with the code, `detail` says what to do, `request_id` is in
the log. Socket.IO answers carry the code as `error`.

{_table(("code", "status", "meaning"), lines)}

## Refused messages and readings (every protocol)

What a device sent wrong is answered in its protocol, counted, and kept in `rejected_message` for the Rejected page. It is
never delivered again, and the next good message is stored.

{_table(("code", "meaning"), refused)}
"""


def access_page() -> str:
    """Every route with who may call it."""
    from iiot import auth
    from scripts import access

    def marks(*values: bool) -> tuple[str, ...]:
        return tuple("yes" if value else "" for value in values)

    roles = access.CALLERS[2:6]
    lines = [
        (
            f"`{method} {rule}`",
            access.needs(options),
            *marks(*[access.may_call(options, each) for each in access.CALLERS]),
        )
        for method, rule, options in access.routes(access.application())
    ]
    held = [
        (f"`{name}`", *marks(*[name in auth.PERMISSIONS[role] for role in roles]))
        for name in sorted(auth.ALL_PERMISSIONS)
    ]
    return f"""# Access
{GENERATED}

## Permissions of the built-in roles

A tenant makes further roles of the same permissions. An API key holds what its owner holds, or fewer. Members who are limited to some devices hold
none of what concerns the whole tenant: {", ".join(f"`{each}`" for each in sorted(auth.TENANT_WIDE))}.

{_table(("permission", *roles), held)}

## Routes

A test calls every route as each of these and compares. "Yes" lets the caller in; which devices, people and tenants are then found is decided by
row-level security, and what is not the caller's answers like what does not exist. A platform administrator here is no member of the tenant.

{_table(("route", "needs", *access.CALLERS), lines)}
"""


@functools.cache
def pages() -> dict[str, str]:
    """File name → content."""
    return {
        "settings.md": settings_page(),
        "scopes.md": scopes_page(),
        "metrics.md": metrics_page(),
        "commands.md": commands_page(),
        "errors.md": errors_page(),
        "access.md": access_page(),
    }


def main() -> int:
    """Write, or compare."""
    stale = {
        name: page
        for name, page in pages().items()
        if not (PAGES / name).exists() or (PAGES / name).read_text() != page
    }
    if "--check" in sys.argv:
        for name in stale:
            print(f"docs/reference/{name} is not what the code says; run `make docs`.")
        return 1 if stale else 0
    PAGES.mkdir(parents=True, exist_ok=True)
    for name, text in stale.items():
        (PAGES / name).write_text(text)
        print(f"wrote docs/reference/{name}")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
