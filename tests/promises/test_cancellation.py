"""Ending a watch at each single step it takes: nothing is left behind, and no cancellation is swallowed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
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

    engine: SlowEngine
    watcher: Watcher
    steps: Steps
    told: asyncio.Task[None]

    @property
    def to_the_end(self) -> bool:
        """Whether the whole story was told."""
        return self.told.done() and not self.told.cancelled() and self.told.exception() is None

    def nothing_is_left(self) -> None:
        """Everything has ended, and the engine was let go."""
        loop = asyncio.get_running_loop()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert [timer for timer in loop._scheduled if not timer.cancelled()] == []  # type: ignore[attr-defined]
        assert self.engine.streams == []
        assert self.engine.closed >= 1
        assert self.watcher.status.state is WatchState.CLOSED
        assert not self.watcher.portfolio.snapshot().synced


def play(way: Callable[[Play, int], Any], step: int) -> Play:
    """Play the story in a loop in which waiting takes no time, and end it in some way before a step."""

    async def main() -> Play:
        engine = SlowEngine(box("a", pid=1), box("b", pid=2))
        watcher = Watcher(
            engine, retry=AT_ONCE, heartbeat=5.0, call_timeout=2.0, audit=7.0, concurrency=2, random=Random(1)
        )
        steps = Steps()
        steps.install(asyncio.get_running_loop())
        playing = Play(engine, watcher, steps, asyncio.create_task(story(engine, watcher)))
        try:
            await way(playing, step)
        finally:
            playing.told.cancel()
            await asyncio.wait({playing.told})
        if not playing.told.cancelled():
            with suppress(WatchEnded):  # the story was told to a watch that had been ended
                playing.told.result()
        playing.nothing_is_left()
        return playing

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


async def cancelling_run(playing: Play, step: int) -> None:
    """Cancel the task that runs the watcher, within the step."""
    running = asyncio.create_task(playing.watcher.run())
    asked = False

    def cancel() -> None:
        nonlocal asked
        asked = running.cancel()

    playing.steps.before(step, cancel)
    await asyncio.wait({running, playing.told}, return_when=asyncio.FIRST_COMPLETED)
    if not asked:
        running.cancel()
    await asyncio.wait({running}, timeout=2 * CLOSE_TIMEOUT)
    swallowed = not running.done()
    running.cancel()
    await asyncio.wait({running})
    assert not swallowed, "its cancellation was swallowed"
    assert running.cancelled(), "its cancellation was swallowed"


async def cancelling_the_body(playing: Play, step: int) -> None:
    """Cancel the task that waits within the block."""

    async def block() -> None:
        async with playing.watcher:
            await asyncio.wait({playing.told})

    task = asyncio.create_task(block())
    asked = False

    def cancel() -> None:
        nonlocal asked
        asked = task.cancel()

    playing.steps.before(step, cancel)
    await asyncio.wait({task})
    assert task.cancelled() == asked, "its cancellation was swallowed"


def cancelling_the_leaving(after: int) -> Callable[[Play, int], Any]:
    """Leave the block, and cancel the task that does so some steps after."""

    async def way(playing: Play, step: int) -> None:
        left_at = cancelled = 0

        async def block() -> None:
            nonlocal left_at
            async with playing.watcher:
                await until_told_or(playing, step)
                left_at = playing.steps.taken
                playing.steps.before(left_at + after, cancel)

        def cancel() -> None:
            nonlocal cancelled
            cancelled = task.cancel()

        task = asyncio.create_task(playing.steps.counted(block()))
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
    playing = play(leaving, 10**9)
    assert playing.to_the_end
    assert playing.steps.taken > 150
    assert dict(playing.engine.calls).keys() == {"connect", "signals", "listing", "inspect", "ping", "close"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "way", [leaving, cancelling_run, cancelling_the_body], ids=["leaving", "cancelling run()", "cancelling the body"]
)
def test_watch_ends_cleanly_at_every_step(way: Callable[[Play, int], Any]) -> None:
    with Complaints() as complaints:
        step = 0
        while True:
            step += 1
            with noted(f"ended before step {step}", complaints):
                playing = play(way, step)
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
        return stats.outages

    await passes(cut)
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


async def wire_play(way: Callable[..., Any], step: int) -> int:
    """Play the story over real sockets, end it in some way before a step, and return how many were taken."""
    loop = asyncio.get_running_loop()
    held, steps = len(Held.now().descriptors), Steps()
    async with FakeDocker() as fake:
        fake.run("web", health="healthy")
        fake.run("api")
        watcher = moby.watch(fake.address, retry=AT_ONCE, heartbeat=0.1, call_timeout=0.5, audit=0.05)
        steps.install(loop)
        try:
            await way(watcher, asyncio.create_task(wire_story(fake, watcher)), steps, step)
        finally:
            loop.set_task_factory(None)
        assert watcher.status.state is WatchState.CLOSED
        await fake.until(lambda: fake.subscribers == 0)
    await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()})
    await eventually(lambda: len(Held.now().descriptors) <= held)
    return steps.taken


@pytest.mark.slow
async def test_watch_of_real_sockets_ends_cleanly_at_any_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "REPORT_DELAY", 0.01)
    for name, seconds in {"REPORT_DELAY": 0.01, "EXIT_DELAY": 0.01, "FIRST_RETRY": 0.02}.items():
        monkeypatch.setattr(inspections, name, seconds)
    dice = shown_dice()
    loop = asyncio.get_running_loop()
    begun, plays = loop.time(), 0
    with Complaints() as complaints:
        longest = await wire_play(leaving_the_wire, 10**9)
        while loop.time() < begun + SAMPLING or plays < PLAYS:
            way, step = dice.choice([leaving_the_wire, cancelling_run_over_the_wire]), dice.randint(1, longest)
            with noted(f"ended before step {step} by {way.__name__}", complaints):
                await wire_play(way, step)
            plays += 1


async def leaving_the_wire(watcher: Watcher, told: asyncio.Task[None], steps: Steps, step: int) -> None:
    """Leave the block."""
    reached = asyncio.get_running_loop().create_future()
    steps.before(step, lambda: reached.set_result(None))
    async with watcher:
        await asyncio.wait({told, reached}, return_when=asyncio.FIRST_COMPLETED)
        await end(told)


async def cancelling_run_over_the_wire(watcher: Watcher, told: asyncio.Task[None], steps: Steps, step: int) -> None:
    """Cancel the task that runs the watcher, within the step."""
    running = asyncio.create_task(watcher.run())
    steps.before(step, running.cancel)
    await asyncio.wait({running, told}, return_when=asyncio.FIRST_COMPLETED)
    running.cancel()
    await asyncio.wait({running})
    assert running.cancelled(), "its cancellation was swallowed"
    await end(told)


async def end(told: asyncio.Task[None]) -> None:
    """End a story; it must not have failed before, but for the watch's end."""
    told.cancel()
    await asyncio.wait({told})
    if not told.cancelled():
        with suppress(WatchEnded):
            told.result()
