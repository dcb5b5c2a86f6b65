"""CBOR and SenML: cut, endless, tagged, or no pack."""

import random
from collections.abc import Iterator
from typing import Any

import cbor2

from tests.poison.item import CBOR, SENML, SENML_CBOR, Item, group


def cbor() -> Iterator[Item]:
    """CBOR that is cut, endless, tagged or no JSON."""
    whole = cbor2.dumps([{"ts": 1_766_000_000_000, "values": {"abc": 1.5, "text": "x" * 30}}])
    yield from group(
        "not-cbor", CBOR, {f"cut at {place}": whole[:place] for place in (1, 5, 9, 14, 20, 31, len(whole) - 1)}
    )
    coded = {
        "cbor-type": {
            "a byte string": "a1616142ffff",
            "undefined": "a16161f7",
            "a simple value": "a16161f0",
            "simple 255": "a16161f8ff",
            "a number as a key": "a10102",
            "a list as a key": "a18001",
            "a map as a key": "a1a001",
            "a time": "a16161c11a00000000",
            "a big number": "a16161c240",
            "a big float": "a16161c5821b7fffffffffffffff01",
            "a decimal": "a16161c4821b7fffffffffffffff01",
            "a loop": "d81c81d81d00",
            "a pattern": "a16161d8236128",
            "an unknown tag": "a16161d9ffff00",
            "itself": "d9d9f7a1616101",
            "ten thousand tags": "c1" * 30 + "00",
            "a reference": "d81d00",
            "MIME": "a16161d82478" + "20" + "61" * 32,
            "a byte string at the top": "4161",
            "a set": "d9010281" + "01",
        },
        "not-finite": {
            "NaN": "a16161f97e00",
            "infinity": "a16161f97c00",
            "minus infinity": "a16161fbfff0000000000000",
            "NaN single": "a16161fa7fc00000",
        },
        "duplicate-key": {"a key that stands twice": "a2616101616102"},
        "not-utf8": {"text that is no UTF-8": "a1616161ff", "a key that is no UTF-8": "a161ff01"},
        "not-cbor": {
            "a text of 2**63": "7b7fffffffffffffff61",
            "a text of 2**64": "7bffffffffffffffff61",
            "a list of 2**59": "9b07ffffffffffffff",
            "a list of 2**64": "9bffffffffffffffff",
            "a map of 2**64": "bbffffffffffffffff",
            "4 GiB of bytes": "5affffffff00",
            "a reserved length": "1c",
            "reserved too": "a161611d",
            "a break": "ff",
            "two items": "a1616101a1616101",
            "an endless list": "9f0101",
            "an endless map": "bf616101",
            "an endless text": "7f6161",
            "an endless text of bytes": "7f4161ff",
            "a map without its value": "a16161",
            "a break in a list": "8201ff",
            "noise": "".join(f"{byte:02x}" for byte in random.Random(7).randbytes(64)),
        },
        "too-deep": {"lists": "81" * 2000 + "00", "endless lists": "9f" * 100_000, "maps": "a16161" * 3000 + "01"},
        "empty": {"an empty list": "80", "an empty map": "a0"},
        "not-an-object": {"a number": "01", "a text": "6161", "null": "f6", "true": "f5", "numbers": "83010203"},
        "too-many-readings": {"10,001 elements": "992711" + "a1616101" * 10_001},
    }
    for code, given in coded.items():
        yield from group(code, CBOR, {f"CBOR: {name}": bytes.fromhex(hexed) for name, hexed in given.items()})
    yield Item("CBOR: too large", b"\x9f" + b"\x01" * 262_145, CBOR, "too-large")
    for number, (hexed, code) in enumerate(
        {"f6": "value-null", "1bffffffffffffffff": None, "3bffffffffffffffff": None, "fb7fefffffffffffff": None}.items()
    ):
        key = f"good.cbor.{number}"
        body = b"\xa2" + cbor2.dumps(key) + b"\x01" + cbor2.dumps(f"c{number}") + bytes.fromhex(hexed)
        yield Item(f"CBOR: value {hexed}", body, CBOR, code, key)


def senml() -> Iterator[Item]:
    """Packs that are none, and records that are none in a pack that is one."""
    yield from group(
        "not-senml",
        SENML,
        {
            "one record": '{"n":"a","v":1}',
            "SenML: a number": "5",
            "SenML: numbers": "[1]",
            "a pack in a pack": "[[]] ",
            "a version": '[{"bver":99,"n":"a","v":1}]',
            "a long version": '[{"bver":' + "9" * 300 + ',"n":"a","v":1}]',
            "a base of numbers": '[{"bn":5,"n":"a","v":1}]',
            "a base time of text": '[{"bt":"x","n":"a","v":1}]',
            "a base value that is true": '[{"bv":true,"n":"a","v":1}]',
            "null as a base": '[{"bn":null,"n":"a","v":1}]',
        },
    )
    yield from group("empty", SENML, {"an empty pack": "[]" + " "})
    yield from group("too-many-readings", SENML, {"10,001 records": "[" + ",".join(['{"n":"a","v":1}'] * 10_001) + "]"})
    for number, (record, code) in enumerate(
        {
            '{"n":"a","v":1,"vs":"x"}': "senml-field",
            '{"n":"a","vd":"aGk"}': "senml-field",
            '{"n":"a","s":1}': "senml-field",
            '{"n":"a","v":"1"}': "senml-field",
            '{"n":"a","vb":1}': "senml-field",
            '{"n":"a","vs":1}': "senml-field",
            '{"n":"a"}': "empty",
            '{"n":5,"v":1}': "key-invalid",
            '{"n":"%s","v":1}' % ("n" * 129): "key-invalid",
            '{"n":"a b","v":1}': "key-invalid",
            '{"n":"a","v":1,"t":"x"}': "ts-invalid",
            '{"n":"a","v":1,"t":1e13}': "ts-invalid",
            '{"n":"a","v":1,"t":-1e9}': "ts-too-old",
            '{"n":"a","v":1,"x_":1}': "unknown-field",
            '{"n":"a","v":1.7e308,"bv":1.7e308}': "number-out-of-range",
            '{"n":"a","vs":"\\u0000"}': "string-invalid",
        }.items()
    ):
        key = f"good.senml.{number}"
        yield Item(f"SenML: {record[:40]}", f'[{{"n":"{key}","v":1}},{record}]'.encode(), SENML, code, key)
    packs: dict[str, tuple[Any, str]] = {
        "an unknown label": ([{0: "x", 2: 1, 99: 1}], "unknown-field"),
        "a value of bytes": ([{0: "x", 2: b"\x01"}], "cbor-type"),
        "a list as a label": (bytes.fromhex("81a1800" + "1"), "cbor-type"),
        "a map": ({0: "x", 2: 1}, "not-senml"),
        "a large version": ([{-1: 2**70, 0: "x", 2: 1}], "cbor-type"),
    }
    for name, (pack, code) in packs.items():
        yield Item(f"SenML CBOR: {name}", pack if isinstance(pack, bytes) else cbor2.dumps(pack), SENML_CBOR, code)
