"""Dates and times as mem0's clients write them."""

from __future__ import annotations

import datetime
from typing import Final, NamedTuple

from nagaya.errors import InvalidValue

_DAY: Final = datetime.timedelta(days=1)
_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_LAST_S: Final = 253_402_214_400
"""The beginning of the last day that a date can name."""


class Span(NamedTuple):
    """What a written time covers: a whole day, or one second. Microseconds since 1970, UTC."""

    from_us: int
    upto_us: int


def span_of(value: object, at: str) -> Span:
    """What an ISO 8601 date or time, or a Unix time in seconds, covers; UTC where it names no zone. Raises
    ``InvalidValue``."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _LAST_S:
        return Span(int(value) * 1_000_000, (int(value) + 1) * 1_000_000)
    if isinstance(value, str) and len(value) <= 64:
        try:
            if len(value) <= 10:
                day = datetime.datetime.combine(datetime.date.fromisoformat(value), datetime.time(), datetime.UTC)
                return Span(_us(day), _us(day + _DAY))
            time = datetime.datetime.fromisoformat(value)
            if time.tzinfo is None:
                time = time.replace(tzinfo=datetime.UTC)
            began = _us(time.replace(microsecond=0))
            return Span(began, began + 1_000_000)
        except (ValueError, OverflowError):
            pass
    raise InvalidValue(param=at, at=at, detail="expected an ISO 8601 date or time, or a Unix time")


def _us(time: datetime.datetime) -> int:
    return (time - _EPOCH) // datetime.timedelta(microseconds=1)


def end_of(date: str, now_us: int) -> int:
    """The Unix time at which a memory ends that lasts through a date (``YYYY-MM-DD``, UTC). Raises ``InvalidValue``,
    also for a date that is over."""
    at = "expiration_date"
    try:
        if len(date) != 10:
            raise ValueError
        ends = datetime.datetime.combine(datetime.date.fromisoformat(date), datetime.time(), datetime.UTC) + _DAY
    except (ValueError, OverflowError):
        raise InvalidValue(param=at, at=at, detail="expected a date, YYYY-MM-DD") from None
    if _us(ends) <= now_us:
        raise InvalidValue(param=at, at=at, detail="this day is over")
    return _us(ends) // 1_000_000


def date_of(expires_at: int | None) -> str | None:
    """The last day of a memory that ends then."""
    return None if expires_at is None else iso(expires_at - 1)[:10]


def iso(at_s: int) -> str:
    """A Unix time in ISO 8601, UTC."""
    return (_EPOCH + datetime.timedelta(seconds=at_s)).isoformat()
