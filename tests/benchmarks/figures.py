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

    `tail` asks for the 99th of a hundred too: the greatest of a smaller sample.
    """

    key: str
    what: str
    unit: str = ""
    factor: float = 1.0
    target: str = ""
    tail: bool = False


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
        # There is no ratio of single values.
        pairs = zip(self.ours, self.beside, strict=True) if len(self.beside) > 1 else ()
        ratios = [our / their for our, their in pairs if their > 0]
        return [
            self.measure.what,
            self.engine,
            self._told(self.ours, _quartiles(self.ours, _number)),
            self._told(self.beside, prefix=f"{self.beside_is} "),
            f"{_ratio(statistics.median(ratios))}{_quartiles(ratios, _ratio)}" if ratios else "",
            self.measure.target,
            self._told(self.peer),
        ]

    def _told(self, values: Sequence[float], quartiles: str = "", prefix: str = "") -> str:
        if not values:
            return ""
        greatest = sorted(values)[math.ceil(0.99 * len(values)) - 1]
        tail = f", p99 {_number(greatest)}" if self.measure.tail else ""
        return f"{prefix}{_number(statistics.median(values))} {self.measure.unit}{quartiles}{tail}"


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
    head = ["measured", "engine", "whalewatch (quartiles)", "beside it", "ratio (quartiles)", "target", "other program"]
    columns = len(head) if any(row.peer for row in rows) else -1
    return laid_out([line[:columns] for line in (head, *(row.cells() for row in rows))])


def laid_out(lines: list[list[str]]) -> str:
    """Lay cells out as a Markdown table, of which the first line is the head."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)


def progress(what: str) -> None:
    sys.stderr.write(what + "\n")


def _quartiles(values: Sequence[float], told: Callable[[float], str]) -> str:
    if len(values) < 3:
        return ""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return f" ({told(low)} to {told(high)})"


def _ratio(value: float) -> str:
    return f"{value:.2f}"


def _number(value: float) -> str:
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{min(digits, 4)}f}"
