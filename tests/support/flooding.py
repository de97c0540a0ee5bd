"""A program that follows an engine that floods it, and prints what that costs.

`python -m tests.support.flooding KIND COUNT CONTAINERS`; all kinds are those of `Flooding`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

from tests.support.followed import AT_ONCE, eventually
from tests.support.scripted import ScriptedEngine, alive, box, within
from whalewatch import Container, EngineError, Signal, SignalType, Watcher
from whalewatch._core import audit

CALM = 30.0
"""Seconds within which the picture has to be right after the flood."""


class Flooding(ScriptedEngine):
    """Reports many containers, none of which is alive at the end.

    Kinds: "hang" and "fail" are what inspects do meanwhile; "valid" reports complete containers that exit at once.
    """

    def __init__(self, kind: str, count: int, *containers: Container) -> None:
        super().__init__(*containers, complete=kind == "valid")
        self.kind = kind
        self.numbers = iter(range(count))  # for all streams: an audit renews the stream meanwhile
        self.begin, self.over = asyncio.Event(), asyncio.Event()

    async def signals(self) -> AsyncIterator[Signal]:
        streams = super().signals()
        yield await anext(streams)
        if not self.over.is_set():
            await self.begin.wait()
            for number in self.numbers:
                id = f"{number:064x}"
                yield Signal(SignalType.STARTED, id, container=box(id) if self.kind == "valid" else None)
                if self.kind == "valid":
                    yield Signal(SignalType.EXITED, id)
            self.over.set()
        async for signal in streams:
            yield signal

    async def inspect(self, id: str, /) -> Container | None:
        if self.begin.is_set() and not self.over.is_set():
            if self.kind == "hang":
                await self.over.wait()
            raise EngineError("not now")
        return await super().inspect(id)


def resident() -> float:
    """The resident memory of this process, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


class Stalls:
    """How long the loop was stopped at most, in seconds of computing: others on this machine do not count."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._since = time.thread_time()
        self.task = asyncio.create_task(self._measure())

    async def _measure(self) -> None:
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            self.longest, self._since = max(self.longest, now - self._since), now


async def main(kind: str, count: int, alive_before: int) -> None:
    engine = Flooding(kind, count, *(box(f"c{number}") for number in range(alive_before)))
    async with Watcher(engine, retry=AT_ONCE, call_timeout=1.0) as watcher:
        await watcher.ready()
        unread = watcher.events()
        before, stalls, began = resident(), Stalls(), time.monotonic()
        engine.begin.set()
        await within(engine.over.wait(), 300)
        grown, lasted = resident() - before, time.monotonic() - began
        stalls.task.cancel()
        kept = len(watcher._tracker._states) - alive_before
        # What the flood hid: nobody reports it any more.
        del engine.alive["c0"]
        engine.alive["new"] = box("new")
        engine.tell(SignalType.LOST)
        await eventually(lambda: alive(watcher.portfolio.snapshot()) == engine.alive, CALM)
        stats = {"lost": watcher.stats.lost, "outages": watcher.stats.outages, "pending": unread.stats.pending}
    print(json.dumps({"grown": grown, "lasted": lasted, "stall": stalls.longest, "kept": kept, **stats}))  # noqa: T201


if __name__ == "__main__":
    audit.LAST_DELAY = 1.0  # so that it is calm again soon
    asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:])))
