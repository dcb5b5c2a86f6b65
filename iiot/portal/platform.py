"""The platform administrators' pages: tenants, their life and quotas, and plans."""

from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlencode

from flask import Response, make_response, redirect, render_template, request

from iiot import tenancy, web
from iiot.errors import Invalid, Problem
from iiot.models import Tenant
from iiot.portal import forms, usage
from iiot.services import invitations, plans, quotas, standing, tenants
from iiot.services import usage as use
from iiot.services.listing import Found, Wanted

pages = web.pages("platform")
PAGE_SIZE = 25
DONE = {
    "created": "The tenant is created. Invite its first admin below.",
    "invited": "The invitation is on its way by mail.",
    "suspended": "The tenant is suspended: its people can read, its devices are refused.",
    "active": "The tenant is active.",
    "deleting": "The tenant will be deleted in 30 days.",
    "quota": "The quota is saved.",
    "plan": "The plan is saved.",
    "plan-deleted": "The plan is deleted.",
}
STATES = ("active", "suspended", "deleting")


@dataclass(frozen=True)
class TenantQuery:
    """What the address of the list says; unknown values are dropped, as people edit addresses by hand."""

    q: str | None = None
    status: str | None = None
    cursor: str | None = None

    def url(self, **changes: str | None) -> str:
        """The address of this list with some parameters changed; None removes one."""
        values = {name: value for name, value in (asdict(self) | changes).items() if value is not None}
        return "/platform/tenants" + (f"?{urlencode(values)}" if values else "")


def _query() -> TenantQuery:
    given = {name: value for name, value in request.args.items() if value and "\x00" not in value}
    status = given.get("status")
    return TenantQuery(
        given.get("q", "").strip()[:200] or None, status if status in STATES else None, given.get("cursor")
    )


def _found(ctx: web.Context, query: TenantQuery) -> Found[Tenant]:
    try:
        position = web.decode_cursor("page:tenants", query.cursor)
    except Invalid:
        position = None
    filters = tenants.Filters(query.q, query.status)
    with tenancy.work(tenancy.system("platform")) as db:
        return tenants.visible(db, ctx.principal, Wanted("name", PAGE_SIZE, position), filters)


def _list_values(ctx: web.Context) -> dict[str, Any]:
    query = _query()
    found = _found(ctx, query)
    with tenancy.work(tenancy.system("platform")) as db:
        known = plans.every(db)
    following = web.encode_cursor("page:tenants", found.next_position)
    zones = sorted(tenants.timezones())
    return {"query": query, "found": found, "next_cursor": following, "plans": known, "timezones": zones}


@pages.route("GET", "/platform/tenants", platform=True)
def tenant_list(ctx: web.Context) -> str:
    """All tenants."""
    return render_template("platform_tenants.html", message=DONE.get(request.args.get("done", "")), **_list_values(ctx))


@pages.route("POST", "/platform/tenants", platform=True)
def create_tenant(ctx: web.Context) -> Response:
    """Create a tenant."""
    form = forms.texts("name", "timezone", "plan")
    try:
        with tenancy.work(tenancy.system("platform")) as db:
            plan = plans.named(db, form["plan"]) if form["plan"] else None
            made = tenants.create(db, form["name"], form["timezone"] or "UTC", plan)
    except Problem as problem:
        return forms.refused("platform_tenants.html", problem, form=form, add_open=True, **_list_values(ctx))
    return make_response(redirect(f"/platform/tenants/{made.uid}?done=created", 303))


# --- one tenant --------------------------------------------------------------------------------------------------------------------------------


def _scope(tenant_uid: str) -> tenancy.Scope:
    """The scope to manage a tenant in; raises NotFound."""
    with tenancy.work(tenancy.system("platform")) as db:
        return tenancy.system("platform", tenants.by_uid(db, tenant_uid).id)


def _tenant_values(ctx: web.Context, tenant_uid: str) -> dict[str, Any]:
    with tenancy.work(tenancy.system("platform")) as db:
        tenant, known = tenants.by_uid(db, tenant_uid), plans.every(db)
    with tenancy.work(tenancy.of(standing.enter(ctx.principal, tenant_uid))) as db:
        report = use.report(db)
    limits = {name: str(each.limit) for name, each in report.items()}
    form = {"email": "", "reason": "", "confirm": "", "plan": tenant.plan.uid if tenant.plan else "", **limits}
    return {"tenant": tenant, "plans": known, "lines": usage.lines(report), "form": form}


@pages.route("GET", "/platform/tenants/<tenant_id>", platform=True)
def tenant_page(ctx: web.Context, tenant_id: str) -> str:
    """One tenant: its state, its quota, and what can be done with it."""
    message = DONE.get(request.args.get("done", ""))
    return render_template("platform_tenant.html", message=message, **_tenant_values(ctx, tenant_id))


def _tenant_refused(ctx: web.Context, tenant_uid: str, problem: Problem, form: dict[str, str]) -> Response:
    values = _tenant_values(ctx, tenant_uid)
    values["form"] |= form
    return forms.refused("platform_tenant.html", problem, **values)


def _tenant_done(tenant_uid: str, what: str) -> Response:
    return make_response(redirect(f"/platform/tenants/{tenant_uid}?done={what}", 303))


@pages.route("POST", "/platform/tenants/<tenant_id>/status", platform=True)
def set_status(ctx: web.Context, tenant_id: str) -> Response:
    """Suspend with a reason, lift a suspension, or restore."""
    form = forms.texts("status", "reason")
    status = "suspended" if form["status"] == "suspended" else "active"
    try:
        with tenancy.work(_scope(tenant_id)) as db:
            tenants.set_status(db, status, form["reason"], ctx.principal)
    except Problem as problem:
        if problem.status == 404:
            raise
        return _tenant_refused(ctx, tenant_id, problem, {"reason": form["reason"]})
    return _tenant_done(tenant_id, status)


@pages.route("POST", "/platform/tenants/<tenant_id>/invitations", platform=True)
def invite_admin(ctx: web.Context, tenant_id: str) -> Response:
    """Invite an admin of the tenant; the link is shown once where no mail is sent."""
    form = forms.texts("email")
    inside = standing.enter(ctx.principal, tenant_id)
    try:
        web.spend("invite", tenant_id)
        address = forms.email(form["email"])
        with tenancy.work(tenancy.of(inside)) as db:
            made = invitations.create(db, inside, address, "admin")
    except Problem as problem:
        return _tenant_refused(ctx, tenant_id, problem, form)
    if made.link is None:
        return _tenant_done(tenant_id, "invited")
    values = _tenant_values(ctx, tenant_id)
    return make_response(render_template("platform_tenant.html", invited=made, **values), 201)


@pages.route("POST", "/platform/tenants/<tenant_id>/delete", platform=True)
def delete_tenant(ctx: web.Context, tenant_id: str) -> Response:
    """Delete a tenant in 30 days, after its name was typed."""
    confirm = request.form.get("confirm", "").strip()
    try:
        with tenancy.work(_scope(tenant_id)) as db:
            if confirm != tenants.own(db).name:
                raise Invalid(
                    "The tenant was not deleted.",
                    [{"loc": ["body", "confirm"], "msg": "this is not the tenant's name"}],
                )
            tenants.start_deletion(db)
    except Invalid as problem:
        return _tenant_refused(ctx, tenant_id, problem, {"confirm": confirm})
    return _tenant_done(tenant_id, "deleting")


def _limits(form: dict[str, str]) -> dict[str, int]:
    """The limits of a form; an empty field is left out. Raises Invalid."""
    found = {}
    for name in quotas.NAMES:
        text = form[name].replace(",", "").replace(" ", "")
        if not text:
            continue
        largest = 2**53 if name.endswith("_per_day") else 2**31 - 1
        if not text.isascii() or not text.isdigit() or int(text[:20]) > largest:
            message = f"a whole number from 0 to {largest:,}"
            raise Invalid("The limits are not valid.", [{"loc": ["body", name], "msg": message}])
        found[name] = int(text)
    return found


@pages.route("POST", "/platform/tenants/<tenant_id>/quota", platform=True)
def set_quota(ctx: web.Context, tenant_id: str) -> Response:
    """Save the limits, or give the tenant a plan."""
    form = forms.texts("plan", *quotas.NAMES)
    try:
        with tenancy.work(_scope(tenant_id)) as db:
            if request.form.get("give") == "plan":
                tenants.set_limits(db, {}, form["plan"])
            else:
                tenants.set_limits(db, _limits(form))
    except Invalid as problem:
        return _tenant_refused(ctx, tenant_id, problem, form)
    return _tenant_done(tenant_id, "quota")


# --- plans -------------------------------------------------------------------------------------------------------------------------------------


def _plan_values(uid: str | None = None) -> dict[str, Any]:
    """The page of all plans, with the form filled from one of them or empty."""
    with tenancy.work(tenancy.system("platform")) as db:
        known = plans.every(db)
        chosen = plans.get(db, uid) if uid else None
    limits = {name: str(value) for name, value in plans.limits_of(chosen).items()} if chosen else {}
    form = {"name": chosen.name if chosen else "", **(limits or dict.fromkeys(quotas.NAMES, ""))}
    words = {name: words[0].removesuffix(" today").removesuffix(" now") for name, words in usage.WORDS.items()}
    return {"plans": known, "chosen": chosen, "form": form, "words": words}


@pages.route("GET", "/platform/plans", platform=True)
def plan_list(_ctx: web.Context) -> str:
    """All plans, and a form for a new one."""
    return render_template("platform_plans.html", message=DONE.get(request.args.get("done", "")), **_plan_values())


@pages.route("GET", "/platform/plans/<plan_id>", platform=True)
def plan_page(_ctx: web.Context, plan_id: str) -> str:
    """All plans, and one of them to be changed."""
    return render_template("platform_plans.html", **_plan_values(plan_id))


@pages.route("POST", "/platform/plans", platform=True)
def create_plan(_ctx: web.Context) -> Response:
    """Create a plan."""
    return _save(None)


@pages.route("POST", "/platform/plans/<plan_id>", platform=True)
def change_plan(_ctx: web.Context, plan_id: str) -> Response:
    """Change a plan."""
    return _save(plan_id)


def _save(uid: str | None) -> Response:
    form = forms.texts("name", *quotas.NAMES)
    values = _plan_values(uid)
    try:
        with tenancy.work(tenancy.system("platform")) as db:
            if uid is None:
                plans.create(db, form["name"], _limits(form))
            else:
                plans.change(db, uid, form["name"], _limits(form))
    except Problem as problem:
        values["form"] |= form
        if problem.code == "name-taken":
            problem = Invalid(problem.detail, [{"loc": ["body", "name"], "msg": problem.detail}])
        return forms.refused("platform_plans.html", problem, **values)
    return make_response(redirect("/platform/plans?done=plan", 303))


@pages.route("POST", "/platform/plans/<plan_id>/delete", platform=True)
def delete_plan(_ctx: web.Context, plan_id: str) -> Response:
    """Delete a plan; tenants that have it keep their limits."""
    with tenancy.work(tenancy.system("platform")) as db:
        plans.remove(db, plan_id)
    return make_response(redirect("/platform/plans?done=plan-deleted", 303))
