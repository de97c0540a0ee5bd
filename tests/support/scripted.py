"""An engine that does what a test says, and a publisher that needs no engine at all."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any, TypeVar

import attrs

from whalewatch import (
    Container,
    EngineError,
    EngineUnavailable,
    ListedContainer,
    Listing,
    Origin,
    Project,
    Signal,
    SignalType,
    Snapshot,
    Subscription,
)
from whalewatch._core.diff import Change, differences_of
from whalewatch._core.feed import Feed
from whalewatch._core.status import Counters
from whalewatch._core.tracker import Tracker

T = TypeVar("T")

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
PATIENCE = 20.0  # seconds after which something that should have come is missing


def at(seconds: float) -> datetime:
    """The moment so many seconds after the beginning of all made-up times."""
    return EPOCH + timedelta(seconds=seconds)


def box(id: str, pid: int | None = 1, start: float | None = 0, **attributes: Any) -> Container:
    """A container of this id, which is its name too unless another is given."""
    return Container(
        **{"id": id, "name": id, "pid": pid, "started_at": None if start is None else at(start), **attributes}
    )


async def turns(count: int) -> None:
    """Let all that is ready to run take so many turns."""
    for _ in range(count):
        await asyncio.sleep(0)


async def begun(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Make a task of something, and let it come to where it waits."""
    task = asyncio.create_task(work)
    await asyncio.sleep(0)
    return task


async def within(wait: Awaitable[T], seconds: float = PATIENCE) -> T:
    """Wait for what must come in time."""
    async with asyncio.timeout(seconds):
        return await wait


class Changing:
    """Something to wait for."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition holds that depends on what changes."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


class Hold(Changing):
    """Holds calls of one kind until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.held = 0
        self._open = asyncio.Event()

    async def reached(self, count: int = 1) -> None:
        """Wait until so many calls have come."""
        await self.until(lambda: self.held >= count)

    def release(self) -> None:
        self._open.set()

    async def pass_through(self) -> None:
        """Be held."""
        self.held += 1
        self._changed.set()
        await self._open.wait()


class ScriptedEngine(Changing):
    """An engine adapter without an engine, and how often each of its methods was called.

    Attributes:
        alive: the truth by id: what listings and inspects say.
        streams: event streams that are open; `opened` counts those that ever were. One can wait `until` that, or
            `calls`, change.
        complete: whether listings tell all of a container, so that nothing has to be inspected.
        listings: what the next listings say, instead of the truth.
        errors: what calls of a kind raise, "inspect" or "inspect ID" among them.
        holds: what calls of a kind wait for, before they look at the truth; "after inspect ID": before they answer.
    """

    type = "scripted"
    address = "scripted://engine"
    source = "events"
    pid = None
    client: object = None

    def __init__(self, *containers: Container, complete: bool = False) -> None:
        super().__init__()
        self.alive = {container.id: container for container in containers}
        self.complete = complete
        self.calls: Counter[str] = Counter()
        self.streams: list[asyncio.Queue[Signal | Exception | None]] = []
        self.opened = self.closed = 0
        self.listings: list[Listing] = []
        self.errors: dict[str, BaseException] = {}
        self.holds: dict[str, Hold] = {}
        self.read_until: datetime | None = None

    def tell(self, type_: SignalType, id: str = "", moment: float | None = None, **more: Any) -> None:
        """Push one signal into every open stream."""
        timestamp = None if moment is None else at(moment)
        for stream in self.streams:
            stream.put_nowait(Signal(type_, id, timestamp, **more))

    def start(self, container: Container) -> None:
        self.alive[container.id] = container
        self.tell(SignalType.STARTED, container.id)

    def exit(self, id: str, exit_code: int | None = None) -> None:
        del self.alive[id]
        self.tell(SignalType.EXITED, id, exit_code=exit_code)

    def rename(self, id: str, name: str) -> None:
        self.alive[id] = attrs.evolve(self.alive[id], name=name)
        self.tell(SignalType.CHANGED, id)

    def pause(self, id: str, *, paused: bool = True) -> None:
        self.alive[id] = attrs.evolve(self.alive[id], paused=paused)
        self.tell(SignalType.PAUSED if paused else SignalType.UNPAUSED, id)

    def end(self, error: Exception | None = None) -> None:
        """End every open stream, by an error if one is given."""
        for stream in self.streams:
            stream.put_nowait(error)

    @contextmanager
    def hold(self, kind: str) -> Iterator[Hold]:
        """Hold calls of a kind within a block."""
        hold = self.holds[kind] = Hold()
        try:
            yield hold
        finally:
            if self.holds.get(kind) is hold:
                del self.holds[kind]
            hold.release()

    @contextmanager
    def fail(self, kind: str, error: BaseException | None = None) -> Iterator[BaseException]:
        """Let calls of a kind fail within a block."""
        error = self.errors[kind] = error or EngineError(f"{kind} fails as told")
        try:
            yield error
        finally:
            del self.errors[kind]

    async def id(self) -> str:
        return "scripted"

    async def version(self) -> str:
        return "1"

    async def connect(self) -> None:
        await self._called("connect")

    async def ping(self) -> None:
        await self._called("ping")

    async def signals(self) -> AsyncIterator[Signal]:
        await self._called("signals")
        stream: asyncio.Queue[Signal | Exception | None] = asyncio.Queue()
        self.streams.append(stream)
        self.opened += 1
        self._changed.set()
        try:
            yield Signal(SignalType.SUBSCRIBED, timestamp=self.read_until)
            while (told := await stream.get()) is not None:
                if isinstance(told, Exception):
                    raise told
                yield told
        finally:
            self.streams.remove(stream)
            self._changed.set()

    async def listing(self) -> Listing:
        await self._called("listing")
        if self.listings:
            return self.listings.pop(0)
        listed = {id: ListedContainer(c if self.complete else None) for id, c in self.alive.items()}
        return Listing(containers=listed, absence_is_death=True)

    async def inspect(self, id: str, /) -> Container | None:
        await self._called("inspect", id)
        found = self.alive.get(id)
        if (hold := self.holds.get(f"after inspect {id}")) is not None:
            await hold.pass_through()
        return found

    async def close(self) -> None:
        self.closed += 1
        await self._called("close")

    async def _called(self, kind: str, id: str = "") -> None:
        self.calls[kind] += 1
        self._changed.set()
        for meant in (kind, f"{kind} {id}"):
            if (hold := self.holds.get(meant)) is not None:
                await hold.pass_through()
            if (error := self.errors.get(meant)) is not None:
                raise error


def lost_engine() -> EngineUnavailable:
    return EngineUnavailable("scripted engine at scripted://engine: gone for a walk")


def whole(*work: Iterator[None]) -> None:
    """Do pieces of work one after another, without giving anybody else a turn."""
    deque(chain.from_iterable(work), maxlen=0)


class Publisher:
    """Publishes pictures in a feed as a watcher does, one revision at a time, with no engine, task or loop."""

    def __init__(self, *containers: Container) -> None:
        self.feed = Feed()
        self.feed.begin()
        self.seconds = 0
        self._tracker = Tracker(self.feed, lambda: at(self.seconds), Counters())
        whole(self._tracker.finish_sync())  # the first synchronisation finds nothing
        if containers:
            self.publish({container.id: container for container in containers}, origin=Origin.SYNC)

    @property
    def snapshot(self) -> Snapshot:
        return self.feed.snapshot

    def events(self, **options: Any) -> Subscription:
        """Subscribe as `Watcher.events` does."""
        return Subscription(self.feed, **options)

    def publish(self, changes: Mapping[str, Container | None], *, origin: Origin = Origin.ENGINE, **more: Any) -> None:
        """Publish one revision: each container as it is now, None where it is alive no more."""
        self.seconds += 1
        before = self.feed.snapshot
        self._tracker._synced = True  # also if it was lost: this is the end of a synchronisation then
        found = [Change(before._get(id), after, origin, **more) for id, after in changes.items()]
        pairs = [(change.before, change.after) for change in found]
        after = before._changed(pairs, revision=before.revision, as_of=before.as_of, synced=True)
        self._tracker._commit(after, chain.from_iterable(map(differences_of, found)))

    def lose(self) -> None:
        self._tracker.close()

    def start(self, container: Container) -> None:
        self.publish({container.id: container})

    def exit(self, id: str, exit_code: int | None = None) -> None:
        self.publish({id: None}, exit_code=exit_code)

    def change(self, id: str, **attributes: Any) -> None:
        known = self.snapshot._get(id)
        assert known is not None
        self.publish({id: attrs.evolve(known, **attributes)})

    def restart(self, id: str, pid: int, exit_code: int | None = None) -> None:
        """Publish an exit and the start that follows it, as two revisions."""
        known = self.snapshot._get(id)
        assert known is not None
        self.exit(id, exit_code)
        self.start(attrs.evolve(known, pid=pid))


def alive(snapshot: Snapshot | Project) -> dict[str, Container]:
    return {container.id: container for container in snapshot}
