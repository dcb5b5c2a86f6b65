"""What the supervisor asks of the database, in short processes of their own, so that it stays small itself.

`python -m iiot.embedded.bootstrap prepare` migrates and makes the first administrator; `broker-document` prints the
dynamic-security file for Mosquitto. Each prints one JSON object; its keys are described at the functions.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iiot import config
from iiot.embedded.account import Account
from iiot.embedded.datadir import FIRST_ADMIN


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
    document = broker_document() if settings.mqtt_admin_url else None
    return {"revision": schema.revisions(settings)[0], "admin": email, "broker": document}


def broker_document() -> dict[str, Any]:
    """The dynamic-security file: all devices of all tenants, and the service users."""
    from iiot import broker, broker_homes, tenancy
    from iiot.embedded.mqtt import ServiceUsers

    settings = config.load()
    with tenancy.work(tenancy.system("provision")) as db:
        logins, homes = broker.stored_logins(db), broker_homes.stored(db)
    passwords = ServiceUsers(Path(settings.data_dir) / "secrets").passwords()
    return service_document(logins, passwords, homes)


def service_document(
    logins: Sequence[Any], passwords: Mapping[str, str], homes: Mapping[str, Sequence[str]] | None = None
) -> dict[str, Any]:
    """The file for these logins of devices, the two service users (user → password), and the gateways' homes."""
    from iiot import broker

    return broker.dynsec_document(logins, passwords, homes)


TASKS = {"prepare": prepare, "broker-document": broker_document}

if __name__ == "__main__":
    sys.stdout.write(json.dumps(TASKS[sys.argv[1]]()) + "\n")
