"""Rows for tests, made through the door like everything else: tenants, people, devices, signals.

Every function needs active settings (fixtures `settings`, `module_settings`) and returns plain frozen rows, so that a test can use them after
the transaction. Names are unique within the process; what a test does not say gets a harmless default.
"""

import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg2
from sqlalchemy import insert
from sqlalchemy.engine import make_url

from iiot import config, tenancy
from iiot.clock import now, now_ms
from iiot.ids import new_token, new_uid
from iiot.models import Credential, Device, DeviceCertificate, Membership, Quota, Signal, Tenant, User
from iiot.payloads import Parsed, PayloadError, Value, parse
from iiot.services.ingest import Incoming, Outcomes, StatusEvent, ingest, status

__all__ = ["StatusEvent", "ingest", "now", "now_ms", "status"]

_numbers = itertools.count(1)


def _unique(word: str) -> str:
    return f"{word}-{os.getpid()}-{next(_numbers)}"


@dataclass(frozen=True)
class TenantRow:
    """A tenant; `tenant_id` makes it a principal for `tenancy.of`."""

    tenant_id: int
    uid: str
    name: str


@dataclass(frozen=True)
class UserRow:
    """A user and the role in its tenant."""

    user_id: int
    uid: str
    email: str
    role: str
    tenant_id: int | None


@dataclass(frozen=True)
class DeviceRow:
    """A device; `tenant_id` makes it a device for `tenancy.of_device`."""

    tenant_id: int
    device_id: int
    uid: str
    name: str


def make_tenant(name: str | None = None, status: str = "active", **quota: int) -> TenantRow:
    """A tenant with its quota; `quota` are columns of the table (`devices=…`, `signals_per_device=…`)."""
    name = name or _unique("tenant")
    with tenancy.work(tenancy.system("platform")) as db:
        row = Tenant(uid=new_uid(), name=name, slug=_unique("slug"), status=status)
        db.add(row)
        db.flush()
        db.add(Quota(tenant_id=row.id, **quota))
        return TenantRow(row.id, row.uid, name)


def make_user(tenant: TenantRow | None, role: str = "admin", **columns: Any) -> UserRow:
    """A user, a member of `tenant` unless it is None. Without `password_hash` nobody can sign in as this user."""
    values = {"email": f"{_unique('person')}@example.com", "password_hash": "!"} | columns
    with tenancy.work(tenancy.system("sign-in")) as db:
        user = User(uid=new_uid(), **values)
        db.add(user)
        db.flush()
        if tenant is not None:
            db.add(Membership(tenant_id=tenant.tenant_id, user_id=user.id, role=role))
        return UserRow(user.id, user.uid, user.email, role, tenant.tenant_id if tenant else None)


def make_device(tenant: TenantRow, name: str | None = None, **columns: Any) -> DeviceRow:
    """A device of a tenant, without a credential."""
    with tenancy.work(tenancy.of(tenant)) as db:
        device = Device(uid=new_uid(), name=name or _unique("device"), **columns)
        db.add(device)
        db.flush()
        return DeviceRow(device.tenant_id, device.id, device.uid, device.name)


def make_signal(device: DeviceRow, key: str = "temperature", kind: str = "number") -> int:
    """A signal of a device; returns its id."""
    row = {"tenant_id": device.tenant_id, "device_id": device.device_id, "key": key, "type": kind}
    with tenancy.work(tenancy.system("ingest")) as db:
        return int(db.execute(insert(Signal).values(row).returning(Signal.id)).scalar_one())


def signal_id(device: DeviceRow, key: str) -> int:
    """The id of a signal that exists."""
    found = rows(
        "SELECT id FROM iiot.signal WHERE tenant_id = %s AND device_id = %s AND key = %s",
        device.tenant_id,
        device.device_id,
        key,
    )
    return int(found[0][0])


def certificate(device: DeviceRow) -> DeviceCertificate:
    """A certificate of a device that nobody has signed, to be added to a session of its tenant."""
    later = now() + timedelta(days=1)
    return DeviceCertificate(uid=new_uid(), device_id=device.device_id, serial=new_uid(), pem="x", expires_at=later)


def credential(device: DeviceRow) -> Credential:
    """A credential of a device that nobody can use, to be added to a session of its tenant."""
    return Credential(
        uid=new_uid(),
        device_id=device.device_id,
        token_hash=new_token(),
        mqtt_salt=b"salt",
        mqtt_hash=b"hash",
        mqtt_iterations=1,
    )


def refused(uid: str, code: str = "not-json", reason: str = "This is not JSON.", payload: bytes = b"{") -> Incoming:
    """A message that the parser refused."""
    return Incoming(uid, None, PayloadError(code, reason), "test", f"iiot/{uid}/up/telemetry", payload)


def message(uid: str, *items: tuple[int, dict[str, Value]], **values: Value) -> Incoming:
    """A parsed message: `items` as (ts in ms, values), or `values` alone for now."""
    parsed = Parsed(items=list(items) or [(now_ms(), values)], rejected=[], ack=False)
    return Incoming(uid, parsed, None, "test", f"iiot/{uid}/up/telemetry", b"{}")


def store(uid: str, *items: tuple[int, dict[str, Value]], **values: Value) -> Outcomes:
    """Ingest one message."""
    return ingest([message(uid, *items, **values)])


def send(uid: str, payload: dict[str, Any] | list[dict[str, Any]]) -> Outcomes:
    """Ingest one message as a device writes it."""
    content = json.dumps(payload).encode()
    parsed = parse(content, None, now_ms())
    return ingest([Incoming(uid, parsed, None, "test", f"iiot/{uid}/up/telemetry", content)])


def connect(role: str | None = None, autocommit: bool = True) -> "psycopg2.extensions.connection":
    """A bare connection beneath the door: as a role of the portal, or as the superuser who made the database. The caller closes it."""
    settings = config.load()
    url = make_url(settings.database_url_for(role) if role else str(settings.database_url))
    address = url.set(drivername="postgresql").render_as_string(hide_password=False)
    # Without a path every name is written in full, also by the catalogue's own views.
    connection = psycopg2.connect(address, options="-c search_path=pg_catalog -c timezone=UTC")
    connection.autocommit = autocommit
    return connection


def rows(statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """What the superuser sees, whoever owns it."""
    connection = connect()
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return list(cursor.fetchall()) if cursor.description else []
    finally:
        connection.close()


@contextmanager
def failing_commits(action: str = "RAISE EXCEPTION 'the disk is full'") -> Iterator[None]:
    """A deferred trigger does `action` when readings have been written and COMMIT is under way."""
    rows(
        "CREATE OR REPLACE FUNCTION public.fail() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS "
        f"$$ BEGIN {action}; RETURN NULL; END $$"
    )
    rows(
        "CREATE CONSTRAINT TRIGGER fail AFTER INSERT ON iiot.telemetry DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION public.fail()"
    )
    try:
        yield
    finally:
        rows("DROP TRIGGER fail ON iiot.telemetry")


def make_crowd(tenant: TenantRow, devices: int, signals: int) -> None:
    """Many devices, `device 1` and on, with the signals `signal_1` and on, which have no readings; made at once, without tokens."""
    rows(
        "INSERT INTO iiot.device (tenant_id, uid, name) SELECT %s, translate(substr(md5(n::text) || md5((-n)::text), 1, 26), "
        "'0189', 'abcd'), 'device ' || n FROM generate_series(1, %s) AS n",
        tenant.tenant_id,
        devices,
    )
    rows(
        "INSERT INTO iiot.signal (tenant_id, device_id, key, type) SELECT tenant_id, id, 'signal_' || n, 'number' "
        "FROM iiot.device, generate_series(1, %s) AS n WHERE tenant_id = %s",
        signals,
        tenant.tenant_id,
    )
