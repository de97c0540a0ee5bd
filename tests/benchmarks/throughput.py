"""How many events go through, and what one change costs."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from tests.benchmarks import run
from tests.benchmarks.figures import Row
from tests.benchmarks.lookups import container
from tests.benchmarks.programs import bare, fake
from whalewatch import Container, EventType, ListedContainer, Listing, Signal, SignalType, Subscription, moby
from whalewatch._core.feed import Feed
from whalewatch._core.status import Counters
from whalewatch._core.tracker import Tracker

EVENTS = 5_000
CONTAINERS = 100
SUBSCRIPTIONS = (1, 10, 100)
BUFFER = 2 * EVENTS  # nothing is to collapse: each reader gets each event
SIZES = (10, 1_000, 10_000)
CHANGES = 2_000


def through(rounds: int, progress: Callable[[str], None]) -> Iterator[Row]:
    """Let a fake engine in another process tell events, to readers of ours or to a bare reader."""
    contenders = ("bare", *SUBSCRIPTIONS)
    clock: dict[object, list[float]] = {contender: [] for contender in contenders}
    cpu: dict[object, list[float]] = {contender: [] for contender in contenders}
    with run.program("fake", CONTAINERS) as engine:
        socket = engine.answer()["socket"]
        for turn in range(rounds):
            for contender in contenders if turn % 2 else reversed(contenders):
                progress(f"{EVENTS} events, {turn + 1} of {rounds}: {contender}")
                reading = _bare(engine, socket) if contender == "bare" else _ours(engine, socket, int(contender))
                seconds, used = asyncio.run(reading)
                clock[contender].append(seconds)
                cpu[contender].append(used)
    for count in SUBSCRIPTIONS:
        for what, took in ((f"{EVENTS:,} events", clock), ("CPU of it", cpu)):
            ours, theirs = ([value * 1e3 for value in took[name]] for name in (count, "bare"))
            yield Row.of("throughput", f"{what}, subscriptions: {count}", "ms", ours, ("one bare reader", theirs))


async def _ours(engine: run.Program, socket: str, subscriptions: int) -> tuple[float, float]:
    async def read(events: Subscription) -> None:
        # Not counted: an event that an inspect has read already is rightly not told again.
        async for event in events:
            if event.container.name == fake.LAST and event.type is EventType.STARTED:
                return

    async with moby.watch(socket) as watcher:
        await watcher.ready()
        open_ = [watcher.events(replay=False, buffer=BUFFER) for _ in range(subscriptions)]
        readers = [asyncio.create_task(read(events)) for events in open_]
        await asyncio.sleep(0.2)  # until all of them wait, and the confirming listing has been made
        before, used = time.perf_counter(), time.process_time()
        engine.ask(str(EVENTS))
        async with asyncio.timeout(run.TIMEOUT):
            await asyncio.gather(*readers)
        took = time.perf_counter() - before, time.process_time() - used
        await asyncio.to_thread(engine.answer)
        return took


async def _bare(engine: run.Program, socket: str) -> tuple[float, float]:
    async with bare.session(socket) as http, http.get(f"{bare.BASE}/events") as response:
        await asyncio.sleep(0.2)
        before, used = time.perf_counter(), time.process_time()
        engine.ask(str(EVENTS))
        async for line in response.content:
            event = json.loads(line)
            if event["Action"] == "start" and event["Actor"]["Attributes"]["name"] == fake.LAST:
                break
        took = time.perf_counter() - before, time.process_time() - used
        await asyncio.to_thread(engine.answer)
        return took


def changes(rounds: int, progress: Callable[[str], None]) -> Iterator[Row]:
    """Pause and unpause in pictures of several sizes, by turns, with nobody subscribed."""
    trackers = {size: _tracker(size) for size in SIZES}
    took: dict[int, list[float]] = {size: [] for size in SIZES}
    for turn in range(rounds):
        progress(f"changes, {turn + 1} of {rounds}")
        for size in SIZES if turn % 2 else reversed(SIZES):
            ids = [container(number).id for number in range(0, size, max(1, size // 100))]
            before = time.thread_time_ns()
            for number in range(CHANGES):
                type_ = SignalType.PAUSED if (number // len(ids)) % 2 == 0 else SignalType.UNPAUSED
                trackers[size].apply_signal(Signal(type_, ids[number % len(ids)], datetime.now(UTC)))
            took[size].append((time.thread_time_ns() - before) / CHANGES / 1e3)
    for size in SIZES:
        beside = (f"among {SIZES[0]}:", took[SIZES[0]] if size != SIZES[0] else ())
        yield Row.of("changes", f"one change among {size:,} containers", "µs", took[size], beside)


def _tracker(size: int) -> Tracker:
    containers: list[Container] = [container(number) for number in range(size)]
    tracker = Tracker(Feed(), lambda: datetime.now(UTC), Counters())
    tracker.open(lambda _id, _reason: None)
    tracker.apply_listing(
        Listing(containers={one.id: ListedContainer(container=one) for one in containers}, absence_is_death=True)
    )
    tracker.finish_sync()
    return tracker
