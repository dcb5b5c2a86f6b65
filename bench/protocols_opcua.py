"""OPC UA: 5,000 monitored items that change once a second; how old a value is when the client has it.

The limit, in the same run: a bare asyncua server with 5,000 variables that are written each second, watched by the same client
over the same encryption. Before that: how long it takes from the start of the server until a client has listed 2,000 devices, and
the ten signals of one of them. `python -m bench.protocols_opcua` measures all of it; the last line is JSON.
"""

import asyncio
import contextlib
import datetime
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asyncua import Client, Server, ua
from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256

from bench import report
from bench.ingest_latency import percentile
from bench.servers import Servers, eventually, servers
from iiot import auth, clock, tenancy
from iiot.embedded import ports
from iiot.embedded.up import is_open
from iiot.services import devices
from protocols.opcua_certificates import Keyring
from tests import factories

DEVICES, SIGNALS = 500, 10
ITEMS = DEVICES * SIGNALS
GOAL_SECONDS = 1.0
CROWD = 2_000
START_GOAL_SECONDS = 20.0
PASSWORD = "seven purple lanterns at sea"
PUBLISH_MS = 250
WARM_UP_SECONDS = 3.0
AT_ONCE = 1_000


class _Ages:
    """Age of every value when it arrived, in seconds."""

    def __init__(self) -> None:
        self.ages: list[float] = []

    def datachange_notification(self, _node: Any, _value: Any, data: Any) -> None:
        """Called by asyncua."""
        value = data.monitored_item.Value
        self.ages.append((datetime.datetime.now(datetime.UTC) - value.SourceTimestamp).total_seconds())

    def status_change_notification(self, _status: Any) -> None:
        """Called by asyncua when a subscription ends."""


async def _client(url: str, folder: Path, user: str) -> Client:
    """A client that has not connected yet."""
    certificate, key = folder / "client.der", folder / "client.pem"
    der, pem = Keyring(folder / "client").own(url)
    certificate.write_bytes(der)
    key.write_bytes(pem)
    client = Client(url, timeout=60, watchdog_intervall=60.0)
    client.set_user(user)
    client.set_password(PASSWORD)
    await client.set_security(SecurityPolicyBasic256Sha256, str(certificate), str(key))
    return client


async def browse(url: str, folder: Path, user: str) -> list[int]:
    """How many devices there are, and how many nodes one of them has."""
    async with await _client(url, folder, user) as client:
        devices_ = await (await client.nodes.objects.get_child(["2:Devices"])).get_children()
        return [len(devices_), len(await devices_[-1].get_children())]


async def watch(url: str, folder: Path, user: str, seconds: float) -> dict[str, Any]:
    """Watch ITEMS variables of whatever server this is; what came in `seconds`, after a warm-up."""
    nodes = [ua.NodeId(text, 2) for text in (folder / "nodes").read_text().split("\n")]
    async with await _client(url, folder, user) as client:
        heard = _Ages()
        subscription = await client.create_subscription(PUBLISH_MS, heard, queue_maxsize=10 * ITEMS)
        for start in range(0, len(nodes), AT_ONCE):
            part = [client.get_node(each) for each in nodes[start : start + AT_ONCE]]
            await subscription.subscribe_data_change(part)
        await asyncio.sleep(WARM_UP_SECONDS)
        heard.ages.clear()
        await asyncio.sleep(seconds)
        ages = list(heard.ages)
    return {
        "values_per_s": round(len(ages) / seconds),
        "p50": round(statistics.median(ages), 3) if ages else None,
        "p95": round(percentile(ages, 0.95), 3) if ages else None,
    }


async def bare(port: int, folder: Path) -> None:
    """A server of asyncua as it comes, whose variables are all written once a second."""
    url = f"opc.tcp://127.0.0.1:{port}/iiot"
    server = Server()
    server.set_endpoint(url)
    await server.init()
    der, pem = Keyring(folder / "bare").own(url)
    await server.load_certificate(der, "der")
    await server.load_private_key(pem, format="pem")
    server.set_security_policy([ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt])
    await server.register_namespace("urn:bench")
    nodes = []
    for text in (folder / "nodes").read_text().split("\n"):
        node = ua.NodeId(text, 2)
        await server.nodes.objects.add_variable(node, ua.QualifiedName(text, 2), 0.0)
        nodes.append(node)
    async with server:
        due = time.monotonic()
        for number in range(1_000_000):
            now = datetime.datetime.now(datetime.UTC)
            value = ua.DataValue(ua.Variant(float(number), ua.VariantType.Double), SourceTimestamp=now)
            for node in nodes:
                await server.write_attribute_value(node, value)
            due += 1.0
            await asyncio.sleep(max(0.0, due - time.monotonic()))


def write(folder: Path) -> None:
    """Store a new value of every signal once a second, all devices in one commit, until this process is ended."""
    uids = sorted({text.partition("/")[0] for text in (folder / "nodes").read_text().split("\n")})
    due = time.monotonic()
    for number in range(1_000_000):
        now = clock.now_ms()
        values = {f"s{each}": float(number) for each in range(SIGNALS)}
        factories.ingest([factories.message(uid, (now, dict(values))) for uid in uids])
        due += 1.0
        time.sleep(max(0.0, due - time.monotonic()))


def _tenant() -> tuple[str, list[str]]:
    """A person's address, and the nodes of DEVICES devices."""
    tenant = factories.make_tenant(devices=2 * DEVICES, readings_per_day=10**9)
    user = factories.make_user(tenant, "viewer", password_hash=auth.hash_password(PASSWORD))
    with tenancy.work(tenancy.of(tenant)) as db:
        names = [f"device {number}" for number in range(DEVICES)]
        uids = [devices.create(db, devices.NewDevice(name))[0].uid for name in names]
    return user.email, [f"{uid}/s{number}" for uid in uids for number in range(SIGNALS)]


@contextlib.contextmanager
def _part(bench: Servers, name: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    with bench.process("-m", "bench.protocols_opcua", name, *arguments) as process:
        yield process


def _asked(bench: Servers, port: int, what: str, *arguments: str) -> Any:
    """What a client process found at the server on this port, as soon as that listens."""
    eventually(lambda: is_open("127.0.0.1", port), 120)
    url = f"opc.tcp://127.0.0.1:{port}/iiot"
    argv = [sys.executable, "-m", "bench.protocols_opcua", what, url, str(bench.folder), *arguments]
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=True, timeout=600)
    return json.loads(done.stdout.splitlines()[-1])


def _start(bench: Servers, port: int) -> float:
    """Seconds from the start of the server until a client has seen the crowd; it comes with its own start, some two seconds."""
    tenant = factories.make_tenant(devices=2 * CROWD)
    user = factories.make_user(tenant, "viewer", password_hash=auth.hash_password(PASSWORD))
    factories.make_crowd(tenant, CROWD, SIGNALS)
    began = time.monotonic()
    with bench.process("-m", "protocols", "run", "opcua", IIOT_OPCUA_BIND=f"127.0.0.1:{port}"):
        found = _asked(bench, port, "browse", user.email)
        took = time.monotonic() - began
    if found != [CROWD, SIGNALS + 2]:
        raise RuntimeError(f"the client saw {found}")
    return round(took, 1)


def measure(seconds: float = 20.0, runs: int = 1) -> dict[str, Any]:
    """The worst p95 of the ages over `runs`, and the best one of the bare server, in seconds."""
    ours, limits = [], []
    with servers() as bench:
        user, nodes = _tenant()
        (bench.folder / "nodes").write_text("\n".join(nodes))
        port, other = ports.free_port(), ports.free_port()
        bind = f"127.0.0.1:{port}"
        report.progress(f"OPC UA: start with {CROWD} devices of {SIGNALS} signals")
        start = _start(bench, ports.free_port())
        for number in range(runs):
            report.progress(f"OPC UA: {ITEMS} items, run {number + 1}")
            with (
                bench.process("-m", "iiot", "stream"),
                bench.process("-m", "protocols", "run", "opcua", IIOT_OPCUA_BIND=bind),
                _part(bench, "write", str(bench.folder)),
            ):
                ours.append(_asked(bench, port, "watch", user, str(seconds)))
            report.progress(f"OPC UA: bare server, run {number + 1}")
            with _part(bench, "bare", str(other), str(bench.folder)):
                limits.append(_asked(bench, other, "watch", "anybody", str(seconds)))
    figure = max(each["p95"] or float("inf") for each in ours)
    limit = min(each["p95"] or float("inf") for each in limits)
    rate = min(each["values_per_s"] for each in ours)
    return {
        "figure": figure, "unit": "s, p95 of the age at the client", "limit": limit, "ratio": round(figure / limit, 3),
        "goal": GOAL_SECONDS, "values_per_s": rate, "ours": ours, "bare": limits, "start_s": start, "start_goal": START_GOAL_SECONDS,
        "passed": figure <= GOAL_SECONDS and rate >= 0.95 * ITEMS and start <= START_GOAL_SECONDS,
    }  # fmt: skip


def main() -> None:
    """Measure; or be one of the processes that `measure` starts."""
    name, *arguments = sys.argv[1:] or ["measure", "20"]
    if name == "watch":
        url, folder, user, seconds = arguments
        print(json.dumps(asyncio.run(watch(url, Path(folder), user, float(seconds)))))
    elif name == "browse":
        url, folder, user = arguments
        print(json.dumps(asyncio.run(browse(url, Path(folder), user))))
    elif name == "bare":
        asyncio.run(bare(int(arguments[0]), Path(arguments[1])))
    elif name == "write":
        write(Path(arguments[0]))
    else:
        found = measure(float(arguments[0]) if arguments else 20.0)
        report.row("OPC UA", p95=found["figure"], bare=found["limit"], rate=found["values_per_s"])
        print(json.dumps({"bench": "protocols_opcua", **found}))


if __name__ == "__main__":
    main()
