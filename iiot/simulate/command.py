"""`python -m iiot simulate`."""

import json
import os
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from iiot import ending
from iiot.simulate.amqp_link import AmqpLink
from iiot.simulate.coap_link import CoapLink
from iiot.simulate.http_link import HttpLink
from iiot.simulate.links import Link, LinkError, MqttLink, Tally
from iiot.simulate.portal import Login, Portal, PortalError, at, make_devices, only_tenant, running
from iiot.simulate.replay import Pace, Player, Progress, drain, history, replay
from iiot.simulate.tracks import Track, TrackError, read_csv

LINKS: dict[str, Callable[[Portal, Login, Tally], Link]] = {
    "amqp": AmqpLink,
    "coap": CoapLink,
    "http": HttpLink,
    "mqtt": MqttLink,
}
DEMO_DATA = Path(__file__).resolve().parents[2] / "demo" / "data"
MOST_DEVICES = 500
MOST_HISTORY = 30 * 86_400 - 600
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


class Duration(click.ParamType[float]):
    """`90`, `90s`, `10m`, `24h`, `7d` → seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds; fails as wrong use."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", str(value))
        if not found or float(found[1]) == 0:
            self.fail(f"{value!r} is not a duration like 90s, 10m, 24h or 7d", param, ctx)
        return float(found[1]) * UNITS[found[2]]


@dataclass(frozen=True)
class Options:
    """The command line."""

    files: tuple[Path, ...]
    protocol: str
    speed: float
    devices: int | None
    loop: bool
    duration: float | None
    past: float | None
    tenant: str | None
    uid: str | None
    token: str | None
    url: str | None
    mqtt: str | None
    coap: str | None
    amqp: str | None
    data_dir: Path | None
    as_json: bool


@click.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--protocol", type=click.Choice(sorted(LINKS)), default="mqtt", show_default=True, help="How the devices send."
)
@click.option(
    "--speed",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Recorded seconds per second.",
)
@click.option(
    "--devices",
    type=click.IntRange(1, MOST_DEVICES),
    help="How many devices; the files are dealt round.  [default: one per file]",
)
@click.option("--loop", is_flag=True, help="Begin again at the end.")
@click.option("--duration", type=Duration(), help="Stop after 90s, 10m, 24h.  [default: at the end of the files]")
@click.option(
    "--history", "past", type=Duration(), help="First send this much at once, as if recorded until now: 24h, 7d."
)
@click.option("--tenant", help="Id, slug or name of the tenant that gets the devices.  [default: the only one]")
@click.option("--uid", help="Send as this device instead of making some.")
@click.option(
    "--token",
    envvar="IIOT_DEVICE_TOKEN",
    help="The token of --uid; better in IIOT_DEVICE_TOKEN, where no other user sees it.",
)
@click.option("--url", help="A portal elsewhere, as https://portal.example.com; with --uid and --token.")
@click.option("--mqtt", metavar="HOST:PORT", help="The MQTT broker of --url.")
@click.option("--coap", metavar="HOST:PORT", help="The CoAP server of --url.")
@click.option("--amqp", metavar="URL", help="The AMQP broker of --url, as amqps://broker.example.com/iiot.")
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="The running portal's.  [default: IIOT_DATA_DIR, else ./var]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def simulate(**given: Any) -> None:
    """Replay recorded series as devices of a running portal.

    FILES are CSV: a header, the time in the first column, a signal per further column. Without FILES the series of `demo/data` are replayed.
    Timestamps are moved to now. Devices send over MQTT, CoAP, AMQP or HTTP, as real ones do, and keep their names from one run to the next.

    Ctrl-C stops it. Exit status: 0 everything was stored, 1 something was not, 2 wrong use.
    """
    options = Options(**given)
    if (options.uid is None) != (options.token is None):
        raise click.UsageError("--uid and --token belong together.")
    if options.url and not options.uid:
        raise click.UsageError("--url needs --uid and --token: devices are made in the portal of this machine only.")
    if options.past and options.past > MOST_HISTORY:
        raise click.UsageError("--history: the portal accepts readings from 30 days back at most.")
    if options.uid and (options.devices or 1) > 1:
        raise click.UsageError("--uid is one device; leave --devices away.")
    try:
        sys.exit(_run(options))
    except (PortalError, TrackError, LinkError) as error:
        raise click.ClickException(str(error)) from error


def _run(options: Options) -> int:
    tracks = _tracks(options)
    portal = at(options.url, options.mqtt, options.coap, options.amqp) if options.url else running(_data_dir(options))
    logins = _logins(options, tracks)
    tally = Tally()
    stop = threading.Event()
    ending.set_on_signals(stop, insist=True)
    click.echo(
        f"{len(tracks)} device(s) over {options.protocol.upper()} to {portal.http}, {options.speed:g} x real time",
        err=True,
    )
    players = connect(portal, tracks, logins, [options.protocol] * len(tracks), tally)
    try:
        with Progress(tally):
            if options.past:
                history(players, options.past, stop)
            replay(players, Pace(options.speed, options.past or 0.0, options.loop, options.duration), stop)
            stored = drain(players, tally, threading.Event(), 5.0 if stop.is_set() else 15.0)
    finally:
        close(players)
    result = {"devices": len(tracks), "sent": tally.sent, "acknowledged": tally.acknowledged, "errors": tally.errors}
    click.echo(
        json.dumps(result) if options.as_json else "  ".join(f"{name} {count:,}" for name, count in result.items())
    )
    return 0 if stored and not tally.errors else 1


def _tracks(options: Options) -> list[Track]:
    files = list(options.files) or sorted(DEMO_DATA.glob("*.csv"))
    if not files:
        raise TrackError("no files were named and demo/data has none")
    if options.uid and len(files) > 1:
        files = files[:1]
    found = [read_csv(path) for path in files]
    wanted = options.devices or len(found)
    dealt = [found[number % len(found)] for number in range(wanted)]
    rounds = [number // len(found) for number in range(wanted)]
    return [
        Track(track.name if not again else f"{track.name} {again + 1}", track.points, track.length)
        for track, again in zip(dealt, rounds, strict=True)
    ]


def _data_dir(options: Options) -> Path:
    if options.data_dir is not None:
        # The settings of the running portal are read there, too.
        os.environ["IIOT_DATA_DIR"] = str(options.data_dir)
        return options.data_dir
    from iiot import config

    return config.load().data_dir


def _logins(options: Options, tracks: list[Track]) -> list[Login]:
    if options.uid and options.token:
        return [Login(options.uid, options.token)]
    return make_devices(options.tenant or only_tenant(), [track.name for track in tracks], "simulated")


def connect(
    portal: Portal, tracks: list[Track], logins: list[Login], protocols: list[str], tally: Tally
) -> list[Player]:
    """A player per device; raises LinkError, and leaves no connection behind then."""
    players: list[Player] = []
    try:
        for track, login, protocol in zip(tracks, logins, protocols, strict=True):
            link: Link = LINKS[protocol](portal, login, tally)
            players.append(Player(track, link))
    except BaseException:
        close(players)
        raise
    return players


def close(players: list[Player]) -> None:
    """End all connections, those of many devices side by side."""
    threads = [threading.Thread(target=player.link.close) for player in players]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
