"""A program that watches a Docker engine and forks: `python -m tests.support.forking ADDRESS`.

It says what it has done in lines, and goes on when it is given one. The child stays until the program ends.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Awaitable
from contextlib import suppress
from typing import NoReturn

import pytest

from tests.support.followed import eventually
from tests.support.scripted import PATIENCE
from whalewatch import Watcher, WatchState, moby


async def refused(*uses: Awaitable[object]) -> None:
    for use in uses:
        with pytest.raises(RuntimeError, match="fork"):
            await asyncio.wait_for(use, PATIENCE)


async def misuse(watcher: Watcher) -> None:
    """Use a watcher of the parent's in all ways that wait, and none that does not."""
    portfolio = watcher.portfolio
    await refused(
        *(watcher.ready(), watcher.run(), watcher.__aenter__(), watcher.__aexit__(None, None, None)),
        *(anext(watcher.events()), anext(watcher.status_changes()), portfolio.names(), portfolio.container("x")),
        *(portfolio.in_sync(), portfolio.wait_for("x"), portfolio.wait_gone("x")),
    )
    await watcher.__aexit__(ValueError, ValueError(), None)  # lets the error of the body pass
    assert len(portfolio.snapshot()) == 1
    assert watcher.status.state is WatchState.SYNCED


def be_the_child(watcher: Watcher, tasks: set[asyncio.Task[object]]) -> NoReturn:
    """Do what a child may do to its copy, then stay until the parent has ended."""
    try:
        asyncio.run(misuse(watcher))
        for task in tasks:  # as garbage collection does in the end
            with suppress(RuntimeError):
                task.get_coro().close()
        gc.collect()
        sys.stdout.write("child\n")
        sys.stdout.flush()
        sys.stdin.read()
        os._exit(0)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the child must not go on as the parent
        sys.stdout.write(f"{error!r}\n")
        sys.stdout.flush()
        os._exit(1)


async def main(address: str) -> None:
    loop = asyncio.get_running_loop()
    async with moby.watch(address, audit=None) as watcher:
        await watcher.ready(10)
        await eventually(lambda: watcher.stats.audits)
        here = asyncio.current_task()
        if os.fork() == 0:
            be_the_child(watcher, asyncio.all_tasks(loop) - {here})
        await loop.run_in_executor(None, sys.stdin.readline)
        await watcher.portfolio.wait_for("later", 10)
        stats = watcher.stats
        told = f"{stats.calls['events']} stream, {stats.outages} outages, {stats.reopened} reopened"
    sys.stdout.write(f"{told}; left\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.readline)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
