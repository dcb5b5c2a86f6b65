"""SenML packs (RFC 8428) to readings: names and times are joined with their bases, each record is one reading.

JSON labels are texts, CBOR labels are the integers of section 6. A base stays in force until another record changes it
(section 4.1). Times are seconds since the epoch; below 2**28 they are relative to now (section 4.5.3). Units and update
times are not kept. Sums and data values (`s`, `bs`, `vd`) are refused, each with the index of its record.
"""

from __future__ import annotations

from typing import Any, Final

from iiot.payloads.reader import MAX_KEY, MAX_READINGS, TOO_BIG, PayloadError, Reader, Rejected, kind_of, shown

# Section 6, table 4; texts beyond it are the same in both forms.
CBOR_LABELS: Final = {
    -1: "bver", -2: "bn", -3: "bt", -4: "bu", -5: "bv", -6: "bs",
    0: "n", 1: "u", 2: "v", 3: "vs", 4: "vb", 5: "s", 6: "t", 7: "ut", 8: "vd",
}  # fmt: skip
VERSION: Final = 10
RELATIVE_BELOW: Final = 2**28
# Far beyond every time that is accepted, and small enough to be counted in milliseconds.
LONGEST_SECONDS: Final = 1e12
FIELDS: Final = frozenset(CBOR_LABELS.values())
VALUES: Final = {"v": (int, float), "vs": (str,), "vb": (bool,)}
SUMS: Final = ("s", "bs", "vd")


def read(pack: Any, reader: Reader) -> None:
    """Take the records of one decoded pack; raises PayloadError for what is no pack (section 4: an array of objects)."""
    if not isinstance(pack, list):
        raise PayloadError("not-senml", f"a SenML pack is an array of records, not {kind_of(pack)}")
    if not pack:
        raise PayloadError("empty", "the pack is an empty array: it holds no record")
    if len(pack) > MAX_READINGS:
        reason = f"a message holds at most {MAX_READINGS} readings, split it"
        raise PayloadError("too-many-readings", reason, "readings_per_message", MAX_READINGS)
    bases: dict[str, Any] = {"bn": "", "bt": 0, "bv": 0}
    for index, record in enumerate(pack):
        if not isinstance(record, dict):
            raise PayloadError("not-senml", f"record {index} is not an object but {kind_of(record)}")
        fields = {CBOR_LABELS.get(label, label): value for label, value in record.items()}
        _Record(index, fields, reader).read(bases)


class _Record:
    """One record on its way to the reader."""

    def __init__(self, index: int, fields: dict[Any, Any], reader: Reader) -> None:
        self.index = index
        self.fields = fields
        self.reader = reader

    def read(self, bases: dict[str, Any]) -> None:
        """Change the bases, then take the reading, if there is one."""
        self._change(bases)
        if not self._understood():
            return
        fields = self.fields
        found = [name for name in VALUES if name in fields]
        for name in SUMS:
            if name in fields:
                reason = f"{name} is not kept: sums and data values are no readings"
                self._reject("senml-field", reason, name)
        if not found:
            if "n" in fields and not any(name in fields for name in SUMS):
                self._reject("empty", "the record has a name and none of v, vs and vb")
            return
        if len(found) > 1:
            self._reject("senml-field", f"a record has one value, not {' and '.join(found)}")
            return
        key = self._key(bases["bn"])
        seconds = self._seconds(bases["bt"])
        if key is not None and seconds is not None:
            value = self._value(found[0], bases["bv"])
            if value is not None:
                self.reader.take(self.index, self._milliseconds(seconds), {key: value})

    def _change(self, bases: dict[str, Any]) -> None:
        """Section 4.1 and 4.4. A wrong base makes all records after it wrong, so it refuses the pack."""
        fields = self.fields
        for name, types in (("bn", (str,)), ("bt", (int, float)), ("bv", (int, float)), ("bver", (int,))):
            value = fields.get(name)
            if value is None and name not in fields:
                continue
            if isinstance(value, bool) or not isinstance(value, types):
                raise PayloadError("not-senml", f"{name} of record {self.index} is {kind_of(value)}")
            bases[name] = value
        if bases.get("bver", VERSION) > VERSION:
            reason = f"record {self.index} asks for SenML version {bases['bver']}; {VERSION} is understood"
            raise PayloadError("not-senml", reason[:200], "senml_version", VERSION)

    def _understood(self) -> bool:
        """Fields that end in an underscore must be understood (section 4.4); others that nobody knows do no harm."""
        for label in self.fields.keys() - FIELDS:
            if not isinstance(label, str) or label.endswith("_"):
                self._reject("unknown-field", f"the field {shown(str(label))} is not understood")
                return False
        return True

    def _key(self, base: str) -> str | None:
        name = self.fields.get("n", "")
        if not isinstance(name, str):
            self._reject("key-invalid", f"n is {kind_of(name)}, a name is a text", "n")
            return None
        if len(base) + len(name) > MAX_KEY:
            reason = f"bn and n together have more than {MAX_KEY} characters"
            self._reject("key-invalid", reason, shown(name) or "n")
            return None
        return base + name

    def _seconds(self, base: float) -> float | None:
        time = self.fields.get("t", 0)
        if isinstance(time, bool) or not isinstance(time, (int, float)):
            self._reject("ts-invalid", f"t is {kind_of(time)}; it must be seconds as a number", "t")
            return None
        if abs(time) > LONGEST_SECONDS or abs(base) > LONGEST_SECONDS:
            self._reject("ts-invalid", "bt and t are seconds; this is no time")
            return None
        return base + time

    def _milliseconds(self, seconds: float) -> int:
        """The nearest one: seconds in double precision hold microseconds at best, so 0.001 is rarely exact."""
        start = self.reader.came_ms if seconds < RELATIVE_BELOW else 0
        return start + round(seconds * 1000)

    def _value(self, name: str, base: float) -> Any:
        value = self.fields[name]
        if not isinstance(value, VALUES[name]) or (name == "v" and isinstance(value, bool)):
            self._reject("senml-field", f"{name} is {kind_of(value)}", name)
            return None
        try:
            return float(value) + float(base) if name == "v" else value
        except OverflowError:
            self.reader.rejected.append(Rejected(self.index, *TOO_BIG[:3], name, TOO_BIG.allowed))
            return None

    def _reject(self, code: str, reason: str, key: str | None = None) -> None:
        self.reader.rejected.append(Rejected(self.index, code, reason, None, key))
