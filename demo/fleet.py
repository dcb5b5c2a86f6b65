"""The devices of the demo: which series each replays, as which signal, over which protocol."""

from dataclasses import dataclass
from pathlib import Path

from iiot.simulate.tracks import Track, merge, read_csv

DATA = Path(__file__).resolve().parent / "data"


@dataclass(frozen=True)
class DemoDevice:
    """A device: its name, its protocol, and its signals as {key: (file, unit)}."""

    name: str
    protocol: str
    signals: dict[str, tuple[str, str]]

    def track(self) -> Track:
        """What it replays."""
        return merge(self.name, [read_csv(DATA / f"{file}.csv", key) for key, (file, _) in self.signals.items()])


FLEET = (
    DemoDevice("Office", "mqtt", {"temperature": ("office-temperature", "°F")}),
    DemoDevice(
        "Web server",
        "mqtt",
        {
            "cpu": ("web-server-cpu", "%"),
            "network_in": ("web-server-network-in", "B"),
            "disk_write": ("web-server-disk-write", "B"),
        },
    ),
    DemoDevice("Batch server", "mqtt", {"cpu": ("batch-server-cpu", "%")}),
    DemoDevice("Database", "amqp", {"cpu": ("database-cpu", "%")}),
    DemoDevice("Taxi counter", "http", {"passengers": ("taxi-demand", "")}),
    DemoDevice("Press", "coap", {"load": ("press-load", "kN")}),
)
