"""`python -m bench`: every benchmark, one after the other, each in a process of its own; last, what the idle stack needs."""

import subprocess
import sys

BENCHES = ("ingest", "protocols", "rest", "query", "rls", "tenants", "idle")


def main() -> int:
    """0 when every benchmark reached its goals."""
    missed = []
    for name in BENCHES:
        print(f"\n== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"bench.{name}"], check=False).returncode:
            missed.append(name)
    if missed:
        print(f"\ngoals missed: {', '.join(missed)}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
