"""The team's pages as a person uses them: invite, accept, give a role, limit, remove; roles as a matrix; sites."""

import secrets
from dataclasses import dataclass
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import PASSWORD, Account, Watch


@pytest.fixture
def team(account: Account) -> str:
    """The path of the account's tenant in the API."""
    return f"/tenants/{account.call('GET', '/auth/me')['tenant']['id']}"


@dataclass(frozen=True)
class Other:
    """Somebody who was invited and came."""

    uid: str
    email: str


def come(account: Account, team: str, role: str = "viewer", **limits: Any) -> Other:
    """A new member of the account's tenant."""
    email = f"team-{secrets.token_hex(4)}@example.com"
    body = {"email": email, "role": role, **limits}
    link = account.call("POST", f"{team}/invitations", body)["link"]
    token = link.partition("?token=")[2]
    stranger = Account(account.url, email, "")
    stranger.call("POST", "/auth/invitations/accept", {"token": token, "password": PASSWORD})
    found = account.call("GET", f"{team}/users?q={email}")["items"][0]
    return Other(found["id"], email)


def test_somebody_is_invited_by_a_link_and_comes(page: Page, watch: Watch, account: Account, team: str) -> None:
    email = f"new-{secrets.token_hex(4)}@example.com"
    page.goto("/team")
    page.get_by_role("link", name="Invite", exact=True).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("E-mail").fill(email)
    dialog.get_by_label("Role").select_option("operator")
    dialog.get_by_role("button", name="Invite").click()
    link = page.locator(".secret code").inner_text()
    expect(page).to_have_url(f"{account.url}/team/invitations")
    page.reload()
    expect(page.locator(".secret")).to_have_count(0)
    expect(page.get_by_role("cell", name=email, exact=True)).to_be_visible()
    guest = watch.open(anonymous=True)
    guest.goto(link)
    expect(guest.get_by_role("heading", name="Join Browser tests")).to_be_visible()
    guest.get_by_label("Your name").fill("Nora New")
    guest.get_by_label("Choose a password").fill(PASSWORD)
    guest.get_by_role("button", name="Join").click()
    expect(guest).to_have_url(f"{account.url}/")
    guest.goto("/team")
    expect(guest.get_by_role("link", name="Nora New")).to_be_visible()
    expect(guest.get_by_role("link", name="Invite", exact=True)).to_have_count(0)
    watch.expected_status.add(404)
    guest.goto(link)
    expect(guest.get_by_role("heading", name="This invitation does not work")).to_be_visible()


def test_who_is_signed_in_is_told_whom_the_link_is_for(page: Page, account: Account, team: str) -> None:
    link = account.call("POST", f"{team}/invitations", {"email": f"x-{secrets.token_hex(4)}@example.com"})["link"]
    page.goto(link)
    expect(page.get_by_text("The invitation is for x-")).to_be_visible()
    expect(page.get_by_role("button", name="Join")).to_have_count(0)


def test_an_invitation_is_sent_again_and_revoked(page: Page, account: Account, team: str) -> None:
    email = f"again-{secrets.token_hex(4)}@example.com"
    old = account.call("POST", f"{team}/invitations", {"email": email})["link"]
    page.goto("/team/invitations")
    page.get_by_role("button", name=f"New link for {email}").click()
    assert page.locator(".secret code").inner_text() != old
    page.get_by_role("button", name=f"Revoke the invitation of {email}").click()
    expect(page.get_by_text("The invitation was revoked.")).to_be_visible()
    expect(page.get_by_role("cell", name=email, exact=True)).to_have_count(0)


def test_mistakes_are_said_at_the_field(page: Page, watch: Watch, account: Account) -> None:
    watch.expected_status |= {409, 422}
    page.goto("/team/invitations?new")
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("E-mail").fill("no-domain@x")
    dialog.get_by_role("button", name="Invite").click()
    expect(dialog.get_by_label("E-mail")).to_have_attribute("aria-invalid", "true")
    dialog.get_by_label("E-mail").fill("someone@example.com")
    dialog.get_by_label("Only the devices").check()
    dialog.get_by_label("Single devices").fill("no such pump")
    dialog.get_by_role("button", name="Invite").click()
    expect(dialog.get_by_text("There is no device 'no such pump'")).to_be_visible()
    dialog.get_by_label("All devices").check()
    dialog.get_by_label("E-mail").fill(account.email)
    dialog.get_by_role("button", name="Invite").click()
    expect(dialog.get_by_text("This person is a member of the tenant already.")).to_be_visible()


def test_a_member_gets_a_role_and_limits_and_is_removed(page: Page, watch: Watch, account: Account, team: str) -> None:
    other = come(account, team)
    device = account.add_device(f"pump {secrets.token_hex(4)}")
    page.goto("/team")
    page.get_by_role("link", name=other.email).click()
    page.get_by_role("combobox", name="Role").select_option("engineer")
    page.get_by_role("button", name="Save role").click()
    expect(page.get_by_text("The role was changed.")).to_be_visible()
    page.get_by_label("Only the devices").check()
    page.get_by_label("With a tag").fill("hot, cold")
    page.get_by_label("Single devices").fill(device["name"])
    page.get_by_role("button", name="Save devices").click()
    expect(page.get_by_label("Single devices")).to_have_value(device["name"])
    now = account.call("GET", f"{team}/users?q={other.email}")["items"][0]
    assert now["role"] == "engineer"
    assert now["limited_to"] == {"devices": [device["id"]], "sites": [], "tags": ["hot", "cold"]}
    page.get_by_role("button", name="Make link").click()
    expect(page.locator(".secret code")).to_contain_text("/reset?token=")
    watch.expected_status.add(422)
    page.get_by_role("button", name="Remove", exact=True).click()
    page.get_by_label("Type the address").fill("somebody else")
    page.get_by_role("button", name="Remove member").click()
    expect(page.get_by_text("This is not the member's address")).to_be_visible()
    page.get_by_label("Type the address").fill(other.email)
    page.get_by_role("button", name="Remove member").click()
    expect(page.get_by_text("The member was removed.")).to_be_visible()
    assert account.call("GET", f"{team}/users?q={other.email}")["total"] == 0


def test_the_last_admin_is_told_why_they_stay(page: Page, watch: Watch, account: Account) -> None:
    watch.expected_status.add(409)
    page.goto("/team")
    page.get_by_role("link", name="Test Person").click()
    page.get_by_role("combobox", name="Role").select_option("viewer")
    page.get_by_role("button", name="Save role").click()
    expect(page.get_by_text("This is the last admin of the tenant.")).to_be_visible()


def test_a_role_is_made_changed_in_the_matrix_and_deleted(
    page: Page, watch: Watch, account: Account, team: str
) -> None:
    name = f"Shift {secrets.token_hex(3)}"
    page.goto("/team/roles?new")
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name", exact=True).fill(name)
    dialog.get_by_label("See devices and sites").check()
    dialog.get_by_role("button", name="Make role").click()
    expect(page.get_by_text("The role was made.")).to_be_visible()
    box = page.get_by_label(f"{name}: Send commands")
    expect(box).not_to_be_checked()
    box.check()
    page.get_by_role("button", name=f"Save {name}").click()
    expect(page.get_by_text("The role was saved.")).to_be_visible()
    expect(page.get_by_label(f"{name}: Send commands")).to_be_checked()
    made = next(each for each in account.call("GET", f"{team}/roles")["items"] if each["name"] == name)
    assert made["permissions"] == ["device:command", "device:read"]
    page.locator(f"[data-open='delete-{made['id']}']").click()
    page.get_by_role("button", name="Delete role").click()
    expect(page.get_by_text("The role was deleted.")).to_be_visible()


def test_sites_are_added_renamed_and_deleted(page: Page, account: Account) -> None:
    name = f"Hall {secrets.token_hex(3)}"
    page.goto("/team/sites?new")
    page.get_by_role("dialog").get_by_label("Name").fill(name)
    page.get_by_role("dialog").get_by_role("button", name="Add site").click()
    expect(page.get_by_text("The site was added.")).to_be_visible()
    page.get_by_role("button", name=f"Change {name}").click()
    page.get_by_role("dialog").get_by_label("Name").fill(f"{name} b")
    page.get_by_role("dialog").get_by_role("button", name="Save").click()
    expect(page.get_by_text("The site was renamed.")).to_be_visible()
    page.get_by_role("button", name=f"Change {name} b").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete site").click()
    expect(page.get_by_text("The site was deleted.")).to_be_visible()
    assert name not in str(account.call("GET", "/sites"))
