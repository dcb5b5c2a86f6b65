"""The pages of a tenant's settings and use, and of the platform: what they refuse, and what a picture becomes."""

import io
import re
from typing import Any

import pytest
from PIL import Image

from iiot import clock
from iiot.portal import brand, usage
from iiot.services import logos
from iiot.services.usage import Day, Use
from tests import factories
from tests.api.conftest import Browse, Make, Person, post


def column(tenant: factories.TenantRow, name: str) -> Any:
    return factories.rows(f"SELECT {name} FROM iiot.tenant WHERE id = %s", tenant.tenant_id)[0][0]


def picture(kind: str, size: tuple[int, int] = (900, 300), **options: Any) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(made, kind, **options)
    return made.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_logo_is_made_small_and_encoded_anew(kind: str) -> None:
    made = logos.normalised(picture(kind))
    with Image.open(io.BytesIO(made)) as small:
        assert (small.format, small.size) == ("PNG", (256, 85))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        b"GIF89a" + b"\0" * 50,
        picture("GIF"),
        picture("PNG")[:200],
        picture("PNG", (5000, 10)),
        picture("BMP", (20, 20)),
        b"\x89PNG\r\n\x1a\n" + b"\0" * logos.MAX_BYTES,
    ],
)
def test_anything_else_is_no_logo(content: bytes) -> None:
    with pytest.raises(logos.Invalid) as refused:
        logos.normalised(content)
    assert refused.value.errors is not None
    assert refused.value.errors[0]["loc"] == ["body", "logo"]


def test_what_a_picture_carries_along_is_dropped() -> None:
    exif = Image.Exif()
    exif[0x010E] = "canary-of-the-camera"
    assert b"canary-of-the-camera" in picture("JPEG", exif=exif)
    assert b"canary-of-the-camera" not in logos.normalised(picture("JPEG", exif=exif))


def test_a_logo_is_uploaded_shown_and_removed(admin: Person, browse: Browse) -> None:
    browser = browse(admin)
    assert browser.get("/tenant/logo").status_code == 404
    answer = post(browser, admin, "/settings/logo", logo=(io.BytesIO(picture("JPEG")), "../x.svg", "image/svg+xml"))
    assert answer.status_code == 303, answer.get_data(as_text=True)
    shown = browser.get("/tenant/logo")
    assert shown.content_type == "image/png"
    assert shown.headers["X-Content-Type-Options"] == "nosniff"
    assert "private" in shown.headers["Cache-Control"]
    assert "/tenant/logo?v=" in browser.get("/settings").get_data(as_text=True)
    bad = post(browser, admin, "/settings/logo", logo=(io.BytesIO(b"not a picture"), "x.png"))
    assert bad.status_code == 422
    assert "not a PNG, JPEG or WebP" in bad.get_data(as_text=True)
    assert post(browser, admin, "/settings/logo", remove="true").status_code == 303
    assert browser.get("/tenant/logo").status_code == 404
    assert browser.post("/settings/logo", data={"remove": "true"}).status_code == 403, "without the token"


def test_the_logo_of_another_tenant_is_not_served(admin: Person, person: Make, browse: Browse) -> None:
    post(browse(admin), admin, "/settings/logo", logo=(io.BytesIO(picture("PNG")), "x.png"))
    assert browse(person()).get("/tenant/logo").status_code == 404
    assert browse(person("viewer", admin.tenant)).get("/tenant/logo").status_code == 200


@pytest.mark.parametrize(
    "colour", ["#000000", "#ffffff", "#ff0000", "#ffff00", "#0b6b74", "#123456", "#00ff88", "#808080"]
)
def test_any_colour_becomes_shades_that_can_be_read(colour: str) -> None:
    light, dark = re.findall(r"--accent: light-dark\((#\w{6}), (#\w{6})\)", brand.stylesheet(colour))[0]
    white = brand._parse("#ffffff")
    assert brand.contrast(brand._parse(light), brand.LIGHT_SURFACE) >= 4.5
    assert brand.contrast(white, brand._parse(light)) >= 4.5, "white text on a button"
    assert brand.contrast(brand._parse(dark), brand.DARK_SURFACE) >= 4.5


def test_settings_are_saved_and_refused_beside_their_fields(admin: Person, browse: Browse) -> None:
    browser = browse(admin)
    form = {"name": "New name", "timezone": "Europe/Vienna", "colour": "#aa0000", "own_colour": "true"}
    assert post(browser, admin, "/settings", **form).status_code == 303
    assert (column(admin.tenant, "name"), column(admin.tenant, "colour")) == ("New name", "#aa0000")
    page = browser.get("/settings").get_data(as_text=True)
    assert "/tenant/brand.css?v=" in page
    assert "--accent" in browser.get("/tenant/brand.css").get_data(as_text=True)
    version = re.findall(r'name="version" value="([^"]+)"', page)[0]
    bad = post(browser, admin, "/settings", **(form | {"timezone": "Nowhere"}))
    assert bad.status_code == 422
    assert "not a time zone" in bad.get_data(as_text=True).lower()
    assert post(browser, admin, "/settings", **(form | {"name": "A", "version": version})).status_code == 303
    assert post(browser, admin, "/settings", **(form | {"name": "B", "version": version})).status_code == 412
    assert column(admin.tenant, "name") == "A"


def test_settings_are_for_admins(person: Make, browse: Browse) -> None:
    engineer = person("engineer")
    browser = browse(engineer)
    assert browser.get("/settings").status_code == 403
    for path in ("/settings", "/settings/logo", "/settings/delete", "/settings/restore"):
        assert post(browser, engineer, path, name="x", confirm=engineer.tenant.name).status_code == 403
    assert browser.get("/usage").status_code == 200


def test_a_tenant_is_deleted_by_its_name_and_restored(admin: Person, browse: Browse) -> None:
    browser = browse(admin)
    wrong = post(browser, admin, "/settings/delete", confirm="something else")
    assert wrong.status_code == 422
    assert column(admin.tenant, "status") == "active"
    assert post(browser, admin, "/settings/delete", confirm=admin.tenant.name).status_code == 303
    assert column(admin.tenant, "status") == "deleting"
    for path in ("/", "/usage", "/settings"):
        assert "This tenant is being deleted" in browser.get(path).get_data(as_text=True), path
    assert post(browser, admin, "/settings", name="x").status_code == 403
    assert 'href="/settings"' in browser.get("/").get_data(as_text=True)
    assert post(browser, admin, "/settings/restore").status_code == 303
    assert column(admin.tenant, "status") == "active"
    assert "being deleted" not in browser.get("/").get_data(as_text=True)


def test_every_page_of_a_suspended_tenant_says_so(admin: Person, person: Make, browse: Browse) -> None:
    chief = person(is_platform_admin=True)
    path = f"/platform/tenants/{admin.tenant.uid}"
    refused = post(browse(chief), chief, f"{path}/status", status="suspended")
    assert refused.status_code == 422
    assert (
        post(browse(chief), chief, f"{path}/status", status="suspended", reason="Bill <b>open</b>").status_code == 303
    )
    for page in ("/", "/devices", "/usage"):
        text = browse(admin).get(page).get_data(as_text=True)
        assert "This tenant is suspended" in text
        assert "Bill &lt;b&gt;open&lt;/b&gt;" in text
    assert post(browse(admin), admin, "/settings/restore").status_code == 403
    assert post(browse(chief), chief, f"{path}/status", status="active").status_code == 303


def test_the_platforms_pages_are_for_its_admins(admin: Person, browse: Browse) -> None:
    browser = browse(admin)
    for path in ("/platform/tenants", "/platform/plans", f"/platform/tenants/{admin.tenant.uid}"):
        assert browser.get(path).status_code == 403
    for path in ("", "/status", "/delete", "/quota"):
        answer = post(browser, admin, f"/platform/tenants{'/' + admin.tenant.uid if path else ''}{path}", devices="1")
        assert answer.status_code == 403
    assert column(admin.tenant, "status") == "active"


def test_the_platforms_admin_manages_a_tenant(person: Make, browse: Browse) -> None:
    chief = person(is_platform_admin=True)
    browser = browse(chief)
    assert post(browser, chief, "/platform/plans", name="Small plan", devices="7").status_code == 303
    assert post(browser, chief, "/platform/plans", name="small PLAN", devices="7").status_code == 422
    assert post(browser, chief, "/platform/plans", name="Other", devices="many").status_code == 422
    uid = factories.rows("SELECT uid FROM iiot.plan WHERE name = 'Small plan'")[0][0]
    assert browser.get(f"/platform/plans/{uid}").status_code == 200
    assert browser.get("/platform/plans/unknown").status_code == 404
    made = post(browser, chief, "/platform/tenants", name="Made by hand", timezone="UTC", plan=uid)
    assert made.status_code == 303
    address = made.headers["Location"].partition("?")[0]
    assert "of 7" in browser.get(address).get_data(as_text=True).replace("\n", "")
    invited = post(browser, chief, f"{address}/invitations", email="first@example.com")
    assert invited.status_code == 201, "no mail is set up, so the link is shown"
    assert "/invitations/accept?token=" in invited.get_data(as_text=True)
    assert post(browser, chief, f"{address}/invitations", email="no address").status_code == 422
    assert post(browser, chief, "/platform/tenants", name="", timezone="Moon").status_code == 422
    assert "Made by hand" in browser.get("/platform/tenants?q=made+by").get_data(as_text=True)
    assert "No tenant matches" in browser.get("/platform/tenants?q=zzzz&status=deleting").get_data(as_text=True)
    assert post(browser, chief, f"{address}/quota", devices="9", users="").status_code == 303
    assert post(browser, chief, f"{address}/quota", devices="-1").status_code == 422
    assert "of 9" in browser.get(address).get_data(as_text=True)
    assert post(browser, chief, f"{address}/quota", give="plan", plan=uid).status_code == 303
    assert post(browser, chief, f"{address}/quota", give="plan", plan="").status_code == 422
    assert post(browser, chief, f"{address}/delete", confirm="wrong").status_code == 422
    assert post(browser, chief, f"{address}/delete", confirm="Made by hand").status_code == 303
    assert "Restore the tenant" in browser.get(address).get_data(as_text=True)
    assert post(browser, chief, f"/platform/plans/{uid}", name="Renamed", users="3").status_code == 303
    assert post(browser, chief, f"/platform/plans/{uid}/delete").status_code == 303
    assert browser.get("/platform/tenants/" + "a" * 26).status_code == 404
    assert post(browser, chief, f"/platform/tenants/{'a' * 26}/status", status="active").status_code == 404


def test_levels_say_how_near_a_limit_is() -> None:
    numbers = ((10, 1, 2), (10, 8, 8), (10, 1, 10), (10, 10, 10), (0, 0, 0))
    lines = [usage.Line("devices", "Devices", "", Use(*each)) for each in numbers]
    assert [line.level for line in lines] == ["ok", "warn", "warn", "bad", "bad"]
    assert [line.percent for line in lines] == [10, 80, 10, 100, 100]


def test_the_highest_day_is_the_highest_bar_and_a_little_is_seen() -> None:
    days = [Day(clock.now(), readings, 0) for readings in (0, 1, 1000)]
    assert [bar.height for bar in usage.bars(days, lambda day: day.readings)] == [0.0, 1.5, 100.0]
    assert [bar.height for bar in usage.bars(days, lambda day: day.api_requests)] == [0.0, 0.0, 0.0]
