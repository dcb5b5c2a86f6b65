"""The portal that is running, as its run.json tells, and the devices that replay in it."""

import json
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit


class PortalError(Exception):
    """There is no portal to send to; the text says what to do."""


@dataclass(frozen=True)
class Portal:
    """Where devices reach a portal; None for what it does not have. `amqp` is a URL without user and password."""

    http: str
    mqtt: tuple[str, int] | None = None
    coap: tuple[str, int] | None = None
    amqp: str | None = None


@dataclass(frozen=True)
class Login:
    """What proves a device."""

    uid: str
    token: str


def running(data_dir: Path) -> Portal:
    """The portal that `up` runs in this data dir; raises PortalError."""
    path = data_dir / "run.json"
    try:
        content = json.loads(path.read_text())
        mqtt, coap = (
            (place["host"], place["port"]) if (place := content.get(name)) else None for name in ("mqtt", "coap")
        )
        return Portal(content["http"], mqtt, coap, (content.get("amqp") or {}).get("url"))
    except FileNotFoundError:
        raise PortalError(
            f"No portal runs here: there is no {path}. Start it with `make run`, then try again."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PortalError(f"{path} cannot be used ({error}). Is this the data dir of a running portal?") from error


def at(http: str, mqtt: str | None = None, coap: str | None = None, amqp: str | None = None) -> Portal:
    """A portal elsewhere, by its addresses; raises PortalError for one that is not an address."""
    parts = urlsplit(http)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise PortalError(f"{http!r} is not an address like http://127.0.0.1:5002")
    if amqp is not None and urlsplit(amqp).scheme not in ("amqp", "amqps"):
        raise PortalError(f"{amqp!r} is not an address like amqps://broker.example.com/iiot")
    return Portal(http, _place(mqtt), _place(coap), amqp)


def _place(text: str | None) -> tuple[str, int] | None:
    if text is None:
        return None
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise PortalError(f"{text!r} is not host:port")
    return host.strip("[]"), int(port)


def make_devices(tenant: str, names: list[str], kind: str) -> list[Login]:
    """Devices of a tenant, one per name, found again by their external id; each gets a new token. Raises Problem."""
    from sqlalchemy import select

    from iiot import tenancy
    from iiot.commands.lookup import operator_for
    from iiot.models import Device
    from iiot.services import credentials, devices

    operator = operator_for(tenant)
    logins = []
    for name in names:
        with tenancy.work(tenancy.of(operator)) as db:
            known = db.scalar(select(Device.uid).where(Device.external_id == f"simulate:{name}"))
            if known is None:
                made, token = devices.create(db, devices.NewDevice(name, kind, f"simulate:{name}", tags=("simulated",)))
            else:
                made = devices.locked(db, known)
                token = credentials.replace(db, made, credentials.Wanted()).token
            logins.append(Login(made.uid, token))
    return logins


def only_tenant() -> str:
    """The slug of the tenant when there is exactly one; raises PortalError."""
    from sqlalchemy import select

    from iiot import tenancy
    from iiot.models import Tenant

    with tenancy.work(tenancy.system("operator")) as db:
        slugs = db.scalars(select(Tenant.slug).order_by(Tenant.id).limit(20)).all()
    if len(slugs) == 1:
        return slugs[0]
    if not slugs:
        raise PortalError("There is no tenant yet. Create one: `python -m iiot tenant create NAME`.")
    raise PortalError(f"Say which tenant gets the devices: --tenant {' | '.join(slugs)}")
