"""Two hundred and more messages that a portal must survive, made here, always the same ones.

`CORPUS` lists them: what is sent, the content type (None: not said), and what becomes of it. `code` is the code that
`rejected_message` keeps, None for a message that is strange and still right. `key` is a signal that is stored all the
same, for messages that are wrong in part. Payloads are all different, so that each is found again in the database.
"""

import json
import random
import struct
from collections.abc import Iterator

from iiot.clock import now_ms
from tests.poison import packed, partly, texts
from tests.poison.item import Item


def _types() -> Iterator[Item]:
    for number, kind in enumerate(
        ("text/html", "application/xml", "application/octet-stream", "image/png", "application/x-protobuf")
    ):
        yield Item(f"type {kind}", b'{"type":%d}' % number, kind, "unsupported-content-type")


def _noise() -> Iterator[Item]:
    """Good messages with a few bytes changed: whatever they are now, they are stored or kept. `code` is "?"."""
    chance = random.Random(20_260)
    whole = json.dumps([{"ts": now_ms(), "values": {"noise": 1.5, "text": "x"}, "ack": True}]).encode()
    for number in range(20):
        broken = bytearray(whole + b"%3d" % number)
        for _ in range(4):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        yield Item(f"noise {number}", bytes(broken) + struct.pack(">I", number), None, "?")


CORPUS: list[Item] = [
    *texts.refused(),
    *texts.right(),
    *partly.keys(),
    *partly.values(),
    *partly.times(),
    *partly.envelopes(),
    *packed.cbor(),
    *packed.senml(),
    *_types(),
    *_noise(),
]
