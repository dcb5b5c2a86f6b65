"""Greenlets are killed at random in the middle of their work, as gunicorn does at time-outs and reloads: no tenant ever sees another's rows."""

import json
import os
import subprocess
import sys

import pytest

from iiot.config import Settings
from tests import factories, services

SECONDS = float(os.environ.get("IIOT_STORM_SECONDS", "30"))


@pytest.mark.timeout(SECONDS + 90)
def test_no_greenlet_killed_mid_query_leaks_a_row_or_a_connection(settings: Settings) -> None:
    sides = [
        (tenant, factories.make_device(tenant)) for tenant in (factories.make_tenant("A"), factories.make_tenant("B"))
    ]
    for tenant, device in sides:
        factories.store(device.uid, mark=float(tenant.tenant_id))
    arguments = [f"{tenant.tenant_id}:{device.uid}" for tenant, device in sides]
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.faults.kill_storm", str(SECONDS), *arguments],
        cwd=services.ROOT, env=services.environment(settings), capture_output=True, text=True, timeout=SECONDS + 60, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-4000:]
    report = json.loads(ended.stdout.splitlines()[-1])
    print(json.dumps(report["counts"], indent=1))
    assert report["leaks"] == []
    assert report["pools"] == {"app": True, "ingest": True}
    counts = report["counts"]
    assert counts["killed"] >= 200, counts
    assert counts["finished"] >= counts["killed"], counts
    assert counts["unfinished"] == 0, counts
    assert {name for name in counts if not name.startswith(("killed", "finished", "unfinished"))} == set(), counts
    assert factories.rows("SELECT count(*) FROM iiot.device WHERE name = 'rolled back'") == [(0,)]
    assert factories.rows("SELECT count(*) FROM iiot.telemetry WHERE num <> tenant_id") == [(0,)]
    assert factories.rows("SELECT count(DISTINCT tenant_id), count(*) > 50 FROM iiot.telemetry") == [(2, True)]
