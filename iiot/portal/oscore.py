"""The page of a device's keys for CoAP with OSCORE: made and shown once, listed, revoked."""

import json
from dataclasses import dataclass

from flask import Response, make_response, redirect, render_template, request

from iiot import config, tenancy, web
from iiot.config import split_bind
from iiot.errors import Conflict, Invalid
from iiot.portal import forms
from iiot.portal.connect import EVERYWHERE, joined
from iiot.services import devices, oscore

pages = web.pages("oscore")
FOLDER = "iiot-key"


@dataclass(frozen=True)
class Example:
    """One program that sends a first reading with the key."""

    title: str
    where: str
    text: str
    note: str


def examples(issued: oscore.Issued, address: str) -> list[Example]:
    """What a person saves and runs for the first reading; `address`: host:port of the CoAP server."""
    settings = json.dumps(issued.settings(), indent=2)
    map_ = json.dumps({f"coap://{address}/*": {"oscore": {"basedir": f"{FOLDER}/"}}}, indent=2)
    aiocoap = (
        f"mkdir -p {FOLDER}\ncat > {FOLDER}/secret.json <<'EOF'\n{settings}\nEOF\n"
        f"cat > credentials.json <<'EOF'\n{map_}\nEOF\n"
        "aiocoap-client --credentials credentials.json -m POST \\\n"
        """  --content-format application/json --payload '{"temperature": 21.5}' \\\n"""
        f"  coap://{address}/telemetry"
    )
    libcoap = (
        f"cat > oscore.conf <<'EOF'\n{issued.configuration()}EOF\n"
        "coap-client -E oscore.conf,oscore.seq -m post -t json \\\n"
        """  -e '{"temperature": 21.5}' \\\n"""
        f"  coap://{address}/telemetry"
    )
    return [
        Example("aiocoap", address, aiocoap, "Install it with: pip install 'aiocoap[oscore]'"),
        Example(
            "libcoap", address, libcoap, "Needs libcoap 4.3.2 or newer, built with OSCORE; Debian 12 has an older one."
        ),
    ]


def _address() -> str:
    settings = config.load()
    host, port = split_bind(settings.coap_public or settings.coap_bind)
    if host in EVERYWHERE:
        host = request.host.rpartition(":")[0].strip("[]") or request.host
    return joined((host, port))


@pages.route("GET", "/devices/<uid>/oscore", permission="device:read")
def keys(ctx: web.Context, uid: str) -> str:
    """The keys of the device, without their secrets."""
    with tenancy.work(ctx.scope) as db:
        device = devices.get(db, uid)
        found = oscore.list_all(db, device)
    done = "The key was revoked. It opens nothing any more." if request.args.get("done") == "revoked" else None
    return render_template("device_oscore.html", tab="connect", device=device, keys=found, message=done)


@pages.route("POST", "/devices/<uid>/oscore", permission="device:write")
def new_key(ctx: web.Context, uid: str) -> Response:
    """Make a key and show it once."""
    form = forms.texts("key_name")
    try:
        with tenancy.work(ctx.scope) as db:
            device = devices.locked(db, uid)
            issued = oscore.issue(db, device, form["key_name"])
            found = oscore.list_all(db, device)
    except (Conflict, Invalid) as problem:
        with tenancy.work(ctx.scope) as db:
            device = devices.get(db, uid)
            found = oscore.list_all(db, device)
        return forms.refused("device_oscore.html", problem, tab="connect", device=device, keys=found, form=form)
    shown = examples(issued, _address())
    content = render_template(
        "device_oscore.html", tab="connect", device=device, keys=found, issued=issued, examples=shown
    )
    return make_response(content, 201)


@pages.route("POST", "/devices/<uid>/oscore/<context_id>/revoke", permission="device:write")
def revoke_key(ctx: web.Context, uid: str, context_id: str) -> Response:
    """Revoke one key."""
    with tenancy.work(ctx.scope) as db:
        oscore.revoke(db, devices.locked(db, uid), context_id)
    return make_response(redirect(f"/devices/{uid}/oscore?done=revoked", 303))
