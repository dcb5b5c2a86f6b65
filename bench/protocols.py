"""AMQP, CoAP and OPC UA, each against a limit measured in the same run on the same servers.

    python -m bench.protocols                     # all of them
    python -m bench.protocols --only coap --seconds 10 --runs 5

A part is a module `bench/protocols_<name>.py` with `measure(seconds, runs)`; it returns a dict with `figure`, `unit`,
`limit` (what was possible in the same run), `ratio`, `goal` (in words) and `passed`. MQTT has its own: `bench.ingest`.
"""

import argparse
import importlib
from typing import Any

from bench import report

PARTS = ("amqp", "coap", "opcua")


def main() -> int:
    """0 when every part reached its goal."""
    parser = argparse.ArgumentParser(prog="python -m bench.protocols", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", choices=PARTS, action="append", help="one part; may be given several times")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long one run of a part sends (default 10)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each part; the median counts (default 3)")
    options = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    for name in options.only or PARTS:
        report.progress(f"{name}: {options.runs} runs of {options.seconds:g} s")
        part = importlib.import_module(f"bench.protocols_{name}")
        found[name] = part.measure(options.seconds, options.runs)
        report.row(name, **found[name])
    first = next(iter(found.values()))
    passed = all(figures["passed"] for figures in found.values())
    report.final("protocols", first["figure"], first["unit"], first["limit"], parts=found, passed=passed)
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
