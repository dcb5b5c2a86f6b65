"""Signals, newest values and readings of a device."""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from flask import Response
from pydantic import BaseModel, ConfigDict, Field, RootModel, StringConstraints

from iiot import clock, tenancy, web
from iiot.services import readings, signals
from iiot.services.listing import Wanted

api = web.Api("telemetry")

Kind = Literal["number", "boolean", "string", "json"]
Text = Annotated[str, StringConstraints(min_length=1, max_length=100)]


class SignalQuery(web.ListQuery):
    """Which page of a device's signals."""

    sort: Annotated[str, Field(description="`key` or `type`, with `-` in front for descending.")] = "key"


class SignalOut(web.Out):
    """A signal and its newest reading."""

    key: str
    type: Kind
    unit: str | None
    min: float | None
    max: float | None
    last_ts: datetime | None
    last_value: Any
    last_quality: Literal["good", "uncertain", "bad"] | None
    writable: bool


class SignalPatch(web.Body):
    """What shall change; what is left out stays. All but `writable` may be null."""

    unit: Annotated[
        str | None, Field(min_length=1, max_length=signals.MAX_UNIT, description="As people write it: °C, kW, m³/h.")
    ] = None
    min: Annotated[float | None, Field(description="Least value that makes sense.")] = None
    max: Annotated[float | None, Field(description="Greatest value that makes sense.")] = None
    writable: Annotated[
        bool, Field(description="Whether it may be written over OPC UA; that becomes the command `write`.")
    ] = False


class NewestOut(BaseModel):
    """A reading: `ts` in milliseconds since the epoch. `quality` is there where its device calls it uncertain or bad."""

    ts: int
    value: Any
    quality: Annotated[Literal["uncertain", "bad"] | None, Field(exclude_if=lambda quality: quality is None)] = None


class LatestOut(RootModel[dict[str, NewestOut]]):
    """Signal key → its newest reading; signals that never sent are absent."""


class ReadingsQuery(web.Query):
    """Which readings, and how they are summed up."""

    model_config = ConfigDict(extra="forbid", populate_by_name=False)

    keys: Annotated[
        str | None, Field(max_length=20_000, description="Signal keys, separated by commas. Absent: all signals.")
    ] = None
    start: Annotated[
        Text, Field(alias="from", description="RFC 3339, milliseconds since the epoch, or `now-1h`, `now-7d`.")
    ] = "now-1h"
    stop: Annotated[Text, Field(alias="to", description="As `from`; the end does not belong to the range.")] = "now"
    agg: Annotated[
        Literal["avg", "min", "max", "sum", "count", "first", "last", "delta", "twavg", "p50", "p95", "stddev", "lttb"]
        | None,
        Field(description="How readings are summed up per interval; absent: raw readings."),
    ] = None
    interval: Annotated[
        Text | None,
        Field(
            description="Seconds, or a count with s, m, h, d, w, mo: `15m`, `1d`. Absent: the whole range is one bucket."
        ),
    ] = None
    limit: Annotated[
        int | None,
        Field(
            ge=1,
            le=readings.MAX_READINGS,
            description="Points per signal: 1,000 unless told, for `lttb` 2,000 at most.",
        ),
    ] = None
    order: Annotated[Literal["asc", "desc"], Field(description="From the oldest, or from the newest.")] = "asc"
    tz: Annotated[Text | None, Field(description="IANA time zone of m, h, d, w and mo. Absent: the tenant's.")] = None
    quality: Annotated[
        bool,
        Field(
            description="Raw readings alone: each point has its quality (`good`, `uncertain`, `bad`) as third element."
        ),
    ] = False

    def question(self) -> readings.Asking:
        """For the service."""
        keys = None if self.keys is None else [key for key in self.keys.split(",") if key]
        return readings.Asking(
            keys,
            self.start,
            self.stop,
            self.agg,
            self.interval,
            self.limit,
            self.order == "desc",
            self.tz,
            self.quality,
        )


class ReadingsOut(RootModel[dict[str, list[tuple[int, Any] | tuple[int, Any, str]]]]):
    """Signal key → [[ts in milliseconds, value], …], with `quality` [[ts, value, quality], …]."""


def _json(answer: Any) -> Response:
    """An answer of thousands of small lists, encoded without looking at each of them in Python."""
    return Response(msgspec.json.encode(answer), content_type="application/json; charset=utf-8")


@api.route(
    "GET",
    "/devices/<uid>/signals",
    query=SignalQuery,
    out=web.Page[SignalOut],
    permission="telemetry:read",
    problems=(404,),
)
def list_signals(ctx: web.Context, uid: str, query: SignalQuery) -> Any:
    """List a device's signals with their newest reading."""
    kind = f"signals:{uid}:{query.sort}"
    wanted = Wanted(query.sort, query.limit, web.decode_cursor(kind, query.cursor))
    with tenancy.work(ctx.scope) as db:
        found = signals.search(db, uid, wanted)
    return web.page(kind, found, [SignalOut.model_validate(item) for item in found.items])


@api.route(
    "PATCH",
    "/devices/<uid>/signals/<path:signal_key>",
    body=SignalPatch,
    out=SignalOut,
    permission="device:write",
    problems=(404,),
)
def change_signal(ctx: web.Context, uid: str, signal_key: str, body: SignalPatch) -> SignalOut:
    """Change a signal's unit, range, or whether it may be written."""
    with tenancy.work(ctx.scope) as db:
        return SignalOut.model_validate(signals.change(db, uid, signal_key, body.model_dump(exclude_unset=True)))


@api.route("GET", "/devices/<uid>/latest", out=LatestOut, permission="telemetry:read", problems=(404,))
def read_latest(ctx: web.Context, uid: str) -> Any:
    """Read a device's newest values.

    A late reading never moves them back."""
    with tenancy.work(ctx.scope) as db:
        found = signals.latest(db, uid)
    return {
        item.key: NewestOut.model_validate(
            {
                "ts": clock.to_ms(item.ts),
                "value": item.value,
                "quality": None if item.quality == "good" else item.quality,
            }
        )
        for item in found
    }


@api.route(
    "GET",
    "/devices/<uid>/telemetry",
    query=ReadingsQuery,
    out=ReadingsOut,
    permission="telemetry:read",
    problems=(404,),
)
def read_telemetry(ctx: web.Context, uid: str, query: ReadingsQuery) -> Response:
    """Read a device's readings, raw or summed up.

    Without `agg` raw readings, of the last hour unless told. With `agg` one point per bucket that holds a reading; its time is the beginning of
    the bucket, also where the range begins later. Buckets of minutes, hours, days, weeks (from Monday) and months follow the clock of `tz`, also
    over changes of daylight saving time; seconds, and lengths that do not divide a day, count from the epoch.

    `twavg` weighs each value by the time until the next one, beginning with the last value before the range. `delta` is the last value minus the
    first, so a counter that starts again at zero shows as a fall. `stddev` is the sample's and needs two readings. `p50` and `p95` interpolate
    between two readings. `count`, `first` and `last` work for texts too, the others need numbers or booleans (0 and 1). `lttb` chooses at most
    2,000 readings that keep the visual shape (largest triangle three buckets). A sum too large for a double is null.

    A key that the device has never sent gives an empty list. What would be too large is refused with 422 and says what to do."""
    with tenancy.work(ctx.scope) as db:
        return _json(readings.answer(db, uid, readings.understand(db, query.question(), clock.now_ms())))
