"""The metrics of processes that write them to files, for tests that start an adapter."""

from pathlib import Path

from prometheus_client import CollectorRegistry, multiprocess


def metric(folder: Path, alive: int | None, name: str, **labels: str) -> float:
    """A metric summed up over the processes of a folder, of whom `alive` alone still runs; 0 when there is none yet."""
    for path in folder.glob("gauge_live*.db"):
        pid = path.stem.rpartition("_")[2]
        if pid != str(alive):
            # What the supervisor does when a process has ended.
            multiprocess.mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
    whole = CollectorRegistry()
    multiprocess.MultiProcessCollector(whole, str(folder))  # type: ignore[no-untyped-call]
    return whole.get_sample_value(name, labels) or 0.0
