"""A program that watches a Docker engine and forks: `python -m tests.support.forking ADDRESS`.

It says what it has done in lines, and goes on when it is given one. The child stays until the program ends.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
from collections.abc import Awaitable
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
        *(watcher.ready(), watcher.aclose(), watcher.__aenter__(), watcher.__aexit__(None, None, None)),
        *(anext(watcher.events()), anext(watcher.status_changes()), portfolio.names(), portfolio.container("x")),
        *(portfolio.in_sync(), portfolio.wait_for("x"), portfolio.wait_gone("x")),
        *(portfolio.wait_healthy("x"), anext(portfolio.changes())),
    )
    with pytest.raises(RuntimeError, match="fork"):
        await watcher.run()
    await watcher.__aexit__(ValueError, ValueError(), None)  # lets the error of the body pass
    assert len(portfolio.snapshot()) == 1
    assert watcher.status.state is WatchState.SYNCED


async def main(address: str) -> None:
    loop = asyncio.get_running_loop()
    async with moby.watch(address, audit=None) as watcher:
        await watcher.ready(10)
        await eventually(lambda: watcher.stats.audits)
        if os.fork() == 0:
            asyncio.run(misuse(watcher))
            if sys.version_info >= (3, 14):  # where no task survives a fork
                stay()
            # asyncio shares the selector with the parent, and would stop it from listening to its own pipe.
            loop._close_self_pipe = lambda: None  # type: ignore[attr-defined]
            raise SystemExit  # so that the copies of all tasks are cancelled
        await loop.run_in_executor(None, sys.stdin.readline)
        await watcher.portfolio.wait_for("later", 10)
        stats = watcher.stats
        told = f"{stats.calls['events']} stream, {stats.outages} outages, {stats.reopened} reopened"
    say(f"{told}; left")
    await loop.run_in_executor(None, sys.stdin.readline)


def stay() -> NoReturn:
    """Let go of what nobody needs, and live on until the program ends; what it is given is for the parent alone."""
    gc.collect()
    parent = os.getppid()
    say("child")
    while os.getppid() == parent:
        time.sleep(0.01)
    os._exit(0)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1]))
    except SystemExit:  # the child
        stay()
