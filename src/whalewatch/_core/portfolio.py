"""The queries of applications, for any thread and any event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing, asynccontextmanager

from whalewatch._core.errors import NotSynced, WhalewatchError
from whalewatch._core.feed import Feed
from whalewatch._core.latest import PictureChanges, first_picture
from whalewatch._core.model import Container, ContainerEvent, EventType, Health, Pod, Project, is_called
from whalewatch._core.snapshot import Snapshot
from whalewatch._core.subscription import Subscription
from whalewatch._core.text import printable

__all__ = ["NotHealthy", "Portfolio", "deadline"]

Wanted = str | Callable[[Container], bool]

MAX_NAMED = 5
"""Containers that the message of a time-out names."""


@asynccontextmanager
async def deadline(feed: Feed, timeout: float | None, what: str, seen: Callable[[], str] = str) -> AsyncIterator[None]:
    """Turn the expiry of a caller's time-out into `NotSynced`, with the error that disconnected the watch as its cause.

    Args:
        feed: has that error.
        timeout: seconds; None waits without a limit.
        what: what was not reached, for the message: "{what} within 5 s".
        seen: returns what was seen last, for the message.
    """
    feed.check_begun()
    try:
        async with asyncio.timeout(timeout) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        error = feed.error
        msg = f"{what} within {timeout:g} s{seen()}" + (f": {error}" if error else "")
        raise NotSynced(msg) from error


class NotHealthy(WhalewatchError):
    """A container that was waited for has exited, is unhealthy, or has no health check.

    Attributes:
        container: its last known state; None if the error was made without one.
        event: what told this; None if it was so when the wait began.
    """

    def __init__(self, message: str, container: Container | None = None, event: ContainerEvent | None = None) -> None:
        super().__init__(message)
        self.container = container
        self.event = event


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
        RuntimeError: by every query: the watcher was not entered, or this is a fork of the process that watches.
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
        """Find a container by its id, the first 12 or more digits of an id of 64, or its name; None if there is none.

        A full id wins over a name, and a name over the beginning of an id; of several containers with the same name,
        the earliest started is returned.
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
            wanted: an id or its first 12 or more digits, a name, or a function that takes a `Container` and returns a
                bool; it is called in this task.
            timeout: seconds; None waits as long as the watch lasts.

        Raises:
            NotSynced: nothing matched in time; the message says what was seen last.
        """
        exited: ContainerEvent | None = None

        def seen() -> str:
            return f" ({_exit(exited) if exited else _alive(self._feed.snapshot)})"

        async with deadline(self._feed, timeout, f"no container matched {_describe(wanted)}", seen):
            await self._picture()
            async with self._following(brief=True) as (start, events):
                found = _matching(start, wanted)
                if found:
                    return found[0]
                async for event in events:
                    if not _matches(event.container, wanted):
                        continue
                    if event.type is EventType.EXITED:
                        exited = event
                    elif not event.brief:
                        return event.container
        return self._feed.raise_ended()

    async def wait_healthy(self, name_or_id: str, timeout: float | None = None) -> Container:
        """Wait until a container is alive and its own health check succeeds, and return it; at once if it is so.

        It may appear later. The container that is found first is followed, whatever its name becomes. While it is
        paused the wait goes on, and after a pause until it is healthy or exits: its check does not run during a pause,
        and Docker takes that for a failure until the check has run again.

        Args:
            name_or_id: a name, or an id or its first 12 or more digits.
            timeout: seconds; None waits as long as the watch lasts.

        Raises:
            NotHealthy: it has exited, is unhealthy, or has no health check.
            NotSynced: it was not healthy in time; the message says what was seen last.
        """
        known: Container | None = None
        was_paused = False

        def seen() -> str:
            if known is None:
                return f" ({_alive(self._feed.snapshot)})"
            state = "paused" if known.paused else "starting" if known.health is Health.STARTING else "not checked again"
            return f" (it is {state})"

        async with deadline(self._feed, timeout, f"not healthy: {_describe(name_or_id)}", seen):
            await self._picture()
            async with self._following() as (start, events):
                known = start.container(name_or_id)
                event: ContainerEvent | None = None
                while True:
                    was_paused = was_paused or (known is not None and known.paused)
                    if known is not None and _is_healthy(known, event, was_paused=was_paused):
                        return known
                    event = await anext(events, None)
                    if event is None:
                        break
                    if is_called(event.container, name_or_id) if known is None else event.container.id == known.id:
                        known = event.container
        return self._feed.raise_ended()

    async def wait_gone(self, wanted: Wanted, timeout: float | None = None) -> ContainerEvent | None:
        """Wait until every container that matches now has exited, and return the last exit; at once None if none does.

        A container that restarts counts as exited, even if it is alive again at once.

        Args:
            wanted: an id or its first 12 or more digits, a name, or a function that takes a `Container` and returns a
                bool.
            timeout: seconds; None waits as long as the watch lasts.

        Raises:
            NotSynced: a container was still alive when the time was over; the message names it.
        """
        left: dict[str, Container] = {}

        def seen() -> str:
            return f" ({_names('alive', left.values())})" if left else ""

        async with deadline(self._feed, timeout, f"not gone: {_describe(wanted)}", seen):
            await self._picture()
            async with self._following() as (start, events):
                left = {container.id: container for container in _matching(start, wanted)}
                if not left:
                    return None
                async for event in events:
                    if event.type is EventType.EXITED and event.container.id in left:
                        del left[event.container.id]
                        if not left:
                            return event
        return self._feed.raise_ended()

    def changes(self, *, debounce: float = 0.0) -> AsyncIterator[Snapshot]:
        """Iterate over pictures: the first that is synchronised, then the newest one after each change.

        If the picture changes several times before the reader asks again, only the newest is given. The iteration ends
        with the watch, and raises the error that ended it if one did. Cancelling a wait loses nothing.

        Args:
            debounce: seconds without a change for which a changed picture waits, so that a batch of changes is given
                once; it waits ten times as long at most.
        """
        return PictureChanges(self._feed, debounce)

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
        return await first_picture(self._feed)

    @asynccontextmanager
    async def _following(self, *, brief: bool = False) -> AsyncIterator[tuple[Snapshot, Subscription]]:
        """Give a picture, and every event that follows it, but for those of brief lives: nobody could use these."""
        async with aclosing(Subscription(self._feed, replay=False, brief=brief)) as events:
            yield events._start, events


def _matching(snapshot: Snapshot, wanted: Wanted) -> tuple[Container, ...]:
    if isinstance(wanted, str):
        found = snapshot.container(wanted)
        return (found,) if found else ()
    return tuple(container for container in snapshot if wanted(container))


def _matches(container: Container, wanted: Wanted) -> bool:
    return is_called(container, wanted) if isinstance(wanted, str) else bool(wanted(container))


def _is_healthy(container: Container, event: ContainerEvent | None, *, was_paused: bool) -> bool:
    """Return whether a container is healthy; raise `NotHealthy` if it will not be."""
    why = None
    if event is not None and event.type is EventType.EXITED:
        why = _exit(event)
    elif was_paused:
        pass
    elif container.health is Health.UNHEALTHY:
        why = "it is unhealthy"
    elif container.health is None:
        why = "it has no health check"
    if why is not None:
        raise NotHealthy(f"container {_describe(container.name)} is not healthy: {why}", container, event)
    return container.health is Health.HEALTHY


def _describe(wanted: Wanted) -> str:
    return printable(repr(wanted) if isinstance(wanted, str) else getattr(wanted, "__qualname__", repr(wanted)))


def _exit(event: ContainerEvent) -> str:
    code = "" if event.exit_code is None else f" with code {event.exit_code}"
    return f"it exited{code} at {event.timestamp:%H:%M:%S} UTC"


def _alive(snapshot: Snapshot) -> str:
    return _names("alive", snapshot) if snapshot else "no container is alive"


def _names(what: str, containers: Iterable[Container]) -> str:
    names = [_describe(container.name) for container in containers]
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"{what}: {', '.join(names[:MAX_NAMED])}{more}"
