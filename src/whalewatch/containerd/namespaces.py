"""List many namespaces at the same time, so that those that hang do not hide the others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

from whalewatch._core.errors import EngineError, EngineTimeout
from whalewatch._core.slots import release_when_slow

__all__ = ["LISTING_TIMEOUT", "list_each"]

LISTED_AT_ONCE = 8
"""Number of namespaces that are listed at the same time; slow ones do not count."""

WORKERS = 32
"""Number of namespaces that are listed at the same time, with slow ones."""

LISTING_TIMEOUT = 10.0
"""Seconds that the listing of a namespace may take until it makes progress. This is less than the watcher allows by
default, so that namespaces that hang do not hide the others."""


async def list_each(
    namespaces: Collection[str],
    list_one: Callable[[str, asyncio.Timeout], Awaitable[None]],
    message: Callable[[str], str],
) -> dict[str, EngineError]:
    """List each namespace; return the errors of those that could not be listed.

    Args:
        namespaces: their names.
        list_one: lists one, and extends its time limit when it makes progress.
        message: names the engine in front of a message.
    """
    failed: dict[str, EngineError] = {}
    slots = asyncio.Semaphore(LISTED_AT_ONCE)
    deadline = asyncio.get_running_loop().time() + LISTING_TIMEOUT
    waiting = iter(namespaces)

    async def work() -> None:
        for namespace in waiting:
            try:
                async with asyncio.timeout_at(deadline) as limit:
                    await asyncio.sleep(0)  # if the deadline has passed, no call is made
                    await slots.acquire()
                    with release_when_slow(slots, LISTING_TIMEOUT):
                        await list_one(namespace, limit)
            except EngineError as error:
                failed[namespace] = error
            except TimeoutError:
                failed[namespace] = EngineTimeout(message(f"namespace {namespace!r} does not answer"))

    async with asyncio.TaskGroup() as tasks:
        for number in range(min(WORKERS, len(namespaces))):
            tasks.create_task(work(), name=f"whalewatch listing {number}")
    return failed
