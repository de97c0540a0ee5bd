"""Times that engines report: to the microsecond, in UTC, and within the years that can be shown and compared."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

__all__ = ["moment", "sane"]

FIRST, LAST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9998, 1, 1, tzinfo=UTC)
"""Times outside are left out: they mean nothing, and near the year 9999 a local time cannot be computed."""


def moment(nanoseconds: int) -> datetime | None:
    """Return a time from nanoseconds since 1970; None if it is not later than that, or out of range."""
    try:
        return sane(FIRST + timedelta(microseconds=nanoseconds // 1000))
    except OverflowError:
        return None


def sane(found: datetime) -> datetime | None:
    """Return an aware time in UTC; None if it is out of range."""
    try:
        utc = found.astimezone(UTC)
    except OverflowError:
        return None
    return utc if FIRST < utc < LAST else None
