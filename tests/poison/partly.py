"""Messages that are wrong in part: what is right in them is stored."""

import json
from collections.abc import Iterator
from typing import Any

from iiot.clock import now_ms
from tests.poison.item import Item

# A signal that is a number before the first of these messages comes.
TYPED = "typed"


def keys() -> Iterator[Item]:
    """Keys that are none, each beside a good one."""
    for number, key in enumerate(
        (
            "",
            " ",
            "a b",
            "k" * 129,
            "k" * 10_000,
            "\0",
            "a\0b",
            "a\nb",
            "a\r\nSet-Cookie: x",
            "\t",
            "\x1b[31mred",
            "\x7f",
            "é",
            "ключ",
            "°C",
            "\u202eevil",
            "\u2028",
            "\ufeff",
            "\U0001f525",
            "e\u0301",
            "a'b",
            '"',
            "'; DROP TABLE iiot.device; --",
            "' OR '1'='1",
            "1); SELECT pg_sleep(60)--",
            "<script>alert(1)</script>",
            "<img src=x onerror=alert(1)>",
            "{{7*7}}",
            "${jndi:ldap://example.com/a}",
            "$(reboot)",
            "`reboot`",
            "%s%s%n",
            "%00",
            "a=b",
            "a,b",
            "a#b",
            "a?b",
            "a+b",
            "a*b",
            "a\\b",
            "a|b",
            "{signal}",
            "[0]",
            "a&b",
            "$where",
            "@",
            "~",
            "!",
            "^",
        )
    ):
        good = f"good.key.{number}"
        yield Item(f"key {number} {key[:24]!r}", json.dumps({good: 1, key: 2}).encode(), None, "key-invalid", good)


def values() -> Iterator[Item]:
    """Values that are none, each beside a good one: JSON text, and the code."""
    deep = "[" * 33 + "]" * 33
    nul = r"\u0000"
    given = [
        ("null", "value-null"),
        ('"%s"' % ("x" * 1025), "string-too-long"),
        ('"%s"' % ("é" * 1025), "string-too-long"),
        (f'"{nul}"', "string-invalid"),
        (f'"a{nul}b"', "string-invalid"),
        (f'{{"a":"{nul}"}}', "string-invalid"),
        (f'{{"{nul}":1}}', "string-invalid"),
        (f'[[["{nul}"]]]', "string-invalid"),
        (r'"\\\u0000"', "string-invalid"),
        (deep, "too-deep"),
        ('{"a":' * 33 + "1" + "}" * 33, "too-deep"),
        ("[" + "1," * 5000 + "1]", "json-too-large"),
        ('{"a":"%s"}' % ("x" * 9000), "json-too-large"),
        ("9" * 309, "number-out-of-range"),
        ("1" + "0" * 400, "number-out-of-range"),
        ("-" + "9" * 1000, "number-out-of-range"),
    ]
    for number, (text, code) in enumerate(given):
        good = f"good.value.{number}"
        yield Item(f"value {text[:24]}", f'{{"{good}":1,"v":{text}}}'.encode(), None, code, good)
    for number, text in enumerate(('"21.5"', "true", "{}", "[]", '"NaN"', "[1]")):
        good = f"good.type.{number}"
        yield Item(f"typed {text}", f'{{"{good}":1,"{TYPED}":{text}}}'.encode(), None, "wrong-type", good)


def times() -> Iterator[Item]:
    """Times, in a list beside an element that is right."""
    now = now_ms()
    given: list[tuple[Any, str]] = [
        (-1, "ts-too-old"),
        (0, "ts-too-old"),
        (1, "ts-too-old"),
        (now // 1000, "ts-too-old"),
        (-(10**18), "ts-too-old"),
        (-(2**63), "ts-too-old"),
        (now - 31 * 86_400_000, "ts-too-old"),
        (1.5, "ts-too-old"),
        (-0.0, "ts-too-old"),
        (now * 1000, "ts-too-new"),
        (now * 1_000_000, "ts-too-new"),
        (2**53, "ts-too-new"),
        (2**63, "ts-too-new"),
        (2**64, "ts-too-new"),
        (1e300, "ts-too-new"),
        (now + 86_400_000, "ts-too-new"),
        (True, "ts-invalid"),
        ("", "ts-invalid"),
        ("now", "ts-invalid"),
        (str(now), "ts-invalid"),
        ([], "ts-invalid"),
        ({}, "ts-invalid"),
        ([now], "ts-invalid"),
        ("2025-13-45T99:99:99Z", "ts-invalid"),
        ("2025-02-30T00:00:00Z", "ts-invalid"),
        ("2025-01-01T00:00:00", "ts-invalid"),
        ("2016-12-31T23:59:60Z", "ts-invalid"),
        ("2025-01-01T00:00:00+99:99", "ts-invalid"),
        ("0000-01-01T00:00:00Z", "ts-invalid"),
        ("٢٠٢٥-01-01T00:00:00Z", "ts-invalid"),
        ("1970-01-01T00:00:00Z", "ts-too-old"),
        ("0001-01-01T00:00:00+23:59", "ts-too-old"),
        ("9999-12-31T23:59:59Z", "ts-too-new"),
        ("9999-12-31T23:59:59-23:59", "ts-too-new"),
        ("\0", "ts-invalid"),
        ("x" * 5000, "ts-invalid"),
    ]
    for number, (ts, code) in enumerate(given):
        good = f"good.ts.{number}"
        payload = json.dumps([{good: 1}, {"ts": ts, "values": {"t": number}}]).encode()
        yield Item(f"ts {str(ts)[:24]!r}", payload, None, code, good)


def envelopes() -> Iterator[Item]:
    """Objects and lists that are not of the three forms, each with something right in it."""
    for number, (text, code) in enumerate(
        {
            '[{"KEY":1},5]': "not-an-object",
            '[{"KEY":1},null]': "not-an-object",
            '[{"KEY":1},"a"]': "not-an-object",
            '[{"KEY":1},[{"a":1}]]': "not-an-object",
            '[{"KEY":1},{}]': "empty",
            '[{"KEY":1},{"ts":1}]': "empty",
            '[{"KEY":1},{"values":{}}]': "empty",
            '{"values":{"KEY":1},"more":2}': "unknown-field",
            '{"values":{"KEY":1},"device_id":"x"}': "unknown-field",
            '{"values":{"KEY":1},"\\u0000":2}': "unknown-field",
            '{"values":{"KEY":1},"ack":"yes"}': "ack-not-boolean",
            '{"KEY":1,"ack":1}': "ack-not-boolean",
            '{"KEY":1,"ack":{}}': "ack-not-boolean",
            '{"KEY":1,"values":null}': "value-null",
        }.items()
    ):
        good = f"good.form.{number}"
        yield Item(f"form {text}", text.replace("KEY", good).encode(), None, code, good)
