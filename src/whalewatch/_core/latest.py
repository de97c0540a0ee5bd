"""Iterators that give the newest value only: a reader that comes late misses those in between, and nothing else.

They are no async generators, because cancelling a wait must not end the iteration.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from whalewatch._core.feed import Feed
from whalewatch._core.snapshot import Snapshot
from whalewatch._core.status import Status, WatchState

__all__ = ["PictureChanges", "StatusChanges", "first_picture"]

LONGEST_DEBOUNCE = 10
"""Times `debounce` after which a picture is given although changes go on."""


async def first_picture(feed: Feed) -> Snapshot:
    """Wait for the first synchronisation, and return the current picture."""
    feed.check_begun()
    if not feed.was_synced:
        await feed.changed.until(lambda: feed.was_synced or feed.ended)
        if not feed.was_synced:
            feed.raise_ended()
    return feed.snapshot


class StatusChanges(AsyncIterator[Status]):
    """Iterates over the status of a watch.

    Args:
        feed: is notified after each change.
        current: returns the current status.
    """

    def __init__(self, feed: Feed, current: Callable[[], Status]) -> None:
        self._feed = feed
        self._current = current
        self._seen: Status | None = None

    async def __anext__(self) -> Status:
        self._feed.check_process()
        seen = self._seen
        if seen is not None and seen.state is WatchState.CLOSED:
            raise StopAsyncIteration
        await self._feed.changed.until(lambda: self._current() is not seen)
        self._seen = self._current()
        return self._seen


class PictureChanges(AsyncIterator[Snapshot]):
    """Iterates over pictures, from the first that is synchronised on.

    Args:
        feed: has them.
        debounce: see `Portfolio.changes`.
    """

    def __init__(self, feed: Feed, debounce: float) -> None:
        if not 0 <= debounce < float("inf"):
            msg = f"debounce must be 0 or more seconds, not {debounce}"
            raise ValueError(msg)
        self._feed = feed
        self._debounce = debounce
        self._given: int | None = None
        self._seen = 0
        # By the clock of the reader's loop: when it is quiet, and when it no longer waits for that; None without news.
        self._quiet_at: float | None = None
        self._latest_at = 0.0

    async def __anext__(self) -> Snapshot:
        feed = self._feed
        await first_picture(feed)
        if self._given is None:
            await feed.changed.until(lambda: feed.snapshot.synced or feed.ended)
            there = feed.snapshot.synced
        else:
            there = await self._changed(self._given)
        if not there:
            if feed.error is not None:
                feed.raise_ended()
            raise StopAsyncIteration
        if self._given is not None and self._debounce > 0:
            await self._quiet()
        snapshot = feed.snapshot
        self._given, self._quiet_at = snapshot.revision, None
        return snapshot

    async def _changed(self, revision: int) -> bool:
        """Wait for another revision; return False if the watch has ended without one."""
        feed = self._feed
        await feed.changed.until(lambda: feed.snapshot.revision != revision or feed.ended)
        return feed.snapshot.revision != revision

    async def _quiet(self) -> None:
        """Wait for a time without changes, or for the end of the watch; a wait that is cancelled goes on later."""
        loop = asyncio.get_running_loop()
        with suppress(TimeoutError):
            while True:
                now, revision = loop.time(), self._feed.snapshot.revision
                if self._quiet_at is None:
                    self._latest_at = now + LONGEST_DEBOUNCE * self._debounce
                if self._quiet_at is None or revision != self._seen:
                    self._quiet_at, self._seen = min(now + self._debounce, self._latest_at), revision
                async with asyncio.timeout_at(self._quiet_at):
                    if not await self._changed(revision):
                        return
