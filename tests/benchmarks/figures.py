"""What came out of measurements by turns, and the table that shows it."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Contender = TypeVar("Contender")

Figures = Mapping[str, float]
"""What one measurement of one contender has told, by keys."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure that contenders tell under this key, times the factor; the target is what is hoped for.

    `tail` asks for the 99th of a hundred too: the greatest of a smaller sample. No value of ours may exceed the bound.
    """

    key: str
    what: str
    unit: str = ""
    factor: float = 1.0
    target: str = ""
    tail: bool = False
    bound: float = math.inf


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report: ours, what was beside it by turns or at the same time, and another program's."""

    measure: Measure
    ours: Sequence[float]
    beside_is: str
    beside: Sequence[float]
    peer: Sequence[float]
    benchmark: str = ""
    engine: str = ""

    def cells(self) -> list[str]:
        unit, tail, bound = self.measure.unit, self.measure.tail, self.measure.bound
        # There is no ratio of single values.
        pairs = zip(self.ours, self.beside, strict=True) if len(self.beside) > 1 else ()
        within = f"≤ {bound:g} {unit}: {sum(value <= bound for value in self.ours)} of {len(self.ours)}"
        return [
            self.measure.what,
            self.engine,
            _told(self.ours, unit, tail=tail),
            f"{self.beside_is} {_told(self.beside, unit, tail=tail)}" if self.beside else "",
            _told([our / their for our, their in pairs if their > 0]),
            self.measure.target if bound == math.inf else within,
            _told(self.peer, unit, tail=tail),
        ]


def rows(
    measures: Iterable[Measure], took: Mapping[str, Sequence[Figures]], ours: str = "ours", beside: str = ""
) -> Iterator[Row]:
    """Make a row of each measure: ours, what was beside it, and the peer where it was measured and tells as much."""
    for measure in measures:
        columns = [
            [one[measure.key] * measure.factor for one in took.get(name, ()) if measure.key in one]
            for name in (ours, beside, "peer")
        ]
        yield Row(measure, columns[0], beside, columns[1], columns[2])


def in_turn(names: Iterable[str], rounds: int) -> list[str]:
    """Return whose turn it is: A B, then B A, so that nothing is measured before all of the other."""
    order = list(names)
    return [name for turn in range(rounds) for name in (order if turn % 2 else reversed(order))]


def by_turns(
    what: str, rounds: int, contenders: Mapping[str, Contender], measured: Callable[[Contender], Figures]
) -> dict[str, list[Figures]]:
    """Measure contenders by turns, and return what each has told in each round."""
    took: dict[str, list[Figures]] = {name: [] for name in contenders}
    for name in in_turn(contenders, rounds):
        progress(f"{what}, {len(took[name]) + 1} of {rounds}: {name}")
        took[name].append(measured(contenders[name]))
    return took


def table(rows: Sequence[Row]) -> str:
    """Lay rows out as a Markdown table; the column of the other program is left out if there is none."""
    head = ["measured", "engine", "whalewatch (quartiles)", "beside it", "ratio", "target", "other program"]
    columns = len(head) if any(row.peer for row in rows) else -1
    lines = [line[:columns] for line in (head, *(row.cells() for row in rows))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)


def progress(what: str) -> None:
    sys.stderr.write(what + "\n")


def _told(values: Sequence[float], unit: str = "", *, tail: bool = False) -> str:
    """Tell the median, and the quartiles of three values or more."""
    if not values:
        return ""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    quartiles = f" ({_number(low)} to {_number(high)})" if len(values) > 2 else ""
    p99 = f", p99 {_number(sorted(values)[math.ceil(0.99 * len(values)) - 1])}" if tail else ""
    return f"{_number(median)} {unit}".rstrip() + quartiles + p99


def _number(value: float) -> str:
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{min(digits, 4)}f}"
