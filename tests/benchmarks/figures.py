"""What came out of a measurement, and the table that shows it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Spread:
    """A sample, told by its middle, its quartiles, and the 99th of a hundred: the greatest of a smaller sample."""

    median: float
    low: float
    high: float
    p99: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """Describe values; not a number where there are none."""
        ordered = sorted(value for value in values if not math.isnan(value))
        if not ordered:
            return cls(math.nan, math.nan, math.nan, math.nan, 0)
        low, median, high = statistics.quantiles(ordered, n=4, method="inclusive") if ordered[1:] else ordered * 3
        return cls(median, low, high, ordered[math.ceil(0.99 * len(ordered)) - 1], len(ordered))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the report: what was measured, ours, what was beside it by turns or at the same time, and the ratios.

    The other program is the peer; the target is what is hoped for, as text; the tail is the 99th of a hundred.
    """

    benchmark: str
    what: str
    unit: str
    ours: Spread
    engine: str = ""
    beside: Spread | None = None
    beside_is: str = ""
    ratio: Spread | None = None
    peer: Spread | None = None
    target: str = ""
    tail: bool = False

    @classmethod
    def of(
        cls,
        benchmark: str,
        what: str,
        unit: str,
        ours: Sequence[float],
        beside: tuple[str, Sequence[float]] = ("", ()),
        *,
        engine: str = "",
        peer: Sequence[float] = (),
        target: str = "",
        tail: bool = False,
    ) -> Self:
        """Make a row of values, those beside ours measured by turns; of single values there is no ratio."""
        beside_is, theirs = beside
        return cls(
            benchmark=benchmark,
            what=what,
            unit=unit,
            ours=Spread.of(ours),
            engine=engine,
            beside=Spread.of(theirs) if theirs else None,
            beside_is=beside_is,
            ratio=paired(ours, theirs) if len(theirs) > 1 else None,
            peer=Spread.of(peer) if peer else None,
            target=target,
            tail=tail,
        )

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Return the ratios of values that were measured side by side."""
    return Spread.of(our / their for our, their in zip(ours, theirs, strict=True) if their > 0)


def table(rows: Sequence[Row]) -> str:
    """Lay rows out as a Markdown table; the column of the other program is left out if there is none."""
    with_peer = any(row.peer for row in rows)
    head = ["measured", "engine", "whalewatch (quartiles)", "beside it", "ratio (quartiles)", "target"]
    if with_peer:
        head.append("other program")
    lines = [head]
    for row in rows:
        told = f"{_number(row.ours.median)} {row.unit}{_quartiles(row.ours)}"
        if row.tail:
            told += f", p99 {_number(row.ours.p99)}"
        beside = f"{row.beside_is} {_number(row.beside.median)} {row.unit}" if row.beside else ""
        if row.tail and row.beside:
            beside += f", p99 {_number(row.beside.p99)}"
        ratio = f"{row.ratio.median:.2f}{_quartiles(row.ratio, '.2f')}" if row.ratio else ""
        line = [row.what, row.engine, told, beside, ratio, row.target]
        if with_peer:
            line.append(f"{_number(row.peer.median)} {row.unit}" if row.peer else "")
        lines.append(line)
    return laid_out(lines)


def laid_out(lines: list[list[str]]) -> str:
    """Lay cells out as a Markdown table, of which the first line is the head."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def _quartiles(spread: Spread, form: str = "") -> str:
    if spread.count < 3:
        return ""
    low, high = (format(v, form) if form else _number(v) for v in (spread.low, spread.high))
    return f" ({low} to {high})"


def _number(value: float) -> str:
    if value == 0 or math.isnan(value):
        return "-" if math.isnan(value) else "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 4)}f}"
