"""Whatever an adapter, an application or an answer does, a watch neither hangs, nor goes deaf, nor believes it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator

import pytest

from tests.support.scripted import PATIENCE, ScriptedEngine, box, within
from whalewatch import Container, EngineError, Retry, Signal, SignalType, WatchEnded, Watcher, WatchState, moby
from whalewatch.testing import FakeDocker

pytestmark = pytest.mark.promise(10)

QUICKLY = Retry(wait=lambda _: 0.0)


async def test_entering_and_leaving_at_once_ends_the_watch() -> None:
    watcher = Watcher(ScriptedEngine())
    events = watcher.events()
    async with watcher:
        pass
    assert watcher.status.state is WatchState.CLOSED
    async with asyncio.timeout(PATIENCE):
        assert [event async for event in events] == []
        with pytest.raises(WatchEnded):
            await watcher.ready()
        with pytest.raises(WatchEnded):
            await watcher.portfolio.names()


@pytest.mark.parametrize("kind", ["connect", "listing", "inspect", "ping"])
async def test_cancellation_from_within_an_adapter_ends_nothing_silently(kind: str) -> None:
    engine = ScriptedEngine(box("a"))
    with engine.fail(kind, asyncio.CancelledError()):
        watcher = await Watcher(engine, retry=QUICKLY, heartbeat=0.01 if kind == "ping" else 10.0).__aenter__()
        await within(engine.until(lambda: engine.calls[kind] >= 2))
    try:
        await watcher.portfolio.wait_for("a", PATIENCE)
        await watcher.portfolio.in_sync(PATIENCE)
    finally:
        await watcher.__aexit__(None, None, None)


class Confused(ScriptedEngine):
    """Answers with a container's full id to whatever it is asked about, as Docker does to names."""

    async def inspect(self, id: str, /) -> Container | None:
        return await super().inspect("a")


async def test_answer_about_another_container_is_not_believed() -> None:
    engine = Confused(box("a"))
    async with Watcher(engine) as watcher:
        await watcher.ready(PATIENCE)
        engine.tell(SignalType.STARTED, "alias", 5)
        await within(engine.until(lambda: watcher.stats.unresolved == 1))
        assert [c.id for c in watcher.portfolio.snapshot()] == ["a"]
        assert [c.id for c in await watcher.portfolio.containers("")] == ["a"]


async def test_asking_for_the_id_disturbs_no_watcher_and_leaves_nothing_open() -> None:
    async with FakeDocker() as fake:
        async with moby.watch(fake.address, retry=None) as watcher:
            engine = watcher.engine
            told = await asyncio.gather(engine.id(), engine.version(), watcher.ready(PATIENCE))
            assert told[1] == "26.1.5"
        idle = moby.MobyEngine(fake.address)
        assert await idle.id() == told[0]
        gc.collect()  # a session left open would warn, and fail the test
        assert idle.client is None


async def test_short_lived_containers_leave_nothing_behind_in_memory() -> None:
    engine = ScriptedEngine()
    async with Watcher(engine, audit=None) as watcher:
        await watcher.ready(PATIENCE)
        await within(engine.until(lambda: watcher.stats.audits == 1))
        for number in range(100):
            engine.start(box(f"c{number}", start=number + 1))
            await watcher.portfolio.wait_for(f"c{number}", PATIENCE)
            engine.exit(f"c{number}")
            await watcher.portfolio.wait_gone(f"c{number}", PATIENCE)
        assert (watcher._tracker.audit.touched, watcher._tracker._states) == (set(), {})


class Peculiar(EngineError):
    """An application's own error, which wants arguments of its own."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


async def test_error_of_an_applications_own_class_reaches_everyone() -> None:
    engine = ScriptedEngine()
    with engine.fail("connect", Peculiar(7, "no")):
        async with Watcher(engine, retry=None) as watcher:
            with pytest.raises(Peculiar, match="7: no") as caught:
                await watcher.ready(PATIENCE)
            assert caught.value.code == 7


class Reluctant(ScriptedEngine):
    """Takes its time to close a stream."""

    async def signals(self) -> AsyncIterator[Signal]:
        try:
            async for signal in super().signals():
                yield signal
        finally:
            await self._called("closing")


async def test_picture_is_not_called_true_while_a_stream_closes() -> None:
    engine = Reluctant(box("a"))
    async with Watcher(engine, heartbeat=0.01, retry=QUICKLY) as watcher:
        await watcher.portfolio.in_sync(PATIENCE)
        with engine.hold("closing") as closing:
            with engine.fail("ping"):
                await closing.reached()
            assert not watcher.portfolio.snapshot().synced
        await watcher.portfolio.in_sync(PATIENCE)
