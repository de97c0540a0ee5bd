"""What a query costs, with few containers and with many."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime

from tests.benchmarks.figures import Row
from whalewatch import Container, Portfolio, Snapshot
from whalewatch._core.feed import Feed

SIZES = (10, 10_000)
CALLS = 20_000
PER_PROJECT = 5
STARTED = datetime(2026, 1, 1, tzinfo=UTC)

Query = Callable[[str], Awaitable[object]]


def container(number: int) -> Container:
    return Container(
        id=f"{number:064x}",
        name=f"container-{number}",
        pid=1000 + number,
        project=f"project-{number // PER_PROJECT}",
        started_at=STARTED,
    )


def feed_of(size: int) -> Feed:
    """Make a feed whose picture has that many containers."""
    feed = Feed()
    pairs = [(None, container(number)) for number in range(size)]
    feed.publish(Snapshot(revision=0, as_of=STARTED)._changed(pairs, revision=1, as_of=STARTED, synced=True))
    return feed


def measure(rounds: int, progress: Callable[[str], None]) -> Iterator[Row]:
    """Look containers and projects up, by turns in a small picture and in a large one."""
    feeds = {size: feed_of(size) for size in SIZES}
    took: dict[tuple[str, int], list[float]] = {}
    for turn in range(rounds):
        progress(f"lookups, {turn + 1} of {rounds}")
        for size in SIZES if turn % 2 else reversed(SIZES):
            for what, nanoseconds in asyncio.run(_queries(feeds[size], size)):
                took.setdefault((what, size), []).append(nanoseconds)
    small, large = SIZES
    for what in dict.fromkeys(what for what, _ in took):
        ours, beside = took[what, large], took[what, small]
        yield Row.of(
            *("lookups", f"{what}, {large:,} containers", "ns", ours, (f"{small} containers:", beside)),
            target="< 1,000 ns, ratio 1",
        )


async def _queries(feed: Feed, size: int) -> list[tuple[str, float]]:
    portfolio = Portfolio(feed)
    known = [container(number) for number in range(0, size, max(1, size // 100))]
    names, ids, projects = ([getattr(one, key) for one in known] for key in ("name", "id", "project"))
    return [
        ("await portfolio.container(name)", await _awaited(portfolio.container, names)),
        ("await portfolio.container(id)", await _awaited(portfolio.container, ids)),
        ("await portfolio.container(missing)", await _awaited(portfolio.container, [f"no-{name}" for name in names])),
        ("await portfolio.project(name)", await _awaited(portfolio.project, projects)),
        ('await portfolio.project("")', await _awaited(portfolio.project, [""])),
        ("portfolio.snapshot().container(name)", _called(portfolio, names)),
    ]


async def _awaited(query: Query, keys: Sequence[str]) -> float:
    before = time.thread_time_ns()
    for key in itertools.islice(itertools.cycle(keys), CALLS):
        await query(key)
    return (time.thread_time_ns() - before) / CALLS


def _called(portfolio: Portfolio, keys: Sequence[str]) -> float:
    before = time.thread_time_ns()
    for key in itertools.islice(itertools.cycle(keys), CALLS):
        portfolio.snapshot().container(key)
    return (time.thread_time_ns() - before) / CALLS
