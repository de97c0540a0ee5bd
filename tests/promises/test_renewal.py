"""A renewed event stream: what was told before, and is still on its way in the former, is taken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import cast

import pytest

from tests.support.followed import followed
from tests.support.scripted import ScriptedEngine, box
from whalewatch import Origin, Signal, SignalType, Watcher

pytestmark = pytest.mark.promise(6)

LAG = 0.1
"""Seconds that an event is on its way."""


class Lagging(ScriptedEngine):
    """An engine whose first stream is behind: it brings a start only when there is a second one."""

    async def signals(self) -> AsyncIterator[Signal]:
        first = self.opened == 0
        async with aclosing(cast("AsyncGenerator[Signal, None]", super().signals())) as told:
            async for signal in told:
                if first and signal.type is SignalType.STARTED:
                    await self.until(lambda: self.opened == 2)
                    await asyncio.sleep(LAG)
                yield signal


async def test_event_on_its_way_in_the_former_stream_is_taken() -> None:
    engine = Lagging()
    async with followed(Watcher(engine, audit=0.2)) as follow:
        engine.start(box("late"))
        assert engine.opened == 1
        await follow.until(lambda: follow.types("late"))
        assert [event.origin for event in follow.news("late")] == [Origin.ENGINE]
        assert follow.stats.drift == 0
