"""The look of a tenant: its logo, and shades of its colour that can be read by day and by night."""

import hashlib
from dataclasses import dataclass
from datetime import datetime

from flask import Response
from sqlalchemy import select

from iiot import auth, cache, tenancy, web
from iiot.errors import NotFound
from iiot.models import Tenant
from iiot.services import tenants

pages = web.pages("brand")
REMEMBER_SECONDS = 30.0
# The surfaces of app.css: text in the accent stands on them, and on a tint of itself.
LIGHT_SURFACE, DARK_SURFACE = (255, 255, 255), (32, 39, 44)
READABLE = 5.6
TINT = 0.14

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Brand:
    """What every page shows of its tenant. The versions change with the content, so that browsers may keep it."""

    colour_version: str | None
    logo_version: str | None
    status_reason: str
    delete_at: datetime | None


_known: cache.Memory[str, Brand] = cache.Memory(REMEMBER_SECONDS)


def of(principal: auth.Principal) -> Brand | None:
    """The brand of the reader's tenant, at most half a minute old; None for people without a tenant."""
    if principal.tenant_id is None or principal.tenant_uid is None:
        return None
    known = _known.get(principal.tenant_uid)
    if known is None:
        mark = _known.mark()
        with tenancy.work(tenancy.system("platform", principal.tenant_id)) as db:
            tenant = tenants.own(db)
            logo = db.scalar(select(Tenant.logo).where(Tenant.id == tenant.id))
        known = Brand(
            _version(tenant.uid, tenant.colour.encode() if tenant.colour else None),
            _version(tenant.uid, logo),
            tenant.status_reason,
            tenant.delete_at,
        )
        _known.put(principal.tenant_uid, known, mark)
    return known


def _version(uid: str, content: bytes | None) -> str | None:
    return None if content is None else hashlib.sha256(uid.encode() + content).hexdigest()[:12]


@pages.route("GET", "/tenant/brand.css", before_setup=True)
def brand_css(ctx: web.Context) -> Response:
    """The tenant's colours as a stylesheet: the pages allow no other way."""
    tenant = _tenant(ctx)
    return _kept(stylesheet(tenant.colour) if tenant.colour else "", "text/css; charset=utf-8")


@pages.route("GET", "/tenant/logo", before_setup=True)
def logo(ctx: web.Context) -> Response:
    """The tenant's logo."""
    tenant = _tenant(ctx)
    with tenancy.work(tenancy.system("platform", tenant.id)) as db:
        found = db.execute(select(Tenant.logo, Tenant.logo_type).where(Tenant.id == tenant.id)).one()
    if found.logo is None:
        raise NotFound("logo")
    return _kept(bytes(found.logo), found.logo_type)


def _tenant(ctx: web.Context) -> Tenant:
    if ctx.principal.tenant_id is None:
        raise NotFound("tenant")
    with tenancy.work(tenancy.system("platform", ctx.principal.tenant_id)) as db:
        return tenants.own(db)


def _kept(content: str | bytes, kind: str) -> Response:
    response = Response(content, content_type=kind)
    # The address carries the version, and another session may be of another tenant.
    response.headers["Cache-Control"] = "private, max-age=86400"
    response.headers["Vary"] = "Cookie"
    return response


# --- colours -----------------------------------------------------------------------------------------------------------------------------------


def stylesheet(colour: str) -> str:
    """Shades of `#rrggbb` for text on light and dark surfaces and for buttons with white text, each with a contrast of at least 4.5."""
    light, dark = shade(colour, LIGHT_SURFACE, (0, 0, 0)), shade(colour, DARK_SURFACE, (255, 255, 255))
    pressed = _hex(_mix(_parse(light), (0, 0, 0), 0.15))
    return (
        f":root {{ --tblr-primary: {light}; --accent: light-dark({light}, {dark}); --chart-1: light-dark({light}, {dark}); }}\n"
        f".btn-primary {{ --tblr-btn-bg: {light}; --tblr-btn-color: #fff; --tblr-btn-hover-bg: {pressed}; --tblr-btn-hover-color: #fff; }}\n"
    )


def shade(colour: str, surface: Colour, towards: Colour) -> str:
    """The colour, moved towards black or white until it can be read on the surface, and on the surface tinted with it."""
    start = _parse(colour)
    for step in range(101):
        mixed = _mix(start, towards, step / 100)
        if contrast(mixed, _mix(surface, mixed, TINT)) >= READABLE - 1 and contrast(mixed, surface) >= READABLE:
            return _hex(mixed)
    return _hex(towards)


def contrast(one: Colour, other: Colour) -> float:
    """The contrast of two colours, 1 to 21 (WCAG 2.2, relative luminance)."""
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: Colour) -> float:
    parts = [each / 255 for each in colour]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _parse(colour: str) -> Colour:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _mix(one: Colour, other: Colour, part: float) -> Colour:
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(one, other, strict=True))
    return red, green, blue
