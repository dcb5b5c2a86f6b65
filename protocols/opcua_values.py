"""Values of signals as OPC UA carries them, and back: types, times, ranges, units."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any, Final

from asyncua import ua

from protocols.served import Signal

# UNECE Recommendation 20, by the ways in which people write the unit.
UNITS: Final = {
    "°C": "CEL", "degC": "CEL", "C": "CEL", "°F": "FAH", "K": "KEL", "%": "P1", "Pa": "PAL", "hPa": "A97", "kPa": "KPA",
    "MPa": "MPA", "bar": "BAR", "mbar": "MBR", "psi": "PS", "V": "VLT", "mV": "2Z", "kV": "KVT", "A": "AMP", "mA": "4K",
    "W": "WTT", "kW": "KWT", "MW": "MAW", "VA": "D46", "kVA": "KVA", "var": "D44", "kvar": "KVR", "Wh": "WHR", "kWh": "KWH",
    "MWh": "MWH", "J": "JOU", "Hz": "HTZ", "kHz": "KHZ", "MHz": "MHZ", "rpm": "RPM", "1/min": "RPM", "m": "MTR", "cm": "CMT",
    "mm": "MMT", "km": "KMT", "m²": "MTK", "m2": "MTK", "m³": "MTQ", "m3": "MTQ", "l": "LTR", "L": "LTR", "ml": "MLT",
    "s": "SEC", "ms": "C26", "min": "MIN", "h": "HUR", "d": "DAY", "kg": "KGM", "g": "GRM", "t": "TNE", "m/s": "MTS",
    "mm/s": "C16", "km/h": "KMH", "m/s²": "MSK", "m/s2": "MSK", "m³/h": "MQH", "m3/h": "MQH", "l/min": "L2", "l/s": "G51",
    "N": "NEW", "kN": "B47", "Nm": "NU", "lx": "LUX", "lm": "LUM", "dB": "2N", "ppm": "59", "Ω": "OHM", "Ohm": "OHM",
    "kΩ": "B49", "°": "DD", "rad": "C81", "µg/m³": "GQ", "mg/m³": "GP", "g/m³": "A93",
}  # fmt: skip
CEFACT: Final = "http://www.opcfoundation.org/UA/units/un/cefact"
DATA_TYPES: Final = {
    "number": (ua.ObjectIds.Double, ua.VariantType.Double),
    "boolean": (ua.ObjectIds.Boolean, ua.VariantType.Boolean),
    "string": (ua.ObjectIds.String, ua.VariantType.String),
    "json": (ua.ObjectIds.String, ua.VariantType.String),
}
NUMBERS: Final = frozenset(
    {
        ua.VariantType.Double, ua.VariantType.Float, ua.VariantType.SByte, ua.VariantType.Byte, ua.VariantType.Int16,
        ua.VariantType.UInt16, ua.VariantType.Int32, ua.VariantType.UInt32, ua.VariantType.Int64, ua.VariantType.UInt64,
    }
)  # fmt: skip
LONGEST_TEXT: Final = 1024
LONGEST_JSON: Final = 8192
GOOD: Final = ua.StatusCode(ua.StatusCodes.Good)
# What devices say of their readings (payloads.QUALITIES), see OPC UA Part 8 section 6.3.
QUALITIES: Final = {
    "good": GOOD,
    "uncertain": ua.StatusCode(ua.StatusCodes.Uncertain),
    "bad": ua.StatusCode(ua.StatusCodes.Bad),
}
OUT_OF_RANGE: Final = ua.StatusCode(ua.StatusCodes.UncertainEngineeringUnitsExceeded)


class Unfit(Exception):
    """A written value cannot be that of the signal; `code` is an OPC UA status code."""

    def __init__(self, code: int) -> None:
        super().__init__(str(code))
        self.code = code


def bad(code: int) -> ua.DataValue:
    """No value, with the reason. The time is the server's."""
    return ua.DataValue(StatusCode=ua.StatusCode(code), ServerTimestamp=datetime.now(UTC))


def datavalue(signal: Signal, ts: int, value: Any, quality: str = "good") -> ua.DataValue:
    """A reading of a signal: `ts` is in milliseconds since the epoch; JSON is text. What is good is so within the signal's range alone."""
    status = QUALITIES[quality]
    if signal.type == "number":
        value = float(value)
        if status is GOOD and not _is_within(signal, value):
            status = OUT_OF_RANGE
    elif signal.type == "boolean":
        value = bool(value)
    elif signal.type == "json":
        value = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return ua.DataValue(
        Value=ua.Variant(value, DATA_TYPES[signal.type][1]),
        StatusCode=status,
        SourceTimestamp=datetime.fromtimestamp(ts / 1000, UTC),
        ServerTimestamp=datetime.now(UTC),
    )


def stamped(value: ua.DataValue, wanted: ua.TimestampsToReturn) -> ua.DataValue:
    """The value with those times alone that a client asks for (OPC UA Part 4 section 7.40)."""
    kinds = ua.TimestampsToReturn
    source = value.SourceTimestamp if wanted in (kinds.Source, kinds.Both) else None
    server = (value.ServerTimestamp or datetime.now(UTC)) if wanted in (kinds.Server, kinds.Both) else None
    return ua.DataValue(value.Value, value.StatusCode, SourceTimestamp=source, ServerTimestamp=server)


def text_value(value: str, since: int | None) -> ua.DataValue:
    """A text that is so since a time (ms), None when nobody knows."""
    moment = None if since is None else datetime.fromtimestamp(since / 1000, UTC)
    return ua.DataValue(
        ua.Variant(value, ua.VariantType.String), GOOD, SourceTimestamp=moment, ServerTimestamp=datetime.now(UTC)
    )


def engineering_units(unit: str) -> ua.EUInformation:
    """EUInformation (OPC UA Part 8 section 5.6.4.3): with the UN/CEFACT code where there is one, else with the name alone."""
    code = UNITS.get(unit)
    name = ua.LocalizedText(unit)
    if code is None:
        return ua.EUInformation(NamespaceUri="", UnitId=-1, DisplayName=name, Description=name)
    return ua.EUInformation(
        NamespaceUri=CEFACT, UnitId=int.from_bytes(code.encode("ascii"), "big"), DisplayName=name, Description=name
    )


def eu_range(signal: Signal) -> ua.Range | None:
    """Its range when it has both ends."""
    if signal.minimum is None or signal.maximum is None:
        return None
    return ua.Range(Low=signal.minimum, High=signal.maximum)


def written(signal: Signal, value: ua.DataValue) -> Any:
    """What a client wants to write, as a command carries it; raises Unfit. Times and status in it are not taken over."""
    variant = value.Value
    if variant is None or variant.Value is None or variant.is_array:
        raise Unfit(ua.StatusCodes.BadTypeMismatch)
    content = variant.Value
    if signal.type == "number":
        return _number(signal, variant)
    if signal.type == "boolean":
        if variant.VariantType is not ua.VariantType.Boolean:
            raise Unfit(ua.StatusCodes.BadTypeMismatch)
        return bool(content)
    if variant.VariantType is not ua.VariantType.String:
        raise Unfit(ua.StatusCodes.BadTypeMismatch)
    if signal.type == "string":
        if len(content) > LONGEST_TEXT or "\0" in content:
            raise Unfit(ua.StatusCodes.BadOutOfRange)
        return content
    if len(content.encode("utf-8", "replace")) > LONGEST_JSON:
        raise Unfit(ua.StatusCodes.BadOutOfRange)
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise Unfit(ua.StatusCodes.BadTypeMismatch) from None


def _number(signal: Signal, variant: ua.Variant) -> float:
    if variant.VariantType not in NUMBERS:
        raise Unfit(ua.StatusCodes.BadTypeMismatch)
    number = float(variant.Value)
    if not math.isfinite(number) or not _is_within(signal, number):
        raise Unfit(ua.StatusCodes.BadOutOfRange)
    return number


def _is_within(signal: Signal, number: float) -> bool:
    low = -math.inf if signal.minimum is None else signal.minimum
    high = math.inf if signal.maximum is None else signal.maximum
    return low <= number <= high


def milliseconds(moment: datetime | None, up: bool = False) -> int | None:
    """Milliseconds since the epoch, rounded down or up; None for the "no time" of OPC UA, which is 1601 (Part 6 section 5.2.2.5)."""
    if moment is None or moment.year <= 1601:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    micros = round((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1_000_000)
    return -(-micros // 1000) if up else micros // 1000
