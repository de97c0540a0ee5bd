"""What a query and a change cost, with few containers and with many."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime

from tests.benchmarks.figures import Measure, Row, by_turns, rows
from tests.support.scripted import whole
from whalewatch import Container, ListedContainer, Listing, Portfolio, Signal, SignalType
from whalewatch._core.feed import Feed
from whalewatch._core.status import Counters
from whalewatch._core.tracker import Tracker

SMALL, MEDIUM, LARGE = 10, 1_000, 10_000
CALLS = 20_000
CHANGES = 2_000


class Picture:
    """A picture of so many containers, without an engine; `some` of them are asked for, and change."""

    def __init__(self, size: int) -> None:
        containers = [
            Container(id=f"{number:064x}", name=f"container-{number}", pid=1000 + number, project=f"p-{number // 5}")
            for number in range(size)
        ]
        feed = Feed()
        feed.begin()
        self.portfolio = Portfolio(feed)
        self.some = containers[:: max(1, size // 100)]
        self.tracker = Tracker(feed, lambda: datetime.now(UTC), Counters())
        listed = {one.id: ListedContainer(container=one) for one in containers}
        whole(
            self.tracker.open(lambda _id, _reason: None),
            self.tracker.apply_listing(Listing(containers=listed, absence_is_death=True)),
            self.tracker.finish_sync(),
        )


def lookups(options: argparse.Namespace) -> Iterator[Row]:
    """Look containers and projects up, by turns in a small picture and in a large one."""
    small = f"{SMALL} containers:"
    pictures = {small: Picture(SMALL), "ours": Picture(LARGE)}
    took = by_turns("lookups", options.rounds, pictures, lambda picture: asyncio.run(_looked_up(picture)))
    target = "< 1,000 ns, ratio 1"
    measures = [Measure(what, f"{what}, {LARGE:,} containers", "ns", target=target) for what in took[small][0]]
    return rows(measures, took, beside=small)


async def _looked_up(picture: Picture) -> dict[str, float]:
    """Return the nanoseconds that each query takes."""
    portfolio = picture.portfolio
    names, ids, projects = ([getattr(one, key) for one in picture.some] for key in ("name", "id", "project"))
    took = {
        "await portfolio.container(name)": await _awaited(portfolio.container, names),
        "await portfolio.container(id)": await _awaited(portfolio.container, ids),
        "await portfolio.container(missing)": await _awaited(portfolio.container, [f"no-{name}" for name in names]),
        "await portfolio.project(name)": await _awaited(portfolio.project, projects),
        'await portfolio.project("")': await _awaited(portfolio.project, [""]),
    }
    before = time.thread_time_ns()
    for name in itertools.islice(itertools.cycle(names), CALLS):
        portfolio.snapshot().container(name)
    return took | {"portfolio.snapshot().container(name)": (time.thread_time_ns() - before) / CALLS}


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
