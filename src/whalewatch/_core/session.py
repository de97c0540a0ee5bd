"""One connection to an engine, from the first call to the failure that ends it.

Tasks of a session, all in one group, so that the first to fail ends the others:

* a *drain* per event stream, which hands signals to the tracker and never waits for anything else: the engine's stream
  is always read, whatever inspects, consumers or audits do;
* the *inspections*, which read containers as the tracker requests them, each by a task of its own;
* the *heartbeat*, which notices an engine that no longer answers;
* the session itself, which synchronises and then audits.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import TaskGroup
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from random import Random
from typing import NoReturn

import attrs

from whalewatch._core.audit import GRACE, AuditTimer
from whalewatch._core.calls import Calls
from whalewatch._core.cancellation import cancellations, heed_cancellation
from whalewatch._core.engine import Engine, Listing, ReportsProgress, Signal, SignalType
from whalewatch._core.errors import EngineError, EngineUnavailable, WhalewatchError
from whalewatch._core.inspections import Inspections, backoff
from whalewatch._core.status import Counters, WatchState
from whalewatch._core.tracker import Tracker

__all__ = ["Session", "Settings", "Warned"]

log = logging.getLogger("whalewatch.watcher")

HEARTBEAT_FRACTION = 0.95
"""The part of `heartbeat` after which the next check begins: timers are late, and an engine that hangs is to be noticed
within `heartbeat` + `call_timeout` all the same."""

REPLAY = 10.0
"""Seconds after which an engine has long sent what it replays to a new stream."""

SIGNALS_PER_TURN = 256
"""Signals applied in one go before other tasks get their turn: a burst must not stop the host program's loop."""


@attrs.frozen(kw_only=True)
class Settings:
    """The options of a watcher; seconds throughout."""

    heartbeat: float
    audit: float | None
    call_timeout: float
    concurrency: int
    now: Callable[[], datetime]
    random: Random


@attrs.define
class Warned:
    """What was logged already and need not be logged again; it outlives sessions.

    Attributes:
        containers: that could not be read since.
        parts: of the engine, that could not be listed since.
        fault: the latest internal error.
    """

    containers: set[str] = attrs.field(factory=set)
    parts: set[str] = attrs.field(factory=set)
    fault: str = ""


class Session:
    """One attempt to follow an engine; `run` returns the error that ended it.

    Attributes:
        connected: whether the engine was reached.
        synced_at: when it was synchronised, by the loop's clock; None if it never was.
    """

    def __init__(
        self,
        engine: Engine,
        tracker: Tracker,
        settings: Settings,
        counters: Counters,
        *,
        warned: Warned,
        progress: Callable[[WatchState], None],
    ) -> None:
        self.connected = False
        self.synced_at: float | None = None
        self._engine = engine
        self._tracker = tracker
        self._settings = settings
        self._counters = counters
        self._warned = warned
        self._progress = progress
        self._call = Calls(engine, settings.call_timeout)
        self._inspections = Inspections(
            engine,
            self._call,
            tracker,
            concurrency=settings.concurrency,
            random=settings.random,
            warned=warned.containers,
        )
        self._audits = AuditTimer(settings.audit, settings.random)
        self._unlisted: dict[str, int] = {}  # failures in a row of each part of the engine that cannot be listed
        self._relist: asyncio.TimerHandle | None = None
        self._replay: asyncio.TimerHandle | None = None

    @property
    def unresolved(self) -> int:
        """How many containers, and parts of the engine, cannot be read at present."""
        return len(self._inspections.failing) + len(self._unlisted)

    async def run(self) -> WhalewatchError:
        """Follow the engine until something fails."""
        try:
            await self._follow()
        except Exception as error:
            first = _first(error)
            if isinstance(first, WhalewatchError):
                return first
            # A fault of this library's own. The picture may be wrong now: a new synchronisation sets it right.
            known, self._warned.fault = self._warned.fault == repr(first), repr(first)
            level = logging.DEBUG if known else logging.ERROR
            log.log(level, "%s", self._call.message("internal error"), exc_info=first)
            return EngineError(self._call.message(f"internal error: {first!r}"))
        finally:
            self._inspections.close()
            for timer in (self._relist, self._replay):
                if timer is not None:
                    timer.cancel()

    async def _follow(self) -> NoReturn:
        self._progress(WatchState.CONNECTING)
        await self._call("connect", self._engine.connect())
        self.connected = True
        self._progress(WatchState.SYNCING)
        async with TaskGroup() as tasks:
            self._tracker.open(self._inspections.request)
            try:
                tasks.create_task(self._heartbeat(), name="whalewatch heartbeat")
                stream = await self._open(tasks)
                tasks.create_task(self._inspections.run(tasks), name="whalewatch inspections")
                await self._synchronise()
                self._progress(WatchState.SYNCED)
                await self._audit(reread=False)
                self._replay = asyncio.get_running_loop().call_later(REPLAY, self._tracker.replayed)
                while True:
                    reread = await self._audits.wait()
                    stream = await self._renew(tasks, stream)
                    await self._audit(reread=reread)
            finally:
                # At the first failure, not when all the others have ended: a stream may take its time to close.
                self._tracker.close()
        raise AssertionError  # the group only ends by an error

    # The event stream

    async def _open(self, tasks: TaskGroup) -> asyncio.Task[None]:
        """Start to read an event stream and wait until it covers what happens from now on."""
        subscribed = asyncio.Event()
        stream = tasks.create_task(self._drain(subscribed), name="whalewatch stream")
        await self._call("the subscription to events", subscribed.wait())
        return stream

    async def _renew(self, tasks: TaskGroup, former: asyncio.Task[None]) -> asyncio.Task[None]:
        """Let a new stream take over: the former may have died silently. The two overlap, so that there is no gap.

        What was sent before the new one may still be on its way in the former, which is read for a moment longer.
        """
        stream = await self._open(tasks)
        await asyncio.wait({former}, timeout=GRACE)
        former.cancel()
        await asyncio.wait({former}, timeout=self._settings.call_timeout)
        return stream

    async def _drain(self, subscribed: asyncio.Event) -> None:
        async with _closing(self._engine.signals()) as signals:
            applied = 0
            while (signal := await self._next(signals)) is not None:
                if signal.type is SignalType.SUBSCRIBED:
                    self._tracker.subscribed(signal.timestamp)
                    subscribed.set()
                    continue
                self._counters.signals += 1
                if signal.type is SignalType.LOST:
                    self._counters.lost += 1
                    self._audits.request_for_loss()
                else:
                    self._tracker.apply_signal(signal)
                applied += 1
                if applied % SIGNALS_PER_TURN == 0:
                    await asyncio.sleep(0)
        raise EngineUnavailable(self._call.message("the event stream ended"))

    async def _next(self, signals: AsyncIterator[Signal]) -> Signal | None:
        before = cancellations()
        try:
            signal = await anext(signals, None)
        except WhalewatchError:
            raise
        except asyncio.CancelledError as error:
            heed_cancellation(before)
            raise EngineUnavailable(self._call.message("the event stream was cancelled from within")) from error
        except Exception as error:
            raise EngineError(self._call.message(f"the event stream failed: {error!r}")) from error
        heed_cancellation(before)  # an adapter may have swallowed it
        return signal

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_FRACTION * self._settings.heartbeat)
            await self._call("ping", self._engine.ping())

    # Synchronisation and audit

    async def _synchronise(self) -> None:
        """List, inspect what the listing leaves open, and publish the whole as one revision.

        Each container is waited for once; what fails, or is reported again, is left to the time after. That nothing is
        read must not be taken for "nothing is there": before failures are left aside, the engine has to answer.
        """
        inspections = self._inspections
        listing = await self._list()
        await inspections.wait_until_tried(self._tracker.listed(listing) - inspections.failing.keys())
        if inspections.failing:
            await self._call("ping", self._engine.ping())
        self._warned.containers.intersection_update(inspections.failing)  # the others are gone
        self.synced_at = asyncio.get_running_loop().time()
        self._counters.syncs += 1
        self._tracker.finish_sync()

    async def _list(self) -> Listing:
        engine, settings = self._engine, self._settings
        listing = await self._call(
            "the listing of containers",
            engine.listing(),
            # A listing grows with the number of containers, and the heartbeat watches over it too.
            timeout=settings.heartbeat + settings.call_timeout,
            progress=(lambda: engine.progress) if isinstance(engine, ReportsProgress) else None,
        )
        self._unlisted = {part: self._unlisted.get(part, 0) + 1 for part in listing.failed}
        for part, error in listing.failed.items():
            level = logging.DEBUG if part in self._warned.parts else logging.WARNING
            log.log(level, "cannot list %r: %s", part, error)
        self._warned.parts = set(listing.failed)
        if self._relist is not None:
            self._relist.cancel()
        if self._unlisted:
            delay = backoff(min(self._unlisted.values()), settings.random)
            self._relist = asyncio.get_running_loop().call_later(delay, self._audits.request)
        return listing

    async def _audit(self, *, reread: bool) -> None:
        """Compare a listing with the picture, and have whatever differs confirmed by an inspect.

        Right after a synchronisation this is its confirmation: what fell between the listing and an engine's
        subscription, for which no engine gives proof, is found here.
        """
        audit = self._tracker.audit
        self._audits.satisfy()
        self._counters.audits += 1
        audit.begin()
        listing = await self._list()
        differing = audit.differing(listing)
        if differing:
            await asyncio.sleep(GRACE)
            self._tracker.suspect(differing - audit.touched)
        unknown = {id for id, listed in listing.containers.items() if listed.container is None} - audit.touched
        audit.end()
        if reread:
            # A restart whose events were lost shows in no listing without PIDs: read some anew each time.
            self._tracker.reread(unknown)


@asynccontextmanager
async def _closing(signals: AsyncIterator[Signal]) -> AsyncIterator[AsyncIterator[Signal]]:
    """Close an async generator promptly; another kind of async iterator needs no closing."""
    try:
        yield signals
    finally:
        if isinstance(signals, AsyncGenerator):
            await signals.aclose()


def _first(error: BaseException) -> BaseException:
    """The error that came first, out of a task group's."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
