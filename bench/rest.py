"""Reading a device over REST with a JWT, behind gunicorn, beside a bare Flask route with the same query under the same gunicorn."""

import argparse
import statistics

from bench import http_load, report
from bench.ingest import make_fleet
from bench.ingest_latency import add_member, percentile, sign_in
from bench.servers import Servers, eventually, servers
from iiot.embedded.ports import free_port
from tests.services import http_status

USERS = 100


def _serve(bench: Servers, application: str, port: int):  # type: ignore[no-untyped-def]
    return bench.process(
        "-m", "gunicorn", "-c", "config/gunicorn.conf.py", application, IIOT_HTTP_BIND=f"127.0.0.1:{port}"
    )


def _run(
    bench: Servers, application: str, paths: list[str], options: argparse.Namespace
) -> tuple[float, http_load.Result]:
    """(answers a second when saturated, the paced run)."""
    port = free_port()
    ours = application.startswith("app_advanced")
    with _serve(bench, application, port):
        probe = "/ready" if ours else paths[0]
        eventually(lambda: http_status(f"http://127.0.0.1:{port}{probe}") == 200, 30)
        token = sign_in(f"http://127.0.0.1:{port}") if ours else None
        requests = [http_load.request(path, token) for path in paths]
        http_load.saturate(port, requests, USERS, 1.0)
        flooded = http_load.saturate(port, requests, USERS, options.seconds)
        paced = http_load.pace(port, requests, USERS, options.rate, options.seconds)
    if flooded.bad or paced.bad:
        raise RuntimeError(f"{application}: {flooded.bad + paced.bad} answers were not 200")
    return flooded.rate, paced


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m bench.rest", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="runs of each, in turn; medians count")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of a run")
    parser.add_argument("--rate", type=float, default=300.0, help="requests a second of the paced run, 100 users")
    options = parser.parse_args()
    with servers() as bench:
        tenant_id, uids = make_fleet(USERS)
        add_member(tenant_id)
        ours, bare, p95 = [], [], []
        for run in range(options.runs):
            report.progress(f"bare route {run + 1} of {options.runs}")
            rate, _ = _run(bench, "bench.bare_app:app", [f"/devices/{uid}" for uid in uids], options)
            bare.append(rate)
            report.progress(f"product {run + 1} of {options.runs}")
            rate, paced = _run(bench, "app_advanced:app", [f"/api/v1/devices/{uid}" for uid in uids], options)
            ours.append(rate)
            p95.append(percentile(paced.latencies, 0.95))
            report.row(
                f"run {run + 1}",
                bare_per_s=bare[-1],
                product_per_s=rate,
                paced_p50_ms=percentile(paced.latencies, 0.5),
                paced_p95_ms=p95[-1],
            )
    figure, limit, latency = statistics.median(ours), statistics.median(bare), statistics.median(p95)
    report.final(
        "rest", round(figure), "requests/s", round(limit), paced_per_s=options.rate, paced_p95_ms=round(latency, 1)
    )
    return 0 if figure / limit >= 0.8 and latency <= 20 else 1


if __name__ == "__main__":
    raise SystemExit(main())
