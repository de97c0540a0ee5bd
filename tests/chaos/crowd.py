"""The watchers of a chaos run, and everybody who listens to them; each listener folds what it hears, and checks it."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from tests.chaos.witness import Witness
from tests.chaos.world import World
from tests.support.fold import Fold
from whalewatch import Container, ContainerEvent, EventType, Origin, Subscription, Watcher

SMALL = 4  # events that the lazy listener's subscription keeps before it collapses
HISTORY = 10  # events of each container that are kept, to be told if one was wrong
HEARD_WITHIN = 10.0  # seconds after which a listener in another thread that has not ended with its watch is stuck


class Listener:
    """Folds one subscription, for as long as it is run; cleared, `attending` leaves it unread.

    Attributes:
        found: the last events that a synchronisation or an audit found.
        risen: containers that it was told had exited, and then that the same run had started, with their events.
    """

    def __init__(self, name: str, watcher: Watcher, attending: asyncio.Event | None = None, **options: Any) -> None:
        self.name = name
        self.fold = Fold()
        self.found: deque[str] = deque(maxlen=HISTORY)
        self.risen: list[tuple[Container, str]] = []
        self._attending = attending
        self._watcher = watcher
        self._options = options
        self._history: defaultdict[str, deque[str]] = defaultdict(lambda: deque(maxlen=HISTORY))
        self._ended: set[tuple[object, ...]] = set()
        self._events: Subscription | None = None

    @property
    def revision(self) -> int:
        """Of the picture it was told last; a collapse may find that there is nothing to tell of a later one."""
        return self._events.revision if self._events is not None else 0

    async def listen(self) -> None:
        """Fold until the watch ends."""
        async with self._watcher.events(**self._options) as events:
            self._events = events
            async for event in events:
                self.fold.take(event)
                del self.fold.events[:-1]  # an hour of them is too much to keep
                container = event.container
                run = (container.id, container.pid, container.started_at)
                if event.type is EventType.EXITED and not event.brief:  # nothing tells one brief life from the next
                    self._ended.add(run)
                brief = f"{_brief(event)} {container}" + (f" was {event.previous}" if event.previous else "")
                if event.origin is Origin.RESYNC:
                    self.found.append(brief)
                self._history[container.id].append(_brief(event))
                if event.type is EventType.STARTED and run in self._ended:
                    self.risen.append((container, f"{self.name}: {container}: {list(self._history[container.id])}"))
                if event.last:
                    self.fold.check(self._watcher.portfolio.snapshot())
                if self._attending is not None:
                    await self._attending.wait()


def _brief(event: ContainerEvent) -> str:
    told = f"{event.timestamp:%H:%M:%S.%f} {event.type.value} {event.origin.value} r{event.revision}{'.' * event.last}"
    return f"{told} pid {event.container.pid} exit {event.exit_code}"


class Watched:
    """One watcher, an eager and a lazy listener in its loop, and one in a thread of its own."""

    def __init__(self, world: World, unread: Collection[str], attending: asyncio.Event, *, proxied: bool) -> None:
        """Prepare; `unread`: see `Witness`; faults hide what the engine tells only from what is behind the proxy."""
        self.name = name = "proxied" if proxied else "direct"
        self.hidden_from = proxied
        self.attending = attending
        self.watcher = watcher = world.watcher(proxied=proxied)
        self.witness = Witness(name, watcher, world, unread)
        self.eager = Listener(f"{name}, eager", watcher)
        self.lazy = Listener(f"{name}, lazy", watcher, attending, buffer=SMALL)
        self._elsewhere = Listener(f"{name}, in another thread", watcher)
        self.listeners = (self.eager, self.lazy, self._elsewhere)
        self._tasks: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self.watcher:
            here = [asyncio.create_task(one.listen()) for one in (self.eager, self.lazy)]
            elsewhere = asyncio.create_task(asyncio.to_thread(asyncio.run, self._elsewhere.listen()))
            self._tasks = [*here, elsewhere]
            try:
                yield
            finally:
                for task in here:
                    task.cancel()
                await asyncio.wait(here)
        await asyncio.wait({elsewhere}, timeout=HEARD_WITHIN)  # the end of the watch ends its subscription

    def failures(self) -> Iterator[str]:
        """Tell of listeners that have found an impossible event, or were told an error."""
        for listener, task in zip(self.listeners, self._tasks, strict=True):
            if task.done() and not task.cancelled() and (error := task.exception()):
                yield f"{listener.name}: failed: {error!r}"

    def differences(self, world: World, truth: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
        """Tell where the picture is not the engine's, or a listener's not the picture."""
        snapshot = self.watcher.portfolio.snapshot()
        if not snapshot.synced:
            yield f"{self.name}: not in sync: {self.watcher.status}"
        if (unresolved := self.watcher.stats.unresolved) > len(world.unknown):
            yield f"{self.name}: {unresolved} containers or parts of the engine cannot be read"
        picture = {container.id: world.seen(container) for container in snapshot}
        for id in sorted((picture.keys() | truth.keys()).difference(world.unknown)):
            if picture.get(id) != truth.get(id):
                yield f"{self.name}: {id}: the engine says {truth.get(id)}, the picture {picture.get(id)}"
        alive = {container.id: container for container in snapshot}
        for listener in self.listeners:
            if listener.revision != snapshot.revision:
                yield f"{listener.name}: has heard of revision {listener.revision}, not of {snapshot.revision}"
            elif listener.fold.alive != alive:
                yield f"{listener.name}: folded {listener.fold.alive}, the picture is {alive}"


@asynccontextmanager
async def crowd(world: World, unread: Collection[str]) -> AsyncIterator[list[Watched]]:
    """Watch an engine directly and through the proxy, or only so if it bears one watcher; `unread`: see `Witness`."""
    attending = asyncio.Event()
    attending.set()
    watched = [Watched(world, unread, attending, proxied=proxied) for proxied in sorted({world.sole, True})]
    async with AsyncExitStack() as stack:
        for one in watched:
            await stack.enter_async_context(one.running())
        yield watched
