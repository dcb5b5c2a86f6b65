"""Texts: what is no JSON, JSON of which nothing can be taken, and what is strange and right."""

import gzip
import json
import random
import zlib
from collections.abc import Iterator

from iiot.clock import now
from tests.poison.item import CBOR, KIB256, SENML, Item, group


def refused() -> Iterator[Item]:
    """What is no JSON, or JSON of which nothing can be taken."""
    yield from group(
        "not-utf8",
        None,
        {
            "a lone byte": b'{"a":"\xff"}',
            "a lone continuation": b'{"a":"\x80"}',
            "an overlong slash": b'{"a":"\xc0\xaf"}',
            "half a letter": b'{"a":"\xc3"}',
            "Latin-1": '{"grün":1}'.encode("latin-1"),
            "a surrogate": b'{"a":"\xed\xa0\x80"}',
            "beyond Unicode": b'{"a":"\xf4\x90\x80\x80"}',
            "UTF-16": '{"a":1}'.encode("utf-16"),
            "UTF-16 big": b"\xfe\xff" + '{"a":1}'.encode("utf-16-be"),
            "UTF-32": '{"a":1}'.encode("utf-32"),
            "five bytes": b'{"a":"\xf8\x88\x80\x80\x80"}',
            "gzip": gzip.compress(b'{"a":1}', mtime=0),
            "zlib": zlib.compress(b'{"a":1}' * 9),
            "PNG": b"\x89PNG\r\n\x1a\n" + b"\0" * 8,
            "JPEG": b"\xff\xd8\xff\xe0JFIF",
            "MessagePack": b"\x81\xa1a\x01",
            "a pickle": b"\x80\x04\x95\x0a\0\0\0\0\0\0\0}\x94\x8c\x01a",
            "a bomb of gzip": gzip.compress(b"0" * 1_000_000, mtime=0),
        },
    )
    yield from group(
        "not-json",
        None,
        {
            "text": "temperature=5",
            "a brace": "{",
            "the other brace": "}",
            "cut": '{"a":1',
            "a comma": '{"a":1,}',
            "single quotes": "{'a':1}",
            "no quotes": "{a:1}",
            "octal": '{"a":01}',
            "no zero": '{"a":.5}',
            "no decimals": '{"a":5.}',
            "a plus": '{"a":+1}',
            "hexadecimal": '{"a":0x10}',
            "half an exponent": '{"a":1e}',
            "half a word": '{"a":tru}',
            "Python": '{"a":True}',
            "nan": '{"a":nan}',
            "None": '{"a":None}',
            "undefined": '{"a":undefined}',
            "two documents": '{"a":1}{"b":2}',
            "lines": '{"a":1}\n{"a":2}',
            "something behind": '{"a":1} x',
            "half a list": "[1,2",
            "half an escape": '{"a":"\\u12"}',
            "no escape": '{"a":"\\x41"}',
            "a raw newline": '{"a":"x\ny"}',
            "a raw NUL": '{"a":"\0"}',
            "NUL behind": '{"a":1}\0',
            "only NUL": b"\0" * 16,
            "a comment": '{"a":1} // x',
            "XML": '<?xml version="1.0"?><a>1</a>',
            "an entity bomb": '<!DOCTYPE a [<!ENTITY b "bbbb">]><a>&b;&b;</a>',
            "YAML": "a: 1\nb: 2",
            "CSV": "ts,value\n1,2",
            "a form": "a=1&b=2",
            "HTML": "<script>alert(1)</script>",
            "SQL": "'; DROP TABLE iiot.telemetry; --",
            "a shell": "$(rm -rf /)",
            "JNDI": "${jndi:ldap://example.com/a}",
            "a log line": "x\r\n2025-01-01 INFO admin signed in",
            "colours": "\x1b[2J\x1b[31mroot#",
            "a format": "%s%s%s%n",
            "a template": "{{7*7}}",
            "a ZIP": b"PK\x03\x04" + b"\0" * 26,
            "an ELF": b"\x7fELF\x02\x01\x01" + b"\0" * 9,
            "UTF-16 without a mark": '{"a":1}'.encode("utf-16-le"),
            "BSON": b"\x0c\0\0\0\x10a\0\x01\0\0\0\0",
            "BOM twice": b"\xef\xbb\xbf\xef\xbb\xbf{}",
            "a lone surrogate": rb'{"a":"\ud800"}',
            "a surrogate key": rb'{"\udfff":1}',
            "a surrogate pair the wrong way": rb'{"a":"\udc00\ud800"}',
        },
    )
    yield from group(
        "not-finite",
        None,
        {
            "NaN": '{"a":NaN}',
            "infinity": '{"a":Infinity}',
            "minus infinity": '{"a":-Infinity}',
            "NaN inside": '{"a":{"b":[NaN]}}',
            "NaN in a list": '[{"a":1},{"a":NaN}]',
            "NaN as the time": '{"ts":NaN,"values":{"a":1}}',
            "infinity as the time": '{"ts":Infinity,"values":{"a":1}}',
            "NaN alone": "NaN",
        },
    )
    yield from group(
        "number-out-of-range",
        None,
        {
            "1e400": '{"a":1e400}',
            "-1e400": '{"a":-1e400}',
            "1e999999999": '{"a":1e999999999}',
            "1e400 inside": '{"a":[1e400]}',
            "just too large": '{"a":1.7976931348623159e308}',
            "1e400 as the time": '{"ts":1e400,"values":{"a":1}}',
        },
    )
    yield from group(
        "too-deep",
        None,
        {
            "lists": "[" * 10_000,
            "more lists": "[" * 200_000,
            "objects": '{"a":' * 10_000,
            "closed lists": "[" * 5_000 + "]" * 5_000,
            "both": '[{"a":' * 20_000,
        },
    )
    yield from group(
        "empty",
        None,
        {
            "nothing": "",
            "three spaces": "   ",
            "newlines": "\r\n\r\n",
            "a list": "[]",
            "an object": "{}",
            "only ts": '{"ts":1}',
            "only ack": '{"ack":true}',
            "empty values": '{"values":{}}',
        },
    )
    yield from group(
        "not-an-object",
        None,
        {
            "a number": "1",
            "a string": '"a"',
            "null": "null",
            "true": "true",
            "lists in lists": "[[]]",
            "numbers": "[1,2,3]",
        },
    )
    yield from group(
        "too-large",
        None,
        {
            "a byte more": b'{"a":1' + b" " * (KIB256 - 6) + b"}",
            "spaces": b" " * 300_000,
            "a long string": b'{"a":"' + b"x" * 400_000 + b'"}',
            "noise": random.Random(1).randbytes(270_000),
        },
    )
    yield from group(
        "too-many-readings",
        None,
        {
            "10,001 elements": b"[" + b",".join([b'{"a":1}'] * 10_001) + b"]",
            "50,000 nulls": "[" + ",".join(["null"] * 50_000) + "]",
            "10,001 keys": json.dumps({f"k{number}": 1 for number in range(10_001)}).encode(),
        },
    )


def right() -> Iterator[Item]:
    """Strange, and right: nothing of it is refused."""
    texts = {
        "a byte order mark": b"\xef\xbb\xbf" + b'{"r.bom":1}',
        "the last of two equal keys": b'{"r.twice":1,"r.twice":2}',
        "minus zero": b'{"r.zero":-0}',
        "minus zero float": b'{"r.zero2":-0.0}',
        "the smallest number": b'{"r.small":5e-324}',
        "less than the smallest": b'{"r.less":1e-400}',
        "the largest number": b'{"r.large":1.7976931348623157e308}',
        "2**53+1": b'{"r.i53":9007199254740993}',
        "2**64": b'{"r.i64":18446744073709551616}',
        "below int64": b'{"r.neg":-9223372036854775809}',
        "300 digits": b'{"r.long":' + b"1" * 300 + b"}",
        "many decimals": b'{"r.pi":3.' + b"1" * 20_000 + b"}",
        "__proto__": b'{"__proto__":{"a":1}}',
        "constructor": b'{"constructor":1}',
        "a path": b'{"../../etc/passwd":1}',
        "dots": b'{"...":1}',
        "a lone colon": b'{":":1}',
        "128 characters": b'{"' + b"k" * 128 + b'":1}',
        "1,024 characters": json.dumps({"r.text": "x" * 1024}).encode(),
        "SQL as a value": b'{"r.sql":"\'; DROP TABLE iiot.device; --"}',
        "HTML as a value": b'{"r.html":"<script>alert(1)</script>"}',
        "escapes as a value": rb'{"r.esc":"\u001b[31m\r\n\u2028\u202e"}',
        "backslash u": rb'{"r.back":"\\u0000"}',
        "an emoji as a pair": rb'{"r.pair":"\ud83d\udd25"}',
        "only spaces around": b' \r\n\t{"r.space":1}\n',
        "32 levels": b'{"r.deep":' + b"[" * 32 + b"]" * 32 + b"}",
        "values as a list": b'{"values":[1]}',
        "no time": b'{"ts":null,"values":{"r.null":1}}',
        "ts as a signal": b'{"values":{"ts":5,"ack":true}}',
        "10,000 readings of one moment": b"[" + b",".join([b'{"r.same":1}'] * 10_000) + b"]",
        "256 KiB": b'{"r.256":1' + b" " * (KIB256 - 11) + b"}",
        "256 KiB less one": b'{"r.255":1' + b" " * (KIB256 - 12) + b"}",
        "lower case T and z": b'{"ts":"%s","values":{"r.rfc":1}}' % _rfc3339().lower().encode(),
    }
    yield from group(None, None, texts)
    yield Item("a charset", b'{"r.charset":1}', "application/json", None)
    yield from group(
        None,
        CBOR,
        {"half a float": bytes.fromhex("a166722e68616c66f93e00"), "endless": bytes.fromhex("bf7f62722e62656eff01ff")},
    )
    yield Item("a pack with a far base", b'[{"bn":"r/","bt":0,"n":"pack","v":1}]', SENML, None)


def _rfc3339() -> str:
    return now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
