"""CoAP: confirmable requests a second through the adapter, stored before they are answered.

    python -m bench.protocols_coap [--seconds 10] [--runs 3]

The same clients in the same run ask a bare aiocoap resource that stores nothing (the limit, goal 0.8 of it) and libcoap's example server (a PUT, as
it has no resource for POST), which is shown beside it.
"""

import argparse
import contextlib
import json
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from bench import report
from bench.servers import Servers, eventually, servers
from iiot.embedded.ports import free_port
from tests.services import ROOT

CLIENTS = 64
WINDOW = 4
GOAL = 0.8
PAYLOAD = '{"temperature": 21.5}'
POST, PUT = 2, 3


def load(stack: Servers, port: int, requests: list[Any], seconds: float) -> float:
    """Requests answered 2.xx a second; raises when anything was refused."""
    plan = {"host": "127.0.0.1", "port": port, "seconds": seconds, "window": WINDOW, "requests": requests}
    (stack.folder / "load.json").write_text(json.dumps(plan))
    argv = [sys.executable, "-m", "bench.coap_load", str(stack.folder)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True, timeout=seconds + 60)
    found = json.loads(done.stdout)
    others = {code: count for code, count in found["codes"].items() if not code.startswith("2.")}
    if others:
        raise RuntimeError(f"refused: {others}")
    return float(found["answered"] / found["seconds"])


def answers(port: int) -> bool:
    """Whether something answers a ping there (RFC 7252 section 4.3)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0.2)
        client.connect(("127.0.0.1", port))
        with contextlib.suppress(OSError):
            client.send(b"\x40\x00\x12\x34")
            return bool(client.recv(64))
    return False


@contextlib.contextmanager
def program(argv: list[str], port: int) -> Iterator[None]:
    """A server of somebody else on this port."""
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: answers(port), 20)
        yield
    finally:
        process.kill()
        process.wait()


def make_devices(stack: Servers) -> list[Any]:
    """A POST for each of CLIENTS devices."""
    from iiot import tenancy
    from iiot.services import devices
    from tests import factories

    tenant = factories.make_tenant("bench", readings_per_day=10**9, devices=CLIENTS + 1)
    found = []
    with tenancy.work(tenancy.of(tenant)) as db:
        for number in range(CLIENTS):
            row, token = devices.create(db, devices.NewDevice(name=f"device {number}"))
            found.append([POST, "telemetry", [f"uid={row.uid}", f"token={token}"], 50, PAYLOAD])
    return found


@contextlib.contextmanager
def running(stack: Servers) -> Iterator[dict[str, tuple[int, list[Any]]]]:
    """The three servers: name → port and what to ask."""
    own = make_devices(stack)
    ports = [free_port(kind=socket.SOCK_DGRAM) for _ in range(3)]
    plan = {"adapter": (ports[0], own), "bare": (ports[1], own)}
    with contextlib.ExitStack() as exits:
        variables = {"IIOT_COAP_BIND": f"127.0.0.1:{ports[0]}", "IIOT_DEVICE_RATE": "100000"}
        exits.enter_context(stack.process("-m", "protocols", "run", "coap", **variables))
        eventually(lambda: answers(ports[0]), 30)
        exits.enter_context(program([sys.executable, "-m", "bench.coap_bare", str(ports[1])], ports[1]))
        libcoap = shutil.which("coap-server-notls")
        if libcoap is not None:
            argv = [libcoap, "-A", "127.0.0.1", "-p", str(ports[2]), "-v", "0"]
            exits.enter_context(program(argv, ports[2]))
            plan["libcoap"] = (ports[2], [[PUT, "example_data", [], 0, PAYLOAD] for _ in range(CLIENTS)])
        yield plan


def measure(seconds: float, runs: int) -> dict[str, Any]:
    """{"figure", "unit", "limit", "ratio", "goal", "passed", "libcoap", "runs"}: the medians of so many runs, servers in turn."""
    found: dict[str, list[float]] = {}
    with servers() as stack, running(stack) as plan:
        for number in range(runs):
            for name, (port, requests) in plan.items():
                report.progress(f"run {number + 1} of {runs}: {name}")
                found.setdefault(name, []).append(load(stack, port, requests, seconds))
                time.sleep(0.2)
    median = {name: statistics.median(each) for name, each in found.items()}
    ratio = median["adapter"] / median["bare"]
    for name, each in found.items():
        report.row(name, requests_a_second=median[name], lowest=min(each), highest=max(each))
    return {
        "figure": round(median["adapter"]),
        "unit": "confirmable requests/s",
        "limit": round(median["bare"]),
        "ratio": round(ratio, 3),
        "goal": GOAL,
        "passed": ratio >= GOAL,
        "libcoap": round(median.get("libcoap", 0)) or None,
        "runs": runs,
    }


def main() -> int:
    """0 when the goal was reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    result = measure(given.seconds, given.runs)
    more = {key: value for key, value in result.items() if key not in ("figure", "unit", "limit", "ratio")}
    report.final("coap", result["figure"], result["unit"], result["limit"], **more)
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
