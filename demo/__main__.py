"""`python -m demo`: starts the portal (or uses the one that runs here), fills a demo tenant, and keeps its devices sending."""

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

from demo.fleet import FLEET, DemoDevice
from iiot.simulate.command import close, connect, stop_on_signals
from iiot.simulate.links import LinkError, Tally
from iiot.simulate.portal import Login, Portal, PortalError, make_devices, running
from iiot.simulate.replay import Pace, Player, Progress, drain, history, replay

TENANT = "Demo"
PERSON = "demo@example.com"
# A week of history, sent at once; then five recorded minutes every five seconds.
PAST_SECONDS = 7 * 86_400.0
SPEED = 60.0
START_SECONDS = 300.0


def main() -> int:
    """Until Ctrl-C; returns the exit status."""
    data_dir = Path(os.environ.get("IIOT_DATA_DIR") or "var").absolute()
    stop = stop_on_signals()
    started = None if _ready(data_dir) else _start()
    try:
        if started is not None and not _wait(data_dir, started, stop):
            return 1 if started.poll() else 0
        _play(running(data_dir), stop, started)
    except (PortalError, LinkError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        if started is not None:
            with suppress(ProcessLookupError):
                started.send_signal(signal.SIGTERM)
            started.wait()
    return 0


def _start() -> subprocess.Popen[bytes]:
    """The whole portal as a child, in a session of its own: Ctrl-C comes to this program, which first lets the devices say goodbye."""
    return subprocess.Popen([sys.executable, "-m", "iiot", "up"], start_new_session=True)


def _ready(data_dir: Path) -> bool:
    try:
        with urllib.request.urlopen(f"{running(data_dir).http}/ready", timeout=5) as answer:  # noqa: S310 our own address
            return bool(answer.status == 200)
    except (PortalError, OSError, ValueError):
        return False


def _wait(data_dir: Path, started: subprocess.Popen[bytes], stop: threading.Event) -> bool:
    """Until the portal is ready; False when it ended or was told to stop first."""
    deadline = time.monotonic() + START_SECONDS
    while not _ready(data_dir):
        if started.poll() is not None or time.monotonic() > deadline or stop.wait(0.2):
            return False
    return True


def _play(portal: Portal, stop: threading.Event, started: subprocess.Popen[bytes] | None) -> None:
    logins = _prepare()
    tracks = [device.track() for device in FLEET]
    tally = Tally()
    print(f"  Demo: {len(FLEET)} devices send a week of history, then go on at {SPEED:g} x real time.", flush=True)
    with Progress(tally):
        players = connect(portal, tracks, logins, ["http"] * len(FLEET), tally)
        history(players, PAST_SECONDS, stop)
        drain(players, tally, stop, 120)
        close(players)
        _describe(logins)
        players = connect(portal, tracks, logins, [_protocol(device, portal) for device in FLEET], tally)
        try:
            _keep_sending(players, stop, started)
            drain(players, tally, threading.Event(), 5)
        finally:
            close(players)


def _protocol(device: DemoDevice, portal: Portal) -> str:
    """The device's own; MQTT where the portal runs without a RabbitMQ."""
    return "mqtt" if device.protocol == "amqp" and portal.amqp is None else device.protocol


def _keep_sending(players: list[Player], stop: threading.Event, started: subprocess.Popen[bytes] | None) -> None:
    if started is not None:
        # The portal may end for reasons of its own; then there is nobody to send to.
        threading.Thread(target=_stop_with, args=(started, stop), daemon=True).start()
    replay(players, Pace(SPEED, PAST_SECONDS, loop=True), stop)


def _stop_with(portal: subprocess.Popen[bytes], stop: threading.Event) -> None:
    portal.wait()
    stop.set()


def _prepare() -> list[Login]:
    """The demo tenant, a person who may sign in to it, and its devices."""
    from sqlalchemy import select

    from iiot import tenancy
    from iiot.models import Tenant, User
    from iiot.services import tenants, users

    password = users.one_time_password()
    with tenancy.work(tenancy.system("operator")) as db:
        slug = db.scalar(select(Tenant.slug).where(Tenant.name == TENANT))
        if slug is None:
            made = tenants.create(db, TENANT)
            slug = made.slug
            person = users.create(db, PERSON, password, "Demo", must_change=False)
            users.add_member(db, made.id, person.id, "admin")
        elif db.scalar(select(User.id).where(User.email == PERSON)) is not None:
            users.set_password(db, PERSON, password, must_change=False)
    print(f"\n  Sign in to the demo as {PERSON} with the password {password}", flush=True)
    return make_devices(slug, [device.name for device in FLEET], "demo")


def _describe(logins: list[Login]) -> None:
    """Units, once the signals exist."""
    from sqlalchemy import select, update

    from iiot import tenancy
    from iiot.commands.lookup import operator_for
    from iiot.models import Device, Signal

    with tenancy.work(tenancy.of(operator_for(TENANT))) as db:
        for login, device in zip(logins, FLEET, strict=True):
            owner = select(Device.id).where(Device.uid == login.uid).scalar_subquery()
            for key, unit in _units(device):
                db.execute(update(Signal).where(Signal.device_id == owner, Signal.key == key).values(unit=unit))


def _units(device: DemoDevice) -> list[tuple[str, str]]:
    return [(key, unit) for key, (_, unit) in device.signals.items() if unit]


if __name__ == "__main__":
    sys.exit(main())
