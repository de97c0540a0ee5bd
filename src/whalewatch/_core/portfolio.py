"""The queries of applications, for any thread and any event loop."""

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
    """Turn the expiry of a caller's time-out into `NotSynced`, with the error that disconnected the watch as its cause.

    Args:
        feed: has that error.
        timeout: seconds; None waits without a limit.
        what: what was not reached, for the message: "{what} within 5 s".
    """
    feed.check_process()
    try:
        async with asyncio.timeout(timeout) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        error = feed.error
        msg = f"{what} within {timeout:g} s" + (f": {error}" if error else "")
        raise NotSynced(msg) from error


class Portfolio:
    """The current picture of projects, pods and containers, kept up to date by a watcher.

    Every query waits for the first successful synchronisation, then answers from memory: no query ever causes a call
    to the engine. During an outage queries answer from the last known picture, and ``snapshot().synced`` is False. They
    still do after the watch has ended; if it ended before its first synchronisation, they raise the reason.

    All methods may be called from any thread and in any event loop. If a container changes several times within a short
    time, some of its states may never be seen; the states that are seen come in order.

    In a child that is forked meanwhile only `snapshot` can be used; it returns the picture of the fork.

    Example::

        async with moby.watch() as watcher:
            print(await watcher.portfolio.names())
            web = await watcher.portfolio.wait_for("web", timeout=10)

    Raises:
        WatchEnded: by every query: the watcher was closed before its first synchronisation.
        EngineError: by every query: the error that ended the watch before its first synchronisation.
        RuntimeError: by every query: this is a forked child of the process that watches.
    """

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def snapshot(self) -> Snapshot:
        """Return the current picture at once; before the first synchronisation, an empty one that is not synced."""
        return self._feed.snapshot

    async def names(self) -> tuple[str, ...]:
        """Return the sorted names of the projects, without ""."""
        return (await self._picture()).names()

    async def projects(self) -> tuple[Project, ...]:
        """Return all projects, sorted by name; the first is "", even if it has no containers."""
        return (await self._picture()).projects()

    async def project(self, name: str) -> Project | None:
        """Return one project; None if none of its containers is alive. The project "" is never None."""
        return (await self._picture()).project(name)

    async def containers(self, project: str | None = None) -> tuple[Container, ...]:
        """Return all containers in the order in which they were first seen, or those of one project by name."""
        return (await self._picture()).containers(project)

    async def container(self, name_or_id: str) -> Container | None:
        """Find a container by full id or by name; None if there is none.

        An id wins over a name; of several containers with the same name, the earliest started is returned.
        """
        if not self._feed.was_synced or self._feed.forked:  # saves a call otherwise: proxies query for each request
            await self._picture()
        return self._feed.snapshot.container(name_or_id)

    async def pods(self) -> tuple[Pod, ...]:
        """Return all Kubernetes pods that have a container alive, sorted by namespace and name."""
        return (await self._picture()).pods()

    async def pod(self, uid: str) -> Pod | None:
        """Return one Kubernetes pod; None if none of its containers is alive."""
        return (await self._picture()).pod(uid)

    async def total(self) -> int:
        """Return the number of containers that are alive."""
        return (await self._picture()).total()

    async def wait_for(self, wanted: Wanted, timeout: float | None = None) -> Container:
        """Wait until a container that matches is alive, and return it; return at once if there is one.

        Args:
            wanted: a full id, a name, or a function that takes a `Container` and returns a bool; it is called in this
                task.
            timeout: seconds; None waits as long as the watch lasts.

        Raises:
            NotSynced: nothing matched in time.
        """
        late = deadline(self._feed, timeout, f"no container matched {_describe(wanted)}")
        async with late, self._following() as (start, events):
            found = _matching(start, wanted)
            if found:
                return found[0]
            async for event in events:
                if event.type is not EventType.EXITED and _matches(event.container, wanted):
                    return event.container
        return self._feed.raise_ended()

    async def wait_gone(self, wanted: Wanted, timeout: float | None = None) -> None:
        """Wait until every container that matches now has exited; return at once if none matches.

        A container that restarts counts as exited, even if it is alive again at once.

        Args:
            wanted: a full id, a name, or a function that takes a `Container` and returns a bool.
            timeout: seconds; None waits as long as the watch lasts.

        Raises:
            NotSynced: a container was still alive when the time was over.
        """
        async with deadline(self._feed, timeout, f"not gone: {_describe(wanted)}"):
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
        """Wait until the picture is in sync with the engine; return at once if it is.

        It is in sync after the first synchronisation, and again after the end of each outage.

        Args:
            timeout: seconds; None waits as long as the watch lasts.

        Raises:
            NotSynced: it was not in sync within `timeout` seconds.
        """
        synced = False

        def synced_or_ended() -> bool:
            nonlocal synced
            synced = self._feed.snapshot.synced  # read once: another thread may begin the next outage at any moment
            return synced or self._feed.ended

        async with deadline(self._feed, timeout, "the picture was not in sync"):
            await self._feed.changed.until(synced_or_ended)
        if not synced:
            self._feed.raise_ended()

    async def _picture(self) -> Snapshot:
        feed = self._feed
        feed.check_process()
        if not feed.was_synced:
            await feed.changed.until(lambda: feed.was_synced or feed.ended)
            if not feed.was_synced:
                feed.raise_ended()
        return feed.snapshot

    @asynccontextmanager
    async def _following(self) -> AsyncIterator[tuple[Snapshot, Subscription]]:
        """Give a picture, and every event that follows it."""
        async with aclosing(Subscription(self._feed, replay=False)) as events:
            yield events._start, events


def _matching(snapshot: Snapshot, wanted: Wanted) -> tuple[Container, ...]:
    if isinstance(wanted, str):
        found = snapshot.container(wanted)
        return (found,) if found else ()
    return tuple(container for container in snapshot if wanted(container))


def _matches(container: Container, wanted: Wanted) -> bool:
    return wanted in (container.id, container.name) if isinstance(wanted, str) else bool(wanted(container))


def _describe(wanted: Wanted) -> str:
    return repr(wanted) if isinstance(wanted, str) else getattr(wanted, "__qualname__", repr(wanted))
