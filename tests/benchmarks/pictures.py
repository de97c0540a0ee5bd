"""What a query and a change cost, with few containers and with many."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime

from tests.benchmarks.figures import Measure, Row, by_turns, rows
from whalewatch import Container, ListedContainer, Listing, Portfolio, Signal, SignalType
from whalewatch._core.feed import Feed
from whalewatch._core.status import Counters
from whalewatch._core.tracker import Tracker

SMALL, MEDIUM, LARGE = 10, 1_000, 10_000
CALLS = 20_000
CHANGES = 2_000
PER_PROJECT = 5
STARTED = datetime(2026, 1, 1, tzinfo=UTC)

QUERIES: dict[str, tuple[Callable[[Portfolio], Callable[[str], Awaitable[object]]], Callable[[Container], str]]] = {
    "await portfolio.container(name)": (lambda portfolio: portfolio.container, lambda one: one.name),
    "await portfolio.container(id)": (lambda portfolio: portfolio.container, lambda one: one.id),
    "await portfolio.container(missing)": (lambda portfolio: portfolio.container, lambda one: f"no-{one.name}"),
    "await portfolio.project(name)": (lambda portfolio: portfolio.project, lambda one: one.project),
    'await portfolio.project("")': (lambda portfolio: portfolio.project, lambda _: ""),
}
SNAPSHOT_QUERY = "portfolio.snapshot().container(name)"


class Picture:
    """A picture of so many containers, without an engine; `some` of them are asked for, and change."""

    def __init__(self, size: int) -> None:
        containers = [
            Container(
                id=f"{number:064x}",
                name=f"container-{number}",
                pid=1000 + number,
                project=f"project-{number // PER_PROJECT}",
                started_at=STARTED,
            )
            for number in range(size)
        ]
        feed = Feed()
        self.portfolio = Portfolio(feed)
        self.some = containers[:: max(1, size // 100)]
        self.tracker = Tracker(feed, lambda: datetime.now(UTC), Counters())
        self.tracker.open(lambda _id, _reason: None)
        listed = {one.id: ListedContainer(container=one) for one in containers}
        self.tracker.apply_listing(Listing(containers=listed, absence_is_death=True))
        self.tracker.finish_sync()


def lookups(options: argparse.Namespace) -> Iterator[Row]:
    """Look containers and projects up, by turns in a small picture and in a large one."""
    small = f"{SMALL} containers:"
    took = by_turns("lookups", options.rounds, {small: Picture(SMALL), "ours": Picture(LARGE)}, _looked_up)
    target = "< 1,000 ns, ratio 1"
    measures = [Measure(what, f"{what}, {LARGE:,} containers", "ns", target=target) for what in took[small][0]]
    return rows(measures, took, beside=small)


def _looked_up(picture: Picture) -> dict[str, float]:
    """Return the nanoseconds that each query takes."""
    took = {}
    for what, (query, key) in QUERIES.items():
        keys = [key(one) for one in picture.some]
        took[what] = asyncio.run(_awaited(query(picture.portfolio), keys))
    before = time.thread_time_ns()
    for name in itertools.islice(itertools.cycle([one.name for one in picture.some]), CALLS):
        picture.portfolio.snapshot().container(name)
    return took | {SNAPSHOT_QUERY: (time.thread_time_ns() - before) / CALLS}


async def _awaited(query: Callable[[str], Awaitable[object]], keys: list[str]) -> float:
    before = time.thread_time_ns()
    for key in itertools.islice(itertools.cycle(keys), CALLS):
        await query(key)
    return (time.thread_time_ns() - before) / CALLS


def changes(options: argparse.Namespace) -> Iterator[Row]:
    """Pause and unpause in pictures of several sizes, by turns, with nobody subscribed."""
    names = {size: f"among {size:,}:" for size in (SMALL, MEDIUM, LARGE)}
    took = by_turns("changes", options.rounds, {name: Picture(size) for size, name in names.items()}, _changed)
    for size, name in names.items():
        measure = Measure("change", f"one change among {size:,} containers", "µs", 1e-3)
        yield from rows([measure], took, name, names[SMALL] if size != SMALL else "")


def _changed(picture: Picture) -> dict[str, float]:
    """Return the nanoseconds that one change takes."""
    both = (SignalType.PAUSED, SignalType.UNPAUSED)
    steps = itertools.cycle((type_, one.id) for type_ in both for one in picture.some)
    before = time.thread_time_ns()
    for type_, id in itertools.islice(steps, CHANGES):
        picture.tracker.apply_signal(Signal(type_, id, datetime.now(UTC)))
    return {"change": (time.thread_time_ns() - before) / CHANGES}
