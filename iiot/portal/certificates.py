"""The page of a device's certificates: list, issue, revoke; a new one is shown with the commands that use it."""

from typing import Any

from flask import Response, make_response, redirect, render_template, request
from sqlalchemy.orm import Session

from iiot import broker, config, tenancy, web
from iiot.config import split_bind
from iiot.errors import Conflict, Invalid
from iiot.portal import connect, forms
from iiot.services import certificates, devices

pages = web.pages("certificates")

MESSAGES = {"revoked": "The certificate was revoked. It opens nothing any more."}


@pages.route("GET", "/devices/<uid>/certificates", permission="device:write")
def certificates_page(ctx: web.Context, uid: str) -> str:
    """The certificates of a device."""
    with tenancy.work(ctx.scope) as db:
        values = _values(db, uid)
    return render_template("device_certificates.html", message=MESSAGES.get(request.args.get("done", "")), **values)


@pages.route("POST", "/devices/<uid>/certificates", permission="device:write")
def issue(ctx: web.Context, uid: str) -> Response:
    """Sign a certificate, and show it once with its key."""
    form = forms.texts("name", "csr", "days")
    try:
        wanted = certificates.Wanted(form["name"], form["csr"] or None, _days(form["days"]))
        with tenancy.work(ctx.scope) as db:
            issued = certificates.issue(db, devices.locked(db, uid), wanted)
            values = _values(db, uid)
    except (Invalid, Conflict) as problem:
        with tenancy.work(ctx.scope) as db:
            values = _values(db, uid)
        return forms.refused("device_certificates.html", problem, **(values | {"form": form}))
    commands = _commands(uid, issued)
    content = render_template("device_certificates.html", issued=issued, commands=commands, **values)
    return make_response(content, 201)


@pages.route("POST", "/devices/<uid>/certificates/<certificate_id>/revoke", permission="device:write")
def revoke(ctx: web.Context, uid: str, certificate_id: str) -> Response:
    """Revoke one certificate."""
    with tenancy.work(ctx.scope) as db:
        certificates.revoke(db, devices.locked(db, uid), certificate_id)
    return make_response(redirect(f"/devices/{uid}/certificates?done=revoked", 303))


def _values(db: Session, uid: str) -> dict[str, Any]:
    """What the page shows; raises NotFound for a device that is not there."""
    device = devices.get(db, uid)
    rows = certificates.list_all(db, device)
    users = {row.uid: broker.certificate_user(uid, row.uid) for row in rows}
    ended = {row.uid for row in rows if certificates.has_ended(row)}
    most = config.load().certificate_days
    form = {"name": "", "csr": "", "days": ""}
    return {
        "tab": "settings",
        "device": device,
        "rows": rows,
        "users": users,
        "ended": ended,
        "most": most,
        "form": form,
    }


def _days(text: str) -> int | None:
    if text and not (text.isascii() and text.isdigit() and len(text) <= 5):
        raise Invalid("The certificate is not valid.", [{"loc": ["body", "days"], "msg": "a number of days"}])
    return int(text) if text else None


def _commands(uid: str, issued: certificates.Issued) -> str:
    """What to paste: the files, and a first reading."""
    settings = config.load()
    host, port = split_bind(settings.mqtt_cert_public or settings.mqtt_cert_bind)
    host = request.host.rpartition(":")[0] or request.host if host in connect.EVERYWHERE else host
    files = {f"{uid}.crt": issued.certificate.pem, f"{uid}.key": issued.private_key}
    write_ca, trust = connect.trusting(issued.broker_ca)
    return (
        f"{connect.writing(files)}{write_ca}"
        f"chmod 600 {uid}.key\n"
        f"mosquitto_pub -h {host} -p {port} -q 1 \\\n"
        f"  {trust} --cert {uid}.crt --key {uid}.key \\\n"
        f"  -i {uid} -t iiot/{uid}/up/telemetry \\\n"
        f"  -m {connect.READING}"
    )
