"""`python -m tests.fuzz TARGET SECONDS FOLDER`: one parser under atheris, or under random changes on machines that it has no wheel for.

Begins with the poison corpus and the target's own seeds. Ends with status 1 when the parser raised what it may not; FOLDER then has the input.
"""

import platform
import random
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.poison.corpus import CORPUS

LONGEST = 4096


def seeds(name: str, folder: Path) -> list[bytes]:
    """The small ones of the corpus and those made for this target, as files for the fuzzer and as bytes."""
    from tests.fuzz.seeds import SEEDS

    folder.mkdir(parents=True, exist_ok=True)
    found = [item.payload for item in CORPUS if len(item.payload) <= LONGEST] + SEEDS.get(name, [])
    for number, payload in enumerate(found):
        (folder / f"{number:04}").write_bytes(payload)
    return found


def with_atheris(name: str, seconds: int, folder: Path) -> None:
    """Coverage of our Python code leads it. Does not return. Raises ImportError where there is no atheris."""
    import atheris

    with atheris.instrument_imports(
        include=["iiot.payloads", "iiot.services.command_delivery", "protocols", "aiocoap", "paho.mqtt.properties"]
    ):
        from tests.fuzz.targets import TARGETS

    seeds(name, folder / "seeds")
    target = TARGETS[name]
    flags = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", "-timeout=10", "-rss_limit_mb=1024", "-verbosity=1"]
    atheris.Setup([sys.argv[0], *flags, f"-artifact_prefix={folder}/", str(folder / "seeds")], target)
    atheris.Fuzz()


def with_chance(target: Callable[[bytes], None], seconds: int, folder: Path, known: list[bytes]) -> int:
    """Seeds with bytes changed, cut, doubled and joined; for machines that atheris has no wheel for."""
    chance, runs, deadline = random.Random(time.time_ns()), 0, time.monotonic() + seconds
    while time.monotonic() < deadline:
        data = bytearray(chance.choice(known))
        for _ in range(chance.randrange(1, 5)):
            place, kind = chance.randrange(len(data) + 1), chance.randrange(4)
            if kind == 0:
                data[place : place + 1] = chance.randbytes(1)
            elif kind == 1:
                del data[place : place + chance.randrange(1, 9)]
            elif kind == 2:
                data[place:place] = chance.choice(known)[: chance.randrange(40)]
            else:
                data[place:place] = data[place : place + chance.randrange(1, 20)]
        try:
            target(bytes(data[:LONGEST]))
        except Exception:
            (folder / "crash").write_bytes(data[:LONGEST])
            traceback.print_exc()
            return 1
        runs += 1
    print(f"{runs} runs")
    return 0


def main() -> int:
    """See the module."""
    name, seconds, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    try:
        with_atheris(name, seconds, folder)
    except ModuleNotFoundError as error:
        if error.name != "atheris" or (sys.platform, platform.machine()) == ("linux", "x86_64"):
            raise
    from tests.fuzz.targets import TARGETS

    return with_chance(TARGETS[name], seconds, folder, seeds(name, folder / "seeds"))


if __name__ == "__main__":
    sys.exit(main())
