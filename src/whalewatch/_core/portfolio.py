"""The awaitable queries: what applications ask, from any thread and in any event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

from whalewatch._core.errors import NotSynced
from whalewatch._core.feed import Feed
from whalewatch._core.model import Container, EventType, Pod, Project
from whalewatch._core.snapshot import Snapshot
from whalewatch._core.subscription import Subscription

__all__ = ["Portfolio", "deadline"]

Wanted = str | Callable[[Container], bool]


@asynccontextmanager
async def deadline(feed: Feed, timeout: float | None, what: str) -> AsyncIterator[None]:
    """Turn the expiry of a caller's time-out into `NotSynced`, chained from what keeps the watch disconnected."""
    try:
        async with asyncio.timeout(timeout) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        msg = f"{what} within {timeout:g} s"
        raise NotSynced(msg) from feed.error


class Portfolio:
    """Live, thread-safe picture of projects, pods and containers.

    Every query waits for the first successful synchronisation, then answers from memory: no query ever causes a call
    to the engine. During an outage the last picture keeps being answered, with ``snapshot().synced`` False. After the
    watch has ended it stays readable; a query that has never had an answer then raises why it ended.

    All methods work from any thread and in any event loop. Some states may never be seen, if a container passes through
    them between two looks of the watcher; those that are seen come in order.

    Raises:
        WatchEnded: the watcher was closed before its first synchronisation.
        EngineError: the error for which the watch ended before its first synchronisation.
    """

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def snapshot(self) -> Snapshot:
        """Return the picture as it is, at once; before the first synchronisation an empty one that is not synced."""
        return self._feed.snapshot

    async def names(self) -> tuple[str, ...]:
        """Names of the projects, sorted, without ""."""
        return (await self._picture()).names()

    async def projects(self) -> tuple[Project, ...]:
        """All projects by name, beginning with "", which is there even if it is empty."""
        return (await self._picture()).projects()

    async def project(self, name: str) -> Project | None:
        """One project; None if no container of it is alive. The project "" is never None."""
        return (await self._picture()).project(name)

    async def containers(self, project: str | None = None) -> tuple[Container, ...]:
        """All containers in order of first sight, or those of one project by name."""
        return (await self._picture()).containers(project)

    async def container(self, name_or_id: str) -> Container | None:
        """Find a container by full id or by name; None if there is none.

        An id wins over a name; of several containers with one name, the earliest started is it.
        """
        if not self._feed.was_synced:  # no call into `_picture` once it is: proxies ask for each request
            await self._picture()
        return self._feed.snapshot.container(name_or_id)

    async def pods(self) -> tuple[Pod, ...]:
        """All Kubernetes pods of which a container is alive, by namespace and name."""
        return (await self._picture()).pods()

    async def pod(self, uid: str) -> Pod | None:
        """One Kubernetes pod; None if no container of it is alive."""
        return (await self._picture()).pod(uid)

    async def total(self) -> int:
        """How many containers are alive."""
        return (await self._picture()).total()

    async def wait_for(self, wanted: Wanted, timeout: float | None = None) -> Container:
        """Wait until a container is alive that matches.

        Args:
            wanted: a full id, a name, or a predicate over `Container`, called in this task.
            timeout: seconds; None waits as long as the watch lasts.

        Raises:
            NotSynced: nothing matched in time.
        """
        late = deadline(self._feed, timeout, f"no container matched {_told(wanted)}")
        async with late, self._following() as (start, events):
            found = _matching(start, wanted)
            if found:
                return found[0]
            async for event in events:
                if event.type is not EventType.EXITED and _matches(event.container, wanted):
                    return event.container
        return self._feed.raise_ended()

    async def wait_gone(self, wanted: Wanted, timeout: float | None = None) -> None:
        """Wait until what matches now has exited, even if it is reborn at once; return at once if nothing matches.

        Args:
            wanted: a full id, a name, or a predicate over `Container`: then all that match now are waited for.
            timeout: seconds; None waits as long as the watch lasts.

        Raises:
            NotSynced: it was still there at that time.
        """
        async with deadline(self._feed, timeout, f"not gone: {_told(wanted)}"):
            await self._picture()
            async with self._following() as (start, events):
                left = {container.id for container in _matching(start, wanted)}
                if not left:
                    return
                async for event in events:
                    if event.type is EventType.EXITED:
                        left.discard(event.container.id)
                        if not left:
                            return
        self._feed.raise_ended()

    async def in_sync(self, timeout: float | None = None) -> None:
        """Wait until the picture is in step with the engine: after the first synchronisation, or the end of an outage.

        Raises:
            NotSynced: it was not, for `timeout` seconds.
        """
        synced = False

        def looked() -> bool:
            nonlocal synced
            synced = self._feed.snapshot.synced  # in another thread the next outage may begin before a second look
            return synced or self._feed.ended

        async with deadline(self._feed, timeout, "the picture was not in sync"):
            await self._feed.changed.until(looked)
        if not synced:
            self._feed.raise_ended()

    async def _picture(self) -> Snapshot:
        feed = self._feed
        if not feed.was_synced:
            await feed.changed.until(lambda: feed.was_synced or feed.ended)
            if not feed.was_synced:
                feed.raise_ended()
        return feed.snapshot

    @asynccontextmanager
    async def _following(self) -> AsyncIterator[tuple[Snapshot, Subscription]]:
        """A picture, and every event that follows it."""
        async with aclosing(Subscription(self._feed, replay=False)) as events:
            yield events._start, events


def _matching(snapshot: Snapshot, wanted: Wanted) -> tuple[Container, ...]:
    if isinstance(wanted, str):
        found = snapshot.container(wanted)
        return (found,) if found else ()
    return tuple(container for container in snapshot if wanted(container))


def _matches(container: Container, wanted: Wanted) -> bool:
    return wanted in (container.id, container.name) if isinstance(wanted, str) else bool(wanted(container))


def _told(wanted: Wanted) -> str:
    return repr(wanted) if isinstance(wanted, str) else getattr(wanted, "__qualname__", repr(wanted))
