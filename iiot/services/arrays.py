"""Takes over whole columns from PostgreSQL: what array_send() wrote, without a Python object per value.

The layout is PostgreSQL's binary array (src/backend/utils/adt/arrayfuncs.c, array_send): 20 bytes of header for one dimension, then a
four-byte length and the value for each element, big-endian. The arrays must hold no NULL.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Values = NDArray[np.float64]
Raw = memoryview | bytes | None

_HEADER = 20
_INT = np.dtype([("length", ">i4"), ("value", ">i4")])
_LONG = np.dtype([("length", ">i4"), ("value", ">i8")])
_DOUBLE = np.dtype([("length", ">i4"), ("value", ">f8")])
_EPOCH_2000 = 946_684_800_000_000


def _values(raw: Raw, layout: np.dtype[Any]) -> NDArray[Any]:
    """The elements, still big-endian; the aggregate of no rows is NULL."""
    return np.frombuffer(raw or b"", dtype=layout, offset=_HEADER if raw else 0)["value"]


def stamps(raw: Raw) -> Integers:
    """An array of timestamptz → milliseconds since 1970."""
    milliseconds: Integers = (_values(raw, _LONG).astype(np.int64) + _EPOCH_2000) // 1000
    return milliseconds


def integers(raw: Raw) -> Integers:
    """An array of integer."""
    return _values(raw, _INT).astype(np.int64)


def doubles(raw: Raw) -> Values:
    """An array of double precision."""
    return _values(raw, _DOUBLE).astype(np.float64)
