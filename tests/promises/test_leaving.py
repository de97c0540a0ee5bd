"""Leaving a watch, in whatever state it is: it ends soon, and leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import attrs
import pytest
from tenacity import wait_fixed

from tests.support.followed import AT_ONCE, eventually, leave
from tests.support.scripted import PATIENCE, ScriptedEngine, box, lost_engine, turns, within
from whalewatch import Listing, Retry, Signal, SignalType, Watcher, WatchState, moby
from whalewatch.testing import FakeDocker

pytestmark = pytest.mark.promise(10)


@pytest.mark.parametrize("kind", ["info", "events", "list", "inspect", "ping"])
async def test_leaving_while_the_engine_hangs_in_a_call(kind: str) -> None:
    async with FakeDocker() as fake:
        fake.run("alone")
        gate = fake.faults.pause_at(kind)
        watcher = await moby.watch(fake.address, heartbeat=0.01 if kind == "ping" else 10).__aenter__()
        await within(gate.reached())
        await leave(watcher)


async def test_leaving_while_it_waits_to_try_again(tmp_path: Path) -> None:
    watcher = await moby.watch(f"unix://{tmp_path}/none.sock", retry=Retry(wait=wait_fixed(3600))).__aenter__()
    await eventually(lambda: watcher.status.state is WatchState.DISCONNECTED)
    await leave(watcher, 1.0)


class Rude(ScriptedEngine):
    """An adapter of which one method answers a cancellation with an exception of its own, once."""

    rude = ""

    async def signals(self) -> AsyncIterator[Signal]:
        try:
            async for signal in super().signals():
                yield signal
        except asyncio.CancelledError:
            self._answer("signals")
            raise

    async def _called(self, kind: str, id: str = "") -> None:
        try:
            await super()._called(kind, id)
        except asyncio.CancelledError:
            self._answer(kind)
            raise

    def _answer(self, kind: str) -> None:
        if kind == self.rude:
            self.rude = ""
            raise lost_engine() from None


@pytest.mark.parametrize("kind", ["connect", "signals", "listing", "inspect", "ping"])
async def test_leaving_although_the_adapter_fails_because_of_it(kind: str) -> None:
    engine = Rude(box("a"))
    engine.rude = kind
    with engine.hold("silence" if kind == "signals" else kind) as hold:
        watcher = await Watcher(engine, retry=AT_ONCE, heartbeat=0.01 if kind == "ping" else 10.0).__aenter__()
        if kind == "signals":
            await watcher.ready(PATIENCE)
        else:
            await hold.reached()
        await leave(watcher)
        assert engine.rude == "", "it was asked to stop, and was rude"


@pytest.mark.slow
async def test_leaving_although_the_adapter_does_not_close() -> None:
    engine = ScriptedEngine()
    with engine.hold("close"):
        watcher = await Watcher(engine).__aenter__()
        await watcher.ready(PATIENCE)
        await leave(watcher, 5.0)


async def test_cancelled_while_leaving_it_leaves_nothing_behind() -> None:
    engine = ScriptedEngine(box("a"))
    with engine.hold("close") as hold:
        watcher = await Watcher(engine).__aenter__()
        await watcher.ready(PATIENCE)
        leaving = asyncio.create_task(watcher.__aexit__(None, None, None))
        await hold.reached()
        for _ in range(2):
            leaving.cancel()
            await turns(2)
        assert not leaving.done(), "it leaves only when nothing is left"
        hold.release()
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(asyncio.CancelledError):
                await leaving
    assert (watcher.status.state, engine.streams) == (WatchState.CLOSED, [])
    assert watcher._task is not None
    assert watcher._task.done()


@pytest.mark.slow
async def test_streams_that_swallow_their_cancellation_are_ended_all_the_same() -> None:
    class Deaf(ScriptedEngine):
        async def signals(self) -> AsyncIterator[Signal]:
            yield Signal(SignalType.SUBSCRIBED)
            while True:
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(3600)
                yield Signal(SignalType.CHANGED, "nobody")

    engine = Deaf(box("a"))
    watcher = await Watcher(engine, audit=0.05, call_timeout=0.2).__aenter__()
    await watcher.ready(PATIENCE)
    await eventually(lambda: watcher.stats.audits > 4)
    readers = [task for task in asyncio.all_tasks() if task.get_name() == "whalewatch stream"]
    assert len(readers) <= 2, "the former one, and the one that takes over"
    await leave(watcher)


@pytest.mark.slow
async def test_relisting_of_a_part_that_fails_ends_with_the_watch() -> None:
    class Partly(ScriptedEngine):
        async def listing(self) -> Listing:
            whole = await super().listing()
            return attrs.evolve(whole, failed={"part": lost_engine()})

    watcher = await Watcher(Partly(box("a")), audit=0.05).__aenter__()
    await watcher.ready(PATIENCE)
    await eventually(lambda: watcher.stats.audits > 3)
    session = watcher._session
    assert session is not None
    await leave(watcher)
    assert session._relist is not None
    assert session._relist.cancelled()
    timers = [timer for timer in asyncio.get_running_loop()._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
    assert not [timer for timer in timers if "Event.set" in repr(timer)]
