"""The list of devices, and adding one."""

from dataclasses import asdict, dataclass
from urllib.parse import urlencode

from flask import Response, make_response, render_template, request

from iiot import tenancy, web
from iiot.errors import Invalid, Problem
from iiot.models import Device
from iiot.portal import connect, forms
from iiot.services import children, devices, sites
from iiot.services.listing import Found, Wanted

pages = web.pages("devices")
PAGE_SIZE = 25
NEWEST_FIRST = "-created_at"


@dataclass(frozen=True)
class ListQuery:
    """What the address of the list says; unknown values are dropped, as people edit addresses by hand."""

    q: str | None = None
    status: str | None = None
    enabled: bool | None = None
    type: str | None = None
    tag: str | None = None
    site: str | None = None
    sort: str = NEWEST_FIRST
    cursor: str | None = None

    @property
    def is_narrowed(self) -> bool:
        """Whether the list may hide devices."""
        return any(
            value is not None
            for value in (self.q, self.status, self.enabled, self.type, self.tag, self.site, self.cursor)
        )

    def url(self, **changes: str | None) -> str:
        """The address of this list with some parameters changed; None removes one."""
        values = {
            name: value
            for name, value in (asdict(self) | changes).items()
            if value is not None and (name, value) != ("sort", NEWEST_FIRST)
        }
        texts = {name: str(value).lower() if isinstance(value, bool) else value for name, value in values.items()}
        return "/devices" + (f"?{urlencode(texts)}" if texts else "")


def read_query() -> ListQuery:
    """The list query in the address."""
    given = {name: value for name, value in request.args.items() if value and "\x00" not in value}
    return ListQuery(
        q=given.get("q", "").strip()[:200] or None,
        status=given["status"] if given.get("status") in ("new", "online", "offline") else None,
        enabled={"true": True, "false": False}.get(given.get("enabled", "")),
        type=given.get("type"),
        tag=given.get("tag"),
        site=given.get("site"),
        sort=given["sort"] if given.get("sort", "").removeprefix("-") in devices.SORTS else NEWEST_FIRST,
        cursor=given.get("cursor"),
    )


def find(ctx: web.Context, query: ListQuery) -> Found[Device]:
    """The page of devices that the query asks for; a cursor that does not fit begins anew."""
    try:
        position = web.decode_cursor(f"page:devices:{query.sort}", query.cursor)
    except Invalid:
        position = None
    filters = devices.Filters(
        q=query.q, type=query.type, status=query.status, tag=query.tag, enabled=query.enabled, site=query.site
    )
    with tenancy.work(ctx.scope) as db:
        return devices.search(db, filters, Wanted(query.sort, PAGE_SIZE, position))


def _values(ctx: web.Context) -> dict[str, object]:
    query = read_query()
    found = find(ctx, query)
    with tenancy.work(ctx.scope) as db:
        places = sites.choices(db)
        waiting = children.count_waiting(db)
    return {
        "waiting": waiting,
        "sites": places,
        "query": query,
        "found": found,
        "next_cursor": web.encode_cursor(f"page:devices:{query.sort}", found.next_position),
    }


@pages.route("GET", "/devices", permission="device:read")
def device_list(ctx: web.Context) -> str:
    """The list; htmx asks for the table alone."""
    ctx.headers["Vary"] = "HX-Request, Cookie"
    if request.headers.get("HX-Request-Type") == "partial":
        return render_template("_devices_table.html", **_values(ctx))
    return render_template("devices.html", add_open="add" in request.args, **_values(ctx))


@pages.route("POST", "/devices", permission="device:write")
def add_device(ctx: web.Context) -> Response:
    """Create a device and show how to connect it. The token is in this one answer and nowhere else."""
    form = forms.texts("name", "type", "external_id", "tags", "is_gateway", "site")
    is_gateway = form["is_gateway"] == "true"
    wanted = devices.NewDevice(
        form["name"],
        form["type"] or "default",
        form["external_id"] or None,
        is_gateway,
        tuple(forms.tags(form["tags"])),
        form["site"] or None,
    )
    try:
        with tenancy.work(ctx.scope) as db:
            device, token = devices.create(db, wanted)
    except Problem as problem:
        return forms.refused("devices.html", problem, form=form, add_open=True, **_values(ctx))
    return make_response(connect.page(ctx, device.uid, token=token), 201)
