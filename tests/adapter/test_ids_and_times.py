"""Which ids and times of an engine are accepted."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from whalewatch._adapter.ids import is_id
from whalewatch._adapter.times import moment, sane


@pytest.mark.parametrize("id", ["c", "0" * 64, "web-1.old_2", "a" * 255])
def test_ids_of_real_engines_are_accepted(id: str) -> None:
    assert is_id(id)


@pytest.mark.parametrize(
    "id", ["", ".", "..", "-x", "a/b", "a b", "a\n", "\x1b[2J", "é", "\u0661", "a\u202eb", "a" * 256, None, 7, b"c"]
)
def test_everything_else_is_no_id(id: object) -> None:
    assert not is_id(id)


@pytest.mark.parametrize("nanoseconds", [0, -1, 10**40, -(10**40), 2**63 - 1 + 10**30])
def test_times_that_are_missing_or_out_of_range_are_left_out(nanoseconds: int) -> None:
    assert moment(nanoseconds) is None


@pytest.mark.parametrize(
    "found",
    [
        datetime.max.replace(tzinfo=UTC),
        datetime.max.replace(tzinfo=timezone(-timedelta(hours=14))),
        datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
        datetime(1969, 12, 31, tzinfo=UTC),
    ],
)
def test_years_that_cannot_be_shown_are_left_out(found: datetime) -> None:
    assert sane(found) is None


def test_times_are_in_utc_to_the_microsecond() -> None:
    tokyo = timezone(timedelta(hours=9))
    assert sane(datetime(2026, 1, 2, 3, tzinfo=tokyo)) == datetime(2026, 1, 1, 18, tzinfo=UTC)
    assert moment(1_700_000_000_123_456_789) == datetime(2023, 11, 14, 22, 13, 20, 123456, UTC)
