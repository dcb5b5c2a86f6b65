"""What the supervisor asks of the database, in short processes of their own, so that it stays small itself.

`python -m iiot.embedded.bootstrap prepare` migrates and makes the first administrator; `broker-files` prints the files
for Mosquitto. Each prints one JSON object; its keys are described at the functions.
"""

import json
import socket
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from iiot import config
from iiot.embedded.account import Account
from iiot.embedded.datadir import FIRST_ADMIN

if TYPE_CHECKING:
    from iiot.services import authority


def prepare() -> dict[str, Any]:
    """Upgrade the schema and make the first administrator: `{"revision", "admin", "broker"}`.

    The one-time password is written to `<data dir>/secrets/first_admin` before the commit that makes the account:
    a crash in between leaves a file without an account, which the next start overwrites, never an account nobody can use.
    """
    from iiot import schema, tenancy
    from iiot.services import users

    settings = config.load()
    schema.upgrade(settings)
    note = settings.data_dir / "secrets" / FIRST_ADMIN
    with tenancy.work(tenancy.system("operator")) as db:
        email, password = users.ensure_first_admin(db)
        if password is not None:
            Account().make_dir(note.parent)
            Account().write(note, json.dumps({"email": email, "password": password}))
    files = broker_files() if settings.mqtt_admin_url else None
    return {"revision": schema.revisions(settings)[0], "admin": email, "broker": files}


def broker_files() -> dict[str, str]:
    """The files of Mosquitto, name → text: the dynamic-security file with all devices of all tenants and the service users, and what TLS needs."""
    from iiot import broker, broker_homes, tenancy
    from iiot.embedded.mqtt import ServiceUsers
    from iiot.services import authority, revocations

    settings = config.load()
    with tenancy.work(tenancy.system("provision")) as db:
        revocations.reconcile(db)
        logins, certificates = broker.stored_logins(db), broker.stored_certificates(db)
        homes = broker_homes.stored(db)
    passwords = ServiceUsers(Path(settings.data_dir) / "secrets").passwords()
    security = broker.dynsec_document(logins, passwords, certificates, homes)
    pki = authority.ours()
    crl = {"devices.crl": settings.crl_path.read_text()}
    return {"dynamic-security.json": json.dumps(security)} | tls_files(pki, server_names(settings)) | crl


def tls_files(pki: "authority.Pki", names: Iterable[str]) -> dict[str, str]:
    """`server.crt` and `server.key` of the broker, and `device-ca.crt`, which its clients' certificates must be of."""
    return pki.server_files(names) | {"device-ca.crt": pki.authority("device").pem}


def server_names(settings: config.Settings) -> set[str]:
    """The names and addresses by which devices reach the embedded broker on this machine."""
    binds = (settings.mqtt_bind, settings.mqtt_tls_bind, settings.mqtt_cert_bind, settings.mqtt_public)
    hosts = {config.split_bind(bind)[0] for bind in (*binds, settings.mqtt_cert_public) if bind}
    if settings.public_url:
        hosts.add(urlsplit(settings.public_url).hostname or "")
    return {"localhost", "127.0.0.1", "::1", socket.gethostname()} | (hosts - {"", "0.0.0.0", "::"})  # noqa: S104


TASKS = {"prepare": prepare, "broker-files": broker_files}

if __name__ == "__main__":
    sys.stdout.write(json.dumps(TASKS[sys.argv[1]]()) + "\n")
