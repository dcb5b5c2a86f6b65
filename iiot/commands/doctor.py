"""`python -m iiot doctor`: is everything there, and what to do when it is not."""

import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from iiot.commands.output import json_option, show

Finding = tuple[str, str]
START = "Start the portal with `make run`."


class Sick(Exception):
    """A check failed: what is wrong, and how to mend it."""

    def __init__(self, what: str, mend: str) -> None:
        super().__init__(what)
        self.what = what
        self.mend = mend


def check_settings() -> str:
    """The settings can be read."""
    from iiot import config

    try:
        settings = config.load()
    except config.SettingsError as error:
        raise Sick(
            str(error), "Correct the environment or .env; `python -m iiot config check` reads them again."
        ) from None
    return f"{settings.env}, data in {settings.data_dir}"


def check_disk() -> str:
    """There is room for the databases."""
    from iiot import config

    folder = config.load().data_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e9
    if free < 1:
        raise Sick(f"{free:.1f} GB free for {folder}", "Free some space, or lower IIOT_TELEMETRY_RETENTION_DAYS.")
    return f"{free:.0f} GB free"


def check_database() -> str:
    """PostgreSQL answers and has the schema of this version."""
    from sqlalchemy.exc import OperationalError

    from iiot import config, schema

    if not config.load().database_url:
        raise Sick("no database is configured", START)
    try:
        here, newest = schema.revisions(config.load())
    except OperationalError as error:
        raise Sick(str(error.orig).strip(), START) from None
    if here != newest:
        raise Sick(f"the schema is {here}, this version needs {newest}", "Run `python -m iiot db upgrade`.")
    return f"schema {here}"


def check_redis() -> str:
    """Redis answers."""
    import redis

    from iiot import config

    url = config.load().redis_url
    if not url:
        raise Sick("no Redis is configured", START)
    try:
        with redis.Redis.from_url(url, socket_timeout=3, socket_connect_timeout=3) as client:
            version = client.info("server").get("redis_version")
    except redis.RedisError as error:
        raise Sick(str(error), START) from None
    return f"version {version}"


def check_broker() -> str:
    """The MQTT broker answers."""
    from iiot import config
    from iiot.embedded.mqtt import answers

    settings = config.load()
    if not settings.mqtt_url:
        raise Sick("no MQTT broker is configured", START)
    parts = urlsplit(settings.mqtt_url)
    if not answers(parts.hostname or "", parts.port or 1883):
        raise Sick(f"nothing answers at {parts.hostname}:{parts.port}", START)
    return f"{settings.mqtt_broker} at {parts.hostname}:{parts.port}"


def check_adapter(name: str, url: str | None = None) -> str:
    """The adapter runs and is connected; `url`: the setting that says whether it is wanted at all."""
    from iiot import config
    from iiot.services import adapters

    if url is not None and getattr(config.load(), url) in (None, "", "off"):
        return "off"
    deadline = time.monotonic() + adapters.BEAT_SECONDS
    while (found := adapters.running()) and name not in found and time.monotonic() < deadline:
        time.sleep(0.25)
    try:
        adapters.check(name)
    except ConnectionError as error:
        raise Sick(
            str(error), f"See {name}.log in the log folder; `python -m protocols check {name}` says more."
        ) from None
    return "connected"


def check_portal() -> str:
    """The web server says that it is ready."""
    from iiot import config
    from iiot.embedded.mqtt import reachable
    from iiot.embedded.up import body, status

    host, port = config.split_bind(config.load().http_bind)
    url = f"http://{reachable(host)}:{port}"
    answer = status(f"{url}/ready")
    if answer == 0:
        raise Sick(f"nothing answers at {url}", START)
    if answer != 200:
        raise Sick(
            f"{url}/ready answers {answer}: {body(f'{url}/ready')}",
            "See the checks above, and the files in the log folder.",
        )
    return url


def check_programs() -> str:
    """Mosquitto is installed."""
    from iiot.embedded.mqtt import find_mosquitto

    found = find_mosquitto()
    if found is None:
        raise Sick(
            "Mosquitto with its dynamic-security plugin is not installed; amqtt takes its place (slower, forgets on a crash)",
            "Debian and Ubuntu: apt-get install mosquitto",
        )
    return str(found[0])


def check_pages() -> str:
    """The front-end files were installed."""
    folder = Path(__file__).resolve().parents[1] / "portal" / "static" / "vendor"
    if not folder.is_dir():
        raise Sick("the portal's pages lack their style sheets and scripts", "Run `make setup`.")
    return "installed"


CHECKS: dict[str, Callable[[], str]] = {
    "settings": check_settings,
    "disk": check_disk,
    "mosquitto": check_programs,
    "pages": check_pages,
    "database": check_database,
    "redis": check_redis,
    "mqtt": check_broker,
    "mqtt-adapter": partial(check_adapter, "mqtt"),
    "coap": partial(check_adapter, "coap"),
    "amqp": partial(check_adapter, "amqp", "amqp_url"),
    "opcua": partial(check_adapter, "opcua"),
    "portal": check_portal,
}


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Check every part and say how to mend what is broken; exit status 1 when something is."""
    rows: list[dict[str, Any]] = []
    for name, check in CHECKS.items():
        try:
            rows.append({"check": name, "ok": True, "found": check(), "mend": None})
        except Sick as error:
            rows.append({"check": name, "ok": False, "found": error.what, "mend": error.mend})
            if name == "settings":
                break
    if as_json:
        show(rows, as_json)
    else:
        for row in rows:
            click.echo(f"{'ok  ' if row['ok'] else 'FAIL'}  {row['check']:<12}  {row['found']}")
            if row["mend"]:
                click.echo(f"                    → {row['mend']}")
    sys.exit(0 if all(row["ok"] for row in rows) else 1)
