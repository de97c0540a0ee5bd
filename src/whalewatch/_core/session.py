"""One connection to an engine, from the first call to the failure that ends it.

Tasks of a session, all in one group, so that the first to fail ends the others:

* a *drain* per event stream, which hands signals to the book and never waits for anything else: the engine's stream is
  always read, whatever inspects, consumers or audits do;
* the *dispatcher*, which has containers read as the book wants them, each by a task of its own;
* the *heartbeat*, which notices an engine that no longer answers;
* the session itself, which synchronises and then audits.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import TaskGroup
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from itertools import count
from random import Random
from typing import NoReturn, TypeVar

import attrs

from whalewatch._core.book import Book
from whalewatch._core.engine import Engine, Listing, Signal, SignalType
from whalewatch._core.errors import EngineError, EngineTimeout, EngineUnavailable, ProtocolViolation, WhalewatchError
from whalewatch._core.feed import Feed
from whalewatch._core.places import given_back
from whalewatch._core.reconcile import Look
from whalewatch._core.status import WatchState

__all__ = ["Session", "Settings", "Tally", "cancellations", "heed_cancellation"]

T = TypeVar("T")

log = logging.getLogger("whalewatch.watcher")

SETTLING = 0.25
"""Seconds to wait before reading a container that is likely to exit: its exit then needs no reading. Docker 26 under
load tells it up to 0.18 s after the end of its networks."""

GRACE = 0.5
"""Seconds that an audit leaves to the stream to tell of a difference by itself (Podman tells up to 0.2 s late)."""

EARLY = 0.95
"""The part of `heartbeat` after which the next check begins: timers are late, and an engine that hangs is to be noticed
within `heartbeat` + `call_timeout` all the same."""

NEWS = 2
"""Failures in a row after which a container that cannot be read is warned about. Once may be the connection's failure,
which is told as such."""

MANY = 8
"""Containers that are warned about at a time: more are the engine's failure, and `Stats.unresolved` counts them."""

FIRST_RETRY, LAST_RETRY = 0.5, 30.0
"""Seconds until a container that could not be read is tried again: doubling from the first to the last."""

FIRST_PAUSE, LAST_PAUSE = 1.0, 30.0
"""Seconds at least between audits that bad input asks for: doubling from the first to the last while it goes on."""

REPLAY = 10.0
"""Seconds after which an engine has long told what it replays to a new stream."""

REREAD = 20
"""Containers that an audit reads anew at least, if there are so many; else a tenth of them."""

BREATH = 256
"""Signals taken in one go before other tasks get their turn: a burst must not stop the host program's loop."""


@attrs.frozen(kw_only=True)
class Settings:
    """What a watcher was told; seconds throughout."""

    heartbeat: float
    audit: float | None
    call_timeout: float
    concurrency: int
    now: Callable[[], datetime]
    random: Random


@attrs.define
class Tally:
    """What outlives sessions: counters, and what was logged already."""

    signals: int = 0
    lost: int = 0
    syncs: int = 0
    audits: int = 0
    unread: set[str] = attrs.field(factory=set)
    """Containers that were warned about and could not be read since."""
    unlisted: set[str] = attrs.field(factory=set)
    """Parts of the engine that were warned about and could not be listed since."""
    fault: str = ""
    """The latest internal error."""


class Session:
    """One attempt to follow an engine; `run` returns the error that ended it."""

    def __init__(
        self, engine: Engine, feed: Feed, settings: Settings, tally: Tally, progress: Callable[[WatchState], None]
    ) -> None:
        self.engine = engine
        self.connected = False
        self.synced_at: float | None = None
        self.failing: dict[str, int] = {}
        """Failures in a row of each container that cannot be read."""
        self.unlisted: dict[str, int] = {}
        """Failures in a row of each part of the engine (namespace) that cannot be listed."""
        self.book = Book(feed, settings.now, self._want)
        self._settings = settings
        self._tally = tally
        self._progress = progress
        self._due: asyncio.PriorityQueue[tuple[bool, int, str]] = asyncio.PriorityQueue()
        """What is to be read: news before what failed or an audit asks for, then the longest waiting."""
        self._turns = count()
        self._queued: dict[str, bool] = {}  # by container, whether its reading can wait
        self._places = asyncio.Semaphore(settings.concurrency)
        self._later: dict[str, asyncio.TimerHandle] = {}
        self._awaited: set[str] = set()
        self._all_tried = asyncio.Event()
        self._audit_now = asyncio.Event()
        self._relist: asyncio.TimerHandle | None = None
        self._replay: asyncio.TimerHandle | None = None
        self._noisy = False
        """Whether something was lost since the last audit was asked for."""
        self._pause = FIRST_PAUSE
        self._due_at: float | None = None
        """When the next audit is due, by the loop's clock."""

    async def run(self) -> WhalewatchError:
        """Follow the engine until something fails."""
        try:
            await self._follow()
        except Exception as error:
            first = _first(error)
            if isinstance(first, WhalewatchError):
                return first
            # A fault of this library's own. The picture may be wrong now: a new synchronisation sets it right.
            known, self._tally.fault = self._tally.fault == repr(first), repr(first)
            level = logging.DEBUG if known else logging.ERROR
            log.log(level, "%s", self._told("internal error"), exc_info=first)
            return EngineError(self._told(f"internal error: {first!r}"))
        finally:
            for timer in (*self._later.values(), self._relist, self._replay):
                if timer is not None:
                    timer.cancel()

    async def _follow(self) -> NoReturn:
        self._progress(WatchState.CONNECTING)
        await self._call("connect", self.engine.connect())
        self.connected = True
        self.book.open()
        self._progress(WatchState.SYNCING)
        async with TaskGroup() as tasks:
            try:
                tasks.create_task(self._heartbeat(), name="whalewatch heartbeat")
                stream = await self._open(tasks)
                tasks.create_task(self._dispatch(tasks), name="whalewatch dispatcher")
                await self._synchronise()
                self._progress(WatchState.SYNCED)
                await self._audit(reread=False)
                self._replay = asyncio.get_running_loop().call_later(REPLAY, self.book.replayed)
                while True:
                    reread = await self._until_audit()
                    stream = await self._renew(tasks, stream)
                    await self._audit(reread=reread)
            finally:
                # At the first failure, not when all the others have ended: a stream may take its time to close.
                self.book.disconnected()
        raise AssertionError  # the group only ends by an error

    async def _call(self, what: str, call: Awaitable[T], *, timeout: float | None = None) -> T:
        """Make one call to the engine, within a time."""
        before = cancellations()
        try:
            result = await self._timed(what, call, self._settings.call_timeout if timeout is None else timeout)
        except EngineError:
            heed_cancellation(before)
            raise
        except asyncio.CancelledError as error:
            # Not ours: a client library cancelled something of its own. A task group overlooks a task that ends so.
            heed_cancellation(before)
            raise EngineError(self._told(f"{what} was cancelled from within")) from error
        heed_cancellation(before)  # an adapter may have swallowed it
        return result

    async def _timed(self, what: str, call: Awaitable[T], timeout: float) -> T:
        try:
            async with asyncio.timeout(timeout) as limit:
                return await call
        except TimeoutError as error:
            if not limit.expired():
                raise EngineError(self._told(f"{what} failed: {error!r}")) from error
            raise EngineTimeout(self._told(f"no answer to {what} within {timeout:g} s: is it hung?")) from None
        except WhalewatchError:
            raise
        except Exception as error:
            raise EngineError(self._told(f"{what} failed: {error!r}")) from error

    def _told(self, message: str) -> str:
        return f"{self.engine.type} engine at {self.engine.address}: {message}"

    # The event stream

    async def _open(self, tasks: TaskGroup) -> asyncio.Task[None]:
        """Start to read an event stream and wait until it covers what happens from now on."""
        subscribed = asyncio.Event()
        stream = tasks.create_task(self._drain(subscribed), name="whalewatch stream")
        await self._call("the subscription to events", subscribed.wait())
        return stream

    async def _renew(self, tasks: TaskGroup, former: asyncio.Task[None]) -> asyncio.Task[None]:
        """Let a new stream take over: the former may have died silently. The two overlap, so that there is no gap.

        What was told before the new one may still be on its way in the former, which is read for a moment longer.
        """
        stream = await self._open(tasks)
        await asyncio.wait({former}, timeout=GRACE)
        former.cancel()
        await asyncio.wait({former}, timeout=self._settings.call_timeout)
        return stream

    async def _drain(self, subscribed: asyncio.Event) -> None:
        async with _closing(self.engine.signals()) as signals:
            taken = 0
            while (signal := await self._next(signals)) is not None:
                if signal.type is SignalType.SUBSCRIBED:
                    self.book.subscribed(signal.timestamp)
                    subscribed.set()
                    continue
                self._tally.signals += 1
                if signal.type is SignalType.LOST:
                    self._tally.lost += 1
                    self._noisy = True
                    self._audit_now.set()
                else:
                    self.book.take(signal)
                taken += 1
                if taken % BREATH == 0:
                    await asyncio.sleep(0)
        raise EngineUnavailable(self._told("the event stream ended"))

    async def _next(self, signals: AsyncIterator[Signal]) -> Signal | None:
        before = cancellations()
        try:
            signal = await anext(signals, None)
        except WhalewatchError:
            raise
        except asyncio.CancelledError as error:
            heed_cancellation(before)
            raise EngineUnavailable(self._told("the event stream was cancelled from within")) from error
        except Exception as error:
            raise EngineError(self._told(f"the event stream failed: {error!r}")) from error
        heed_cancellation(before)  # an adapter may have swallowed it
        return signal

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(EARLY * self._settings.heartbeat)
            await self._call("ping", self.engine.ping())

    # Inspecting

    def _want(self, id: str, why: Look) -> None:
        """Queue a container for inspection, once; what is likely to exit is left alone for a moment."""
        if why is Look.SETTLES:
            if id not in self._later and id not in self._queued:
                self._after(SETTLING, id)
            return
        if (timer := self._later.pop(id, None)) is not None:
            timer.cancel()
        self._queue(id)

    def _after(self, delay: float, id: str) -> None:
        self._later[id] = asyncio.get_running_loop().call_later(delay, self._queue, id)

    def _queue(self, id: str) -> None:
        self._later.pop(id, None)
        can_wait = id in self.failing or id in self.book.suspects
        if id not in self._queued or (self._queued[id] and not can_wait):
            self._queued[id] = can_wait
            self._due.put_nowait((can_wait, next(self._turns), id))

    async def _dispatch(self, tasks: TaskGroup) -> None:
        """Have containers read, as many at a time as there are places."""
        while True:
            await self._places.acquire()
            can_wait, _, id = await self._due.get()
            if self._queued.get(id) is not can_wait:
                self._places.release()  # it could wait no longer, and was read before
                continue
            del self._queued[id]
            if self.book.due(id):
                tasks.create_task(self._inspect(id), name="whalewatch inspect")
            else:
                self._places.release()
                self._read(id)
                self._tried(id)

    async def _inspect(self, id: str) -> None:
        try:
            # One that hangs gives its place back: else it would hold up all others by a multiple of `call_timeout`.
            with given_back(self._places, self._settings.call_timeout):
                container = await self._call("inspect", self.engine.inspect(id))
            if container is not None and container.id != id:
                raise ProtocolViolation(self._told(f"asked about {id!r:.80}, it tells of {container.id!r:.80}"))
        except EngineError as error:
            self._unread(id, error)
        else:
            self._read(id)
            if self.book.surprising(id, container):
                # It may have happened just now, and be told next: what is told is kept, and taken with the reading.
                # No place is held meanwhile: what an audit finds must not hold up what the engine tells.
                await asyncio.sleep(GRACE)
            self.book.inspected(id, container)
        self._tried(id)

    def _unread(self, id: str, error: EngineError) -> None:
        """Keep what is known of a container that cannot be read, and try again later."""
        failures = self.failing[id] = self.failing.get(id, 0) + 1
        warned = self._tally.unread
        news = failures == NEWS and len(warned) < MANY and id not in warned
        if news:
            warned.add(id)
        log.log(logging.WARNING if news else logging.DEBUG, "cannot read container %.80r: %s", id, error)
        self.book.failed(id)
        if id not in self._queued and id not in self._later:
            self._after(self._backoff(failures), id)

    def _read(self, id: str) -> None:
        self.failing.pop(id, None)
        self._tally.unread.discard(id)

    def _backoff(self, failures: int) -> float:
        return min(LAST_RETRY, FIRST_RETRY * 2.0 ** min(failures - 1, 10)) * self._settings.random.uniform(0.75, 1.25)

    def _tried(self, id: str) -> None:
        self._awaited.discard(id)
        if not self._awaited:
            self._all_tried.set()

    # Synchronisation and audit

    async def _synchronise(self) -> None:
        """List, inspect what the listing leaves open, and publish the whole as one revision.

        Each container is waited for once; what fails, or is told of again, is left to the time after. That nothing is
        read must not be taken for "nothing is there": before failures are left aside, the engine has to answer.
        """
        listing = await self._list()
        self._awaited = self.book.listed(listing) - self.failing.keys()
        if self._awaited:
            self._all_tried.clear()
            await self._all_tried.wait()
        if self.failing:
            await self._call("ping", self.engine.ping())
        self._tally.unread &= self.failing.keys()  # the others are gone
        self.synced_at = asyncio.get_running_loop().time()
        self._tally.syncs += 1
        self.book.settle()

    async def _list(self) -> Listing:
        # A listing grows with the number of containers, and the heartbeat watches over it too.
        allowed = self._settings.heartbeat + self._settings.call_timeout
        listing = await self._call("the listing of containers", self.engine.listing(), timeout=allowed)
        self.unlisted = {part: self.unlisted.get(part, 0) + 1 for part in listing.failed}
        for part, error in listing.failed.items():
            level = logging.DEBUG if part in self._tally.unlisted else logging.WARNING
            log.log(level, "cannot list %r: %s", part, error)
        self._tally.unlisted = set(listing.failed)
        if self._relist is not None:
            self._relist.cancel()
        if self.unlisted:
            delay = self._backoff(min(self.unlisted.values()))
            self._relist = asyncio.get_running_loop().call_later(delay, self._audit_now.set)
        return listing

    async def _audit(self, *, reread: bool) -> None:
        """Compare a listing with the picture, and have whatever differs confirmed by an inspect.

        Right after a synchronisation this is its confirmation: what fell between the listing and an engine's
        subscription, for which no engine gives proof, is found here.
        """
        self._audit_now.clear()
        self._tally.audits += 1
        self.book.touched.clear()
        self.book.noting = True
        listing = await self._list()
        differing = self.book.compare(listing)
        if differing:
            await asyncio.sleep(GRACE)
            self.book.suspect(differing - self.book.touched)
        unknown = {id for id, sighting in listing.sightings.items() if sighting.container is None} - self.book.touched
        self.book.noting = False
        self.book.touched.clear()
        if reread and unknown:
            # A restart whose events were lost shows in no listing without PIDs: read some anew each time.
            self.book.suspect(self.book.unverified(unknown, max(REREAD, len(unknown) // 10)), Look.CHANGED)

    async def _until_audit(self) -> bool:
        """Wait until an audit is due, or asked for; return whether it shall read some containers anew.

        What is lost time and again is heard less and less often, and only the first loss has containers read anew;
        after a while of silence the next is a first one again.
        """
        loop, settings = asyncio.get_running_loop(), self._settings
        begun, due = loop.time(), False
        if self._due_at is None and settings.audit is not None:
            self._due_at = begun + settings.audit * settings.random.uniform(0.9, 1.1)
        try:
            async with asyncio.timeout_at(self._due_at):
                await asyncio.sleep(self._pause)
                await self._audit_now.wait()
        except TimeoutError:
            self._due_at, due = None, True
        silent = not self._noisy or loop.time() - begun > 2 * self._pause
        first = silent or self._pause == FIRST_PAUSE
        self._pause = FIRST_PAUSE if silent else min(LAST_PAUSE, 2 * self._pause)
        self._noisy = False
        return due or first


@asynccontextmanager
async def _closing(signals: AsyncIterator[Signal]) -> AsyncIterator[AsyncIterator[Signal]]:
    """Close an async generator promptly; another kind of async iterator needs no closing."""
    try:
        yield signals
    finally:
        if isinstance(signals, AsyncGenerator):
            await signals.aclose()


def cancellations() -> int:
    """How often the current task has been asked to end."""
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


def heed_cancellation(before: int) -> None:
    """End the current task if it has been asked to since, though the request was swallowed on the way here."""
    if cancellations() > before:
        raise asyncio.CancelledError


def _first(error: BaseException) -> BaseException:
    """The error that came first, out of a task group's."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
