"""Ending a watch at each single step it takes: nothing is left behind, and no cancellation is swallowed."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from random import Random
from typing import Any

import attrs
import pytest

from tests.support.engines.leaks import Held
from tests.support.followed import AT_ONCE, eventually
from tests.support.scripted import ScriptedEngine, box, lost_engine
from tests.support.stepping import Complaints, ImpatientLoop, Steps
from whalewatch import Signal, SignalType, Stats, WatchEnded, Watcher, WatchState, moby
from whalewatch._core import inspections, session
from whalewatch._core.watcher import CLOSE_TIMEOUT
from whalewatch.testing import FakeDocker

pytestmark = pytest.mark.promise(10)

PATIENCE = 100.0
"""Seconds, of a clock that nobody waits for, after which something that should have come is missing."""

SAMPLING = 5.0
"""Seconds that are spent on ending watches over real sockets."""

PLAYS = 3
"""Watches that are ended over real sockets at least, however long that takes on a busy machine."""


class SlowEngine(ScriptedEngine):
    """Each call and each signal takes a while, so that a watch can be ended before, within and after it."""

    async def _called(self, kind: str, id: str = "") -> None:
        await asyncio.sleep(0.01)
        await super()._called(kind, id)
        await asyncio.sleep(0.01)

    async def signals(self) -> AsyncIterator[Signal]:
        stream = super().signals()
        try:
            async for signal in stream:
                await asyncio.sleep(0.001)
                yield signal
                await asyncio.sleep(0.001)
        finally:
            await asyncio.sleep(0.001)
            await stream.aclose()  # type: ignore[attr-defined] # it is an async generator


async def passes(watcher: Watcher, condition: Callable[[Stats], object], seconds: float = PATIENCE) -> None:
    """Wait until the counters of a watcher show something."""
    await eventually(lambda: condition(watcher.stats), seconds)


async def story(engine: SlowEngine, watcher: Watcher) -> None:
    """All that can happen to a watch."""
    with engine.fail("connect", lost_engine()):
        await passes(watcher, lambda stats: stats.calls.get("connect", 0) >= 2)
    await watcher.ready(PATIENCE)
    await passes(watcher, lambda stats: stats.audits == 1)
    # events, with an inspect that fails at first
    with engine.fail("inspect c"):
        engine.start(box("c", pid=3))
        engine.rename("a", "anew")
        engine.pause("b")
        engine.exit("a", exit_code=1)
        await passes(watcher, lambda stats: stats.unresolved == 1)
    await passes(watcher, lambda stats: stats.unresolved == 0)
    # a cut while a reading is put off, and what has changed meanwhile
    engine.tell(SignalType.CHANGED, "b", likely_exiting=True)
    await asyncio.sleep(0.15)
    engine.tell(SignalType.CHANGED, "b", likely_exiting=True)
    await asyncio.sleep(0.05)
    engine.end(lost_engine())
    engine.alive["d"] = box("d", pid=4)
    del engine.alive["b"]
    await passes(watcher, lambda stats: stats.syncs == 2)
    # an audit that has to repair something, and looks again soon because something was lost
    engine.alive["e"] = box("e", pid=5)
    engine.tell(SignalType.LOST)
    await passes(watcher, lambda stats: stats.drift == 1)
    # a container that hangs
    with engine.hold("inspect c"):
        engine.rename("c", "slow")
        await passes(watcher, lambda stats: stats.unresolved == 1)
    await passes(watcher, lambda stats: stats.unresolved == 0)
    # an engine that answers no calls
    with engine.hold("ping"):
        await passes(watcher, lambda stats: stats.outages == 2)
    await passes(watcher, lambda stats: stats.syncs == 3)
    # a stream that ends by itself
    engine.end()
    await passes(watcher, lambda stats: stats.syncs == 4 and stats.audits > 4)


@attrs.define
class Play:
    """One watch that is ended at a step, while its story is told."""

    watcher: Watcher
    steps: Steps
    told: asyncio.Task[None]


Way = Callable[[Play, int], Coroutine[Any, Any, None]]
"""How to enter a watch and end it before a step."""


async def played(watcher: Watcher, told: Coroutine[Any, Any, None], way: Way, step: int) -> Play:
    """Tell a watch its story, and end it in some way before a step."""
    loop, steps = asyncio.get_running_loop(), Steps()
    steps.install(loop)
    playing = Play(watcher, steps, asyncio.create_task(told))
    try:
        await way(playing, step)
    finally:
        playing.told.cancel()
        await asyncio.wait({playing.told})
        loop.set_task_factory(None)
    if not playing.told.cancelled():
        with suppress(WatchEnded):  # the story was told to a watch that had been ended
            playing.told.result()
    assert watcher.status.state is WatchState.CLOSED
    assert not watcher.portfolio.snapshot().synced
    return playing


def play(way: Way, step: int) -> tuple[Play, SlowEngine]:
    """Play the story in a loop in which waiting takes no time, end it before a step, and see that nothing is left."""

    async def main() -> tuple[Play, SlowEngine]:
        loop, engine = asyncio.get_running_loop(), SlowEngine(box("a", pid=1), box("b", pid=2))
        watcher = Watcher(
            engine, retry=AT_ONCE, heartbeat=5.0, call_timeout=2.0, audit=7.0, concurrency=2, random=Random(1)
        )
        playing = await played(watcher, story(engine, watcher), way, step)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert [timer for timer in loop._scheduled if not timer.cancelled()] == []  # type: ignore[attr-defined]
        assert engine.streams == []
        assert engine.closed >= 1
        return playing, engine

    with asyncio.Runner(loop_factory=ImpatientLoop) as runner:
        return runner.run(main())


async def until_told_or(playing: Play, step: int) -> None:
    """Wait until the story has been told, or the step is about to be taken."""
    reached = asyncio.get_running_loop().create_future()
    playing.steps.before(step, lambda: reached.set_result(None))
    await asyncio.wait({playing.told, reached}, return_when=asyncio.FIRST_COMPLETED)


async def leaving(playing: Play, step: int) -> None:
    """Leave the block."""
    loop = asyncio.get_running_loop()
    async with playing.watcher:
        await until_told_or(playing, step)
        began = loop.time()
    assert loop.time() - began < 2 * CLOSE_TIMEOUT, "its cancellation was swallowed: it took a second one"


def cancelling(run: Callable[[Watcher], Coroutine[Any, Any, None]]) -> Way:
    """Cancel the task that runs the watcher, within the step."""

    async def way(playing: Play, step: int) -> None:
        running = asyncio.create_task(run(playing.watcher))
        asked = False

        def cancel() -> None:
            nonlocal asked
            asked = running.cancel()

        playing.steps.before(step, cancel)
        await asyncio.wait({running, playing.told}, return_when=asyncio.FIRST_COMPLETED)
        if not asked:
            running.cancel()
        await asyncio.wait({running}, timeout=2 * CLOSE_TIMEOUT)
        in_time = running.done()
        running.cancel()
        await asyncio.wait({running})
        assert (in_time, running.cancelled()) == (True, True), "its cancellation was swallowed"

    return way


async def block(watcher: Watcher) -> None:
    """Wait within the block for ever."""
    async with watcher:
        await asyncio.get_running_loop().create_future()


WAYS = {"leaving": leaving, "cancelling run()": cancelling(Watcher.run), "cancelling the body": cancelling(block)}


def cancelling_the_leaving(after: int) -> Way:
    """Leave the block, and cancel the task that does so some steps after."""

    async def way(playing: Play, step: int) -> None:
        left_at = cancelled = 0

        async def body() -> None:
            nonlocal left_at
            async with playing.watcher:
                await until_told_or(playing, step)
                left_at = playing.steps.taken
                playing.steps.before(left_at + after, cancel)

        def cancel() -> None:
            nonlocal cancelled
            cancelled = task.cancel()

        task = asyncio.create_task(playing.steps.counted(body()))
        await asyncio.wait({task})
        assert left_at
        assert task.cancelled() == cancelled, "its cancellation was swallowed"

    return way


@contextmanager
def noted(what: str, complaints: Complaints) -> Iterator[None]:
    """Say what was done if anything goes wrong within the block, or if anybody complains of it."""
    try:
        yield
        assert complaints.told == []
    except BaseException as error:
        error.add_note(what)
        raise


def shown_dice() -> Random:
    seed = Random().randrange(10**6)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it if the test fails
    return Random(seed)


def test_story_is_told_to_its_end() -> None:
    playing, engine = play(leaving, 10**9)
    assert (playing.told.done(), playing.told.cancelled(), playing.told.exception()) == (True, False, None)
    assert playing.steps.taken > 150
    assert dict(engine.calls).keys() == {"connect", "signals", "listing", "inspect", "ping", "close"}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_watch_ends_cleanly_at_every_step(way: Way) -> None:
    with Complaints() as complaints:
        for step in itertools.count(1):
            with noted(f"ended before step {step}", complaints):
                playing, _ = play(way, step)
            if step > playing.steps.taken:
                break
    assert step > 150


@pytest.mark.slow
def test_watch_ends_cleanly_though_the_leaving_is_cancelled_at_any_step() -> None:
    dice = shown_dice()
    with Complaints() as complaints:
        for after in range(1, 25):
            for step in dice.sample(range(1, 190), 8):
                with noted(f"left before step {step}, cancelled {after} steps later", complaints):
                    play(cancelling_the_leaving(after), step)


# ---- over real sockets


async def wire_story(fake: FakeDocker, watcher: Watcher) -> None:
    """Much of the same with real HTTP."""

    async def passes(condition: Callable[[Stats], object]) -> None:
        await eventually(lambda: condition(watcher.stats))

    with fake.faults.fail("info"):
        await passes(lambda stats: stats.calls.get("info", 0) >= 2)
    await watcher.ready(10.0)
    with fake.faults.fail("inspect", id="late"):
        late = fake.run("late")
        fake.rename("web", "shop")
        fake.pause("api")
        await passes(lambda stats: stats.unresolved)
    await passes(lambda stats: not stats.unresolved)
    fake.kill(late)

    def cut(stats: Stats) -> int:
        fake.faults.cut_streams()  # which may hit one that has just been replaced
        return stats.reopened

    await passes(cut)
    await fake.faults.restart()
    await passes(lambda stats: stats.outages)
    await passes(lambda stats: stats.syncs >= 2)
    with fake.faults.silently():
        fake.run("quiet")
    await passes(lambda _: "quiet" in watcher.portfolio.snapshot())
    fake.emit_raw(b"garbage\n")
    with fake.faults.freeze():
        await passes(lambda stats: stats.outages >= 2)
    await passes(lambda stats: stats.syncs >= 3)
    await fake.faults.restart()
    await passes(lambda stats: stats.syncs >= 4)


async def wire_play(way: Way, step: int) -> int:
    """Play the story over real sockets, end it in some way before a step, and return how many were taken."""
    held = len(Held.now().descriptors)
    async with FakeDocker() as fake:
        fake.run("web", health="healthy")
        fake.run("api")
        watcher = moby.watch(fake.address, retry=AT_ONCE, heartbeat=0.1, call_timeout=0.5, audit=0.05)
        playing = await played(watcher, wire_story(fake, watcher), way, step)
        await fake.until(lambda: fake.subscribers == 0)
    await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()})
    await eventually(lambda: len(Held.now().descriptors) <= held)
    return playing.steps.taken


@pytest.mark.slow
async def test_watch_of_real_sockets_ends_cleanly_at_any_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "REPORT_DELAY", 0.01)
    for name, seconds in {"REPORT_DELAY": 0.01, "EXIT_DELAY": 0.01, "FIRST_RETRY": 0.02}.items():
        monkeypatch.setattr(inspections, name, seconds)
    dice = shown_dice()
    loop = asyncio.get_running_loop()
    begun, plays = loop.time(), 0
    with Complaints() as complaints:
        longest = await wire_play(leaving, 10**9)
        while loop.time() < begun + SAMPLING or plays < PLAYS:
            (name, way), step = dice.choice([*WAYS.items()]), dice.randint(1, longest)
            with noted(f"ended before step {step} by {name}", complaints):
                await wire_play(way, step)
            plays += 1
