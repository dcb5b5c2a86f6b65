"""The storm of test_kill_storm.py, in a process of its own, as gevent has to be there before everything else.

Usage: python -m tests.faults.kill_storm SECONDS TENANT:UID TENANT:UID. Prints one JSON object. Two tenants share small pools; greenlets read,
write, roll back and ingest, and are killed at random: while they connect, wait for the pool, run a query, commit.
"""

# ruff: noqa: E402
from gevent import monkey

monkey.patch_all()

from psycogreen.gevent import patch_psycopg

patch_psycopg()

import collections
import json
import random
import sys
import time
from collections.abc import Callable

import gevent
from sqlalchemy import select

from iiot import db as engines
from iiot import ids, tenancy
from iiot.clock import now_ms
from iiot.models import Device, Signal, Tenant
from tests.factories import TenantRow, store

SLEEP = tenancy.sql("SELECT pg_sleep(:seconds)")
IN_FLIGHT = 25


class Storm:
    """What was done, what was killed and what leaked."""

    def __init__(self, sides: list[tuple[TenantRow, str]]) -> None:
        self.sides = sides
        self.counts: collections.Counter[str] = collections.Counter()
        self.leaks: list[str] = []

    def read(self, tenant: TenantRow, _uid: str) -> None:
        """Every row that a tenant sees is its own, before and after a wait in the database."""
        with tenancy.work(tenancy.of(tenant)) as db:
            self.check(tenant, set(db.scalars(select(Device.tenant_id))))
            db.execute(SLEEP, {"seconds": random.random() * 0.02})
            self.check(
                tenant,
                set(
                    db.scalars(
                        tenancy.sql("SELECT tenant_id FROM iiot.signal UNION SELECT tenant_id FROM iiot.telemetry")
                    )
                ),
            )

    def read_nothing(self, _tenant: TenantRow, _uid: str) -> None:
        """Without a tenant there are no rows, whoever used the connection before."""
        with tenancy.work(tenancy.system("health")) as db:
            db.execute(SLEEP, {"seconds": random.random() * 0.005})
            for model in (Device.id, Signal.id, Tenant.id):
                if found := db.scalars(select(model)).all():
                    self.leaks.append(f"no tenant saw {len(found)} rows of {model}")

    def write_and_roll_back(self, tenant: TenantRow, _uid: str) -> None:
        """A write that is thrown away must not come back in another greenlet's transaction."""
        try:
            with tenancy.work(tenancy.of(tenant)) as db:
                db.add(Device(uid=ids.new_uid(), name="rolled back"))
                db.flush()
                db.execute(SLEEP, {"seconds": random.random() * 0.01})
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass

    def ingest(self, tenant: TenantRow, uid: str) -> None:
        """Values say whose they are, so that a strange one is seen afterwards."""
        outcomes = store(uid, (now_ms() + random.randrange(60_000), {"mark": float(tenant.tenant_id)}))
        if outcomes[0].status != "stored":
            self.leaks.append(f"ingest answered {outcomes[0].code}")

    def check(self, tenant: TenantRow, seen: set[int]) -> None:
        """Note a leak, or that a tenant does not see what is its own."""
        if seen != {tenant.tenant_id}:
            self.leaks.append(f"tenant {tenant.tenant_id} saw rows of {sorted(seen)}")

    def job(self) -> None:
        """One piece of work; being killed is the point, everything else is counted by its name."""
        tenant, uid = random.choice(self.sides)
        kinds: list[Callable[[TenantRow, str], None]] = [
            self.read,
            self.read,
            self.read_nothing,
            self.write_and_roll_back,
            self.ingest,
        ]
        kind = random.choice(kinds)
        try:
            kind(tenant, uid)
            self.counts["finished"] += 1
        except gevent.GreenletExit:
            self.counts["killed"] += 1
            self.counts[f"killed in {kind.__name__}"] += 1
            raise
        except Exception as error:
            self.counts[f"{type(error).__name__}: {error}"[:200]] += 1

    def run(self, seconds: float) -> None:
        """Keep `IN_FLIGHT` greenlets going and kill a third of them somewhere on their way."""
        running: set[gevent.Greenlet] = set()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            running = {greenlet for greenlet in running if not greenlet.dead}
            while len(running) < IN_FLIGHT:
                greenlet = gevent.spawn(self.job)
                running.add(greenlet)
                if random.random() < 0.35:
                    gevent.spawn_later(random.random() * 0.08, greenlet.kill, block=False)
            gevent.wait(list(running), timeout=0.05, count=1)
        gevent.joinall(list(running), timeout=30)
        self.counts["unfinished"] += sum(not greenlet.dead for greenlet in running)

    def pools(self) -> dict[str, bool]:
        """Whether every pool gives all of its connections again, at once, each clean."""
        whole = {}
        for role, reason in (("app", "health"), ("ingest", "ingest")):
            size, overflow, _ = engines.POOLS[role]
            pool = engines.engine(role).pool
            idle = pool.checkedout() == 0  # type: ignore[attr-defined]
            opened = [tenancy.work(tenancy.system(reason)) for _ in range(size + overflow)]
            settings = [
                session.__enter__().scalar(tenancy.sql("SELECT current_setting('app.tenant_id', true)"))
                for session in opened
            ]
            for session in opened:
                session.__exit__(None, None, None)
            whole[role] = idle and settings == [""] * len(opened)
        return whole


def main() -> None:
    """Run the storm and print what happened."""
    # Small pools, so that connections change hands between the tenants all the time.
    engines.POOLS["app"] = (2, 2, 15_000)
    engines.POOLS["ingest"] = (1, 1, 15_000)
    sides = [(TenantRow(int(tenant), "", ""), uid) for tenant, _, uid in (side.partition(":") for side in sys.argv[2:])]
    storm = Storm(sides)
    storm.run(float(sys.argv[1]))
    print(json.dumps({"leaks": storm.leaks[:20], "counts": dict(storm.counts), "pools": storm.pools()}))


if __name__ == "__main__":
    main()
