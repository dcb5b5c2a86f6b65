"""`python -m iiot audit …`."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from iiot.commands.output import json_option, show

Heads = dict[int, tuple[int, str]]
PLATFORM = "platform"
_tenant = click.option("--tenant", "tenant_name", help="Id, slug or name of a tenant, or `platform`.")


@click.group()
def audit() -> None:
    """Read the audit trail and check that nobody changed it."""


@audit.command(name="list")
@_tenant
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 10_000), help="How many entries.")
@json_option
def list_entries(tenant_name: str | None, limit: int, as_json: bool) -> None:
    """List the newest entries of a tenant, or of the platform."""
    from iiot import tenancy
    from iiot.services import trail
    from iiot.services.listing import Wanted

    chain = _chain(tenant_name or PLATFORM)
    with tenancy.work(tenancy.system("operator")) as db:
        found = trail.search(db, chain, trail.Filters(), Wanted(trail.NEWEST_FIRST, limit))
    names = ("seq", "at", "actor", "address", "action", "object_kind", "object_id")
    rows = [trail.as_row(entry) for entry in found.items]
    show(rows if as_json else [{name: row[name] for name in names} for row in rows], as_json, "No entry yet.")


@audit.command()
@_tenant
@click.option("--format", "kind", type=click.Choice(["csv", "jsonl"]), default="csv", show_default=True)
def export(tenant_name: str | None, kind: str) -> None:
    """Write the whole trail of a tenant, or of the platform, to the standard output."""
    from iiot import tenancy
    from iiot.services import audit as trail_of_acts
    from iiot.services import trail

    chain, scope = _chain(tenant_name or PLATFORM), tenancy.system("operator")
    with tenancy.work(tenancy.system("operator", chain or None)) as db:
        trail_of_acts.record(db, "audit.export", ("audit", ""), after={"format": kind})
    found = trail.entries(scope, chain, trail.Filters())
    for line in trail.as_csv(found) if kind == "csv" else trail.as_json_lines(found):
        click.echo(line, nl=False)


@audit.command()
@_tenant
@click.option(
    "--heads", type=click.Path(dir_okay=False, path_type=Path), help="Compare with the heads in FILE, then write them."
)
@json_option
def verify(tenant_name: str | None, heads: Path | None, as_json: bool) -> None:
    """Compute every hash chain again and name each entry that was changed, removed or exchanged; exit status 1 when there is one.

    Who may change everything in the database can make a whole chain anew. Keep the heads elsewhere, on another machine: --heads FILE compares
    the chains with those of the last time, and writes the new ones when all is well.
    """
    from iiot import tenancy
    from iiot.services import chain as chains

    chain = None if tenant_name is None else _chain(tenant_name)
    kept = _read_heads(heads)
    with tenancy.work(tenancy.system("operator")) as db:
        names, total = _names(db)
        with click.progressbar(length=total, label="Entries", file=sys.stderr) as bar:
            verdict = chains.verify(db, chain=chain, against=kept, progress=bar.update)
    faults = [
        {"tenant": names.get(each.tenant_id, f"tenant {each.tenant_id}, removed"), "seq": each.seq, "fault": each.kind}
        | {"detail": each.detail}
        for each in verdict.faults
    ]
    if as_json:
        content = [
            {"tenant": names.get(one), "seq": seq, "hash": hashed} for one, (seq, hashed) in verdict.heads.items()
        ]
        click.echo(json.dumps({"entries": verdict.entries, "faults": faults, "heads": content}, indent=1))
    else:
        show(faults, False, f"{verdict.entries} entries in {len(verdict.heads)} chains: all as they were written.")
    if faults:
        sys.exit(1)
    if heads is not None:
        _write_heads(heads, (kept or {}) | verdict.heads)


def _chain(name: str) -> int:
    """The number of a tenant's chain, or the platform's."""
    from iiot.commands.lookup import operator_for
    from iiot.models import PLATFORM as PLATFORMS

    return PLATFORMS if name == PLATFORM else operator_for(name).tenant_id


def _names(db: Any) -> tuple[dict[int, str], int]:
    """Names of the chains, and about how many entries there are."""
    from sqlalchemy import func, select

    from iiot.models import PLATFORM as PLATFORMS
    from iiot.models import AuditHead, Tenant

    names = {row.id: row.slug for row in db.execute(select(Tenant.id, Tenant.slug))}
    return names | {PLATFORMS: PLATFORM}, int(db.scalar(select(func.sum(AuditHead.seq))) or 0)


def _read_heads(path: Path | None) -> Heads | None:
    if path is None or not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {int(tenant): (int(head["seq"]), str(head["hash"])) for tenant, head in content["heads"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise click.ClickException(f"{path} does not hold heads of the audit trail: {error!r}.") from None


def _write_heads(path: Path, heads: Heads) -> None:
    """In place of the old file at once, so that a full disk does not lose what was kept."""
    content = {str(tenant): {"seq": seq, "hash": hashed} for tenant, (seq, hashed) in sorted(heads.items())}
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps({"heads": content}, indent=1) + "\n", encoding="utf-8")
    new.replace(path)
