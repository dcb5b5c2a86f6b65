"""Good and nearly good messages for the targets that the poison corpus was not made for, by the target's name."""

import json
from collections.abc import Iterator

import cbor2
import pika
from aiocoap import Message, oscore
from aiocoap.numbers import codes
from pika import frame, spec

from tests.fuzz.targets import KEY, NOW

READING = {"ts": NOW, "values": {"temperature": 21.5, "on": True}, "ack": True}
CHILDREN = [{"child": READING}, {"a": [READING, READING], "b": {"n": 1}, " bad ": READING}, {"a": [], "b": 5}]


def _delivery(properties: pika.BasicProperties, body: bytes, piece: int) -> bytes:
    method = spec.Basic.Deliver("ctag1.0", 7, False, "iiot", "telemetry.pump")
    frames = [frame.Method(1, method), frame.Header(1, len(body), properties)]
    frames += [frame.Body(1, body[start : start + piece]) for start in range(0, len(body), piece)]
    return b"".join(each.marshal() for each in frames)


def _amqp() -> Iterator[bytes]:
    yield _delivery(pika.BasicProperties(), b"{}", 100)
    headers = {"command-id": "abc", "n": 5}
    rich = pika.BasicProperties(
        "application/json", None, headers, 2, 1, "c", "r", "60000", "m", 5, "t", "pump", "a", "c"
    )
    yield _delivery(rich, b'{"a":1}', 3) + frame.Heartbeat().marshal() + _delivery(rich, b"", 1)
    yield (
        frame.Method(1, spec.Basic.CancelOk("ctag1.0")).marshal()
        + frame.Method(0, spec.Connection.Close(320, "bye", 0, 0)).marshal()
    )


class Device(oscore.CanProtect, oscore.SecurityContextUtils):  # type: ignore[misc]
    """The device's side of the context of the targets."""

    def __init__(self) -> None:
        self.alg_aead = oscore.algorithms["AES-CCM-16-64-128"]
        self.hashfun = oscore.hashfunctions["sha256"]
        self.id_context = None
        self.sender_id, self.recipient_id = KEY.kid, KEY.own_id
        self.derive_keys(KEY.salt, KEY.secret)
        self.sender_sequence_number = 0

    def post_seqnoincrease(self) -> None:
        """It does not restart."""


def _oscore() -> Iterator[bytes]:
    for plain in (
        Message(code=codes.POST, payload=b'{"a":1}', uri_path=["telemetry"], content_format=50),
        Message(code=codes.GET, uri_path=["command"], observe=0),
        Message(code=codes.PUT, payload=b"x" * 40, block1=(1, True, 0), uri_query=["a=b"]),
    ):
        outer, _ = Device().protect(plain)
        outer.mid, outer.mtype, outer.token = 5, 0, b"tk"
        whole = bytes(outer.encode())
        # Not of a group: the bit of RFC 9203 in the first byte of the option.
        yield whole
        yield whole.replace(b"\x09\x00\x01", b"\x29\x00\x01")


def _inside() -> Iterator[bytes]:
    for plain in (
        b"\x02\xb9telemetry\xff{}",
        b"\x01\x60\xb7command",
        b"\x45\xff{}",
        b"\x01\xff",
        b"\x00",
        b"\x01" + b"\x10" * 900,
        b"\x01" + b"\xe0\xff\xff" * 3,
    ):
        outer = Message(code=codes.POST, payload=plain + b"\0" * 8)
        outer.opt.oscore = b"\x09\x00" + KEY.kid
        outer.mid, outer.mtype, outer.token = 5, 0, b"tk"
        yield bytes(outer.encode())


SEEDS: dict[str, list[bytes]] = {
    "amqp": list(_amqp()),
    "gateway-json": [json.dumps(each).encode() for each in CHILDREN],
    "gateway-cbor": [cbor2.dumps(each) for each in CHILDREN],
    "home": [
        b'home/h/n/light/lamp/state\0{"state": "on", "brightness": 40}',
        b"home/h/n/sensor/t/state\x0021.5",
        b"home/h/n/status\0online",
        b"home/h/n/light/lamp/set\0ON",
    ],
    "answer": [
        b'{"status": "done", "result": {"a": [1, "x", null]}}',
        b'{"status": "failed", "id": "abc", "result": "why"}',
        b'{"status": "other"}',
    ],
    "oscore": list(_oscore()),
    "oscore-inside": [*_inside(), *_oscore()],
}
