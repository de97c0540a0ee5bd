"""Readers that do not read: neither another client of the engine nor our own consumers can hold up a watcher."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.promises.conftest import DOCKERS, Subject
from tests.support.checker import PATIENCE, checked
from tests.support.engines.control import DockerControl
from tests.support.fold import Fold

pytestmark = [pytest.mark.live, pytest.mark.promise(5)]


TAGS = 1900
"""Events of images; the engine keeps 1,024 for each reader, then waits 0.1 s for it at each event."""

RENAMES = 1300
"""Events that concern us, among them: more than the engine would keep for a watcher that does not read either."""

AT_ONCE = 80
"""Callers: the engine waits for a stalled reader within each call."""

BOXES = 16

BUFFER = 32
"""Events that wait for our own idle reader before they collapse."""


@asynccontextmanager
async def stalled(socket: Path) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """Subscribe to all events, and read none before the value is iterated."""
    # HTTP 1.0 knows no chunks.
    reader, writer = await asyncio.open_unix_connection(socket, limit=4096)
    try:
        writer.write(b"GET /events HTTP/1.0\r\nHost: docker\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        yield _events(reader)
    finally:
        writer.transport.abort()


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    rest = b""
    while data := await reader.read(65_536):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.strip():
                yield json.loads(line)


async def many_events(control: DockerControl, boxes: Sequence[str]) -> None:
    """Tag images and rename containers, by many callers at once."""
    left = [*(None for _ in range(TAGS)), *(boxes[number % BOXES] for number in range(RENAMES))]
    random.Random(1).shuffle(left)
    numbers = itertools.count()

    async def call() -> None:
        while left:
            box, number = left.pop(), next(numbers)
            if box is None:
                await control.tag("tiny:latest", f"load:{number % 10}")
            else:
                await control.rename(box, f"box-{number}")

    async with asyncio.TaskGroup() as callers:
        for _ in range(AT_ONCE):
            callers.create_task(call())


async def tags(events: AsyncIterator[dict[str, Any]]) -> int:
    """Count the tags that are told, up to the first marker."""
    count = 0
    async for event in events:
        if event["Action"] == "tag":
            if event["Actor"]["Attributes"]["name"].startswith("marker:"):
                break
            count += 1
    return count


@pytest.mark.parametrize("subject", DOCKERS, indirect=True)
async def test_neither_foreign_nor_own_slow_readers_hold_up_a_watcher(subject: Subject) -> None:
    engine, control = subject.engine, subject.control
    boxes = await asyncio.gather(*(control.run(f"box-of-{number}") for number in range(BOXES)))
    async with (
        checked(engine.address, control) as check,
        stalled(engine.socket) as unread,
        control.events() as foreign,
    ):
        idle = check.watcher.events(buffer=BUFFER)
        fold = Fold()
        fold.take(await anext(idle))
        counting = asyncio.create_task(tags(foreign))
        load = asyncio.create_task(many_events(control, boxes))
        probe = await control.run("probe")
        await check.expect(probe, "started")
        assert not load.done()
        await load
        await check.settled()
        assert check.watcher.stats.outages == 0
        assert check.watcher.stats.signals >= RENAMES

        # The control experiment: whoever reads is told nearly everything, on a machine that is busy; whoever does not
        # loses much of it.
        marking = asyncio.create_task(_mark(control))
        async with asyncio.timeout(60):
            told, lost = await counting, TAGS - await tags(unread)
        marking.cancel()
        await asyncio.wait({marking})
        assert TAGS - told < lost / 4

        # And what our own idle reader has not read became the difference.
        assert idle.stats.collapses > 0
        assert idle.stats.pending <= BUFFER + BOXES + 1
        async with asyncio.timeout(PATIENCE), idle:
            while fold.revision < check.fold.revision:
                fold.take(await anext(idle))
        assert fold.alive == check.fold.alive


async def _mark(control: DockerControl) -> None:
    """Tag until somebody has noticed: the engine may drop some of these too."""
    while True:
        await control.tag("tiny:latest", "marker:1")
        await asyncio.sleep(0.02)
