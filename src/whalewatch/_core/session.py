"""One connection to an engine, from the first call to the failure that ends it.

Tasks of a session, all in one group, so that the first to fail ends the others:

* a *drain* for each event stream, which passes signals to the tracker and never waits for anything else: the engine's
  stream is always read, whatever inspects, consumers or audits do. If its stream is cut, it opens the next one;
* the *inspections*, which read containers that the tracker requests, each in a task of its own;
* the *heartbeat*, which notices an engine that no longer answers;
* *confirmations*, which ask for a listing after the stream was cut;
* the session itself, which synchronises and then audits.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import TaskGroup
from collections.abc import Callable, Iterable
from datetime import datetime
from random import Random
from typing import NoReturn

import attrs

from whalewatch._core.audit import REPORT_DELAY, AuditTimer, log_level
from whalewatch._core.calls import Calls
from whalewatch._core.cancellation import cancel_requests, raise_if_cancelled
from whalewatch._core.engine import Engine, Listing, ReportsProgress
from whalewatch._core.errors import EngineError, EngineUnavailable, WhalewatchError
from whalewatch._core.inspections import MAX_WARNED, Inspections, backoff
from whalewatch._core.state import InspectReason
from whalewatch._core.status import Counters, WatchState
from whalewatch._core.stream import EventStream
from whalewatch._core.text import logger
from whalewatch._core.tracker import PART, Tracker
from whalewatch._core.turns import in_turns

__all__ = ["Session", "Settings", "Warned"]

log = logger("whalewatch.watcher")

HEARTBEAT_FRACTION = 0.95
"""The part of `heartbeat` after which the next check begins: timers may be late, but an engine that hangs has to be
noticed within `heartbeat` + `call_timeout`."""

REPLAY_DURATION = 10.0
"""Seconds after which an engine has certainly sent everything that it replays on a new stream."""

LAST_AUDIT_RETRY = 300.0
"""Most seconds until an audit that could not list is repeated: each audit costs a listing and a new stream."""


@attrs.frozen
class Settings:
    """The options of a watcher, as described there; all times are in seconds."""

    heartbeat: float
    audit: float | None
    call_timeout: float
    concurrency: int
    now: Callable[[], datetime]
    random: Random

    def __attrs_post_init__(self) -> None:
        for name in ("heartbeat", "audit", "call_timeout", "concurrency"):
            if (value := getattr(self, name)) is not None and not value > 0:
                msg = f"{name} must be positive, not {value}"
                raise ValueError(msg)


@attrs.define
class Warned:
    """What was logged already and is not logged again; shared by all sessions of a watcher.

    Attributes:
        containers: containers that could not be read since they were logged.
        parts: parts of the engine that could not be listed since they were logged.
        fault: the latest internal error, as text.
    """

    containers: set[str] = attrs.field(factory=set)
    parts: set[str] = attrs.field(factory=set)
    fault: str = ""


class Session:
    """One attempt to follow an engine; `run` returns the error that ended it.

    Attributes:
        connected: whether the engine was reached.
        synced_at: when the synchronisation succeeded, by the loop's clock; None if it did not.
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
            counters,
            concurrency=settings.concurrency,
            random=settings.random,
            warned=warned.containers,
        )
        self._audits = AuditTimer(settings.audit, settings.random)
        self._stream = EventStream(engine, self._call, tracker, self._audits, counters)
        self._unlisted: dict[str, int] = {}  # by part of the engine that cannot be listed: its failures in a row
        self._audits_failed = 0  # in a row
        self._cancel_requests = cancel_requests()
        self._relist: asyncio.TimerHandle | None = None
        self._replay: asyncio.TimerHandle | None = None

    @property
    def unresolved(self) -> int:
        """Number of containers and parts of the engine that cannot be read at present."""
        return len(self._inspections.failing) + len(self._unlisted)

    async def run(self) -> WhalewatchError:
        """Follow the engine until something fails."""
        try:
            await self._follow()
        except Exception as error:
            first = _first(error)
            if isinstance(first, WhalewatchError):
                return first
            # A fault of this library. The picture may be wrong now; a new synchronisation corrects it.
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
            try:
                await in_turns(self._tracker.open(self._inspections.request))
                tasks.create_task(self._heartbeat(), name="whalewatch heartbeat")
                await self._stream.open(tasks)
                tasks.create_task(self._stream.confirm(self._settings.heartbeat), name="whalewatch confirmations")
                tasks.create_task(self._inspections.run(tasks), name="whalewatch inspections")
                await self._synchronise()
                self._progress(WatchState.SYNCED)
                await self._audit(reread=False)
                self._replay = asyncio.get_running_loop().call_later(REPLAY_DURATION, self._tracker.replay_finished)
                while True:
                    reread = await self._audits.wait()
                    if reread:
                        await self._stream.renew(tasks)
                    await self._audit(reread=reread)
            finally:
                # Here, at the first failure, and not after the task group: a stream may take a long time to close.
                self._tracker.close()
        raise AssertionError  # the task group ends only by an error

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_FRACTION * self._settings.heartbeat)
            try:
                await self._call("ping", self._engine.ping())
            except EngineUnavailable:
                # An engine that shuts down first refuses calls; then its stream reports how its containers end.
                await asyncio.sleep(self._settings.call_timeout)
                raise

    # Synchronisation and audit

    async def _synchronise(self) -> None:
        """List the containers, inspect those that the listing does not fully describe, and publish one revision.

        Wait for one inspect of each container; if it fails, it is repeated for as long as a call may take. What failed
        until then, or is reported again, is inspected after the synchronisation. But an engine that answers nothing any
        more, or refuses inspects, must not look like one without containers: so most of them have to be read.
        """
        listing = await self._list()
        await in_turns(self._tracker.apply_listing(listing))
        awaited = self._tracker.unread
        self._warned.containers.intersection_update(awaited)  # the others do not exist any more
        await self._inspections.wait_until_tried(awaited)
        self._inspections.check_readable(listing.containers.keys())
        await in_turns(self._tracker.finish_sync())
        self.synced_at = asyncio.get_running_loop().time()

    async def _list(self) -> Listing:
        engine, settings = self._engine, self._settings
        if self._relist is not None:
            self._relist.cancel()
        listing = await self._call(
            "the listing of containers",
            engine.listing(),
            # A listing takes longer if there are more containers, and the heartbeat checks the engine meanwhile.
            timeout=settings.heartbeat + settings.call_timeout,
            progress=(lambda: engine.progress) if isinstance(engine, ReportsProgress) else None,
        )
        if (count := len(listing.containers)) > (most := self._tracker.max_containers):
            what = f"it lists {count:,} containers, and at most {most:,} are followed: give a greater max_containers"
            raise EngineError(self._call.message(what))
        self._unlisted = {part: self._unlisted.get(part, 0) + 1 for part in listing.failed}
        for number, (part, error) in enumerate(listing.failed.items()):
            level = logging.DEBUG if part in self._warned.parts or number >= MAX_WARNED else logging.WARNING
            log.log(level, "cannot list %r: %s", part, error)
        self._warned.parts = set(listing.failed)
        if self._unlisted:
            self._list_again(backoff(min(self._unlisted.values()), settings.random))
        return listing

    def _list_again(self, delay: float) -> None:
        self._relist = asyncio.get_running_loop().call_later(delay, self._audits.request)

    async def _audit(self, *, reread: bool) -> None:
        """Compare a listing with the picture, and inspect the containers that differ.

        Right after a synchronisation this confirms it: no engine proves when its subscription began, so this listing
        finds what happened between the first listing and the subscription.

        If the containers cannot be listed, the stream still reports and the heartbeat still checks the engine, so the
        connection is kept. What this audit was to find stays unseen until the next one, so that comes soon: a gap at
        the subscription closes as soon as the engine can be listed again.

        If the engine is still the same one after the listing, so was the one that listed. Something in front of several
        engines may give each call to any of them; then pictures mix them until a check meets another one.

        Args:
            reread: whether to inspect also some containers that do not differ.
        """
        audit = self._tracker.audit
        self._audits.clear_requests()
        self._counters.audits += 1
        audit.begin()
        try:
            listing = await self._list()
        except EngineError as error:
            raise_if_cancelled(self._cancel_requests)  # requested just before the call, it looks like one from within
            audit.end()
            self._audit_failed(error)
            return
        try:
            same = await self._call.same_engine()
        except EngineError:
            raise_if_cancelled(self._cancel_requests)
            same = True  # it answers no more; if it shuts down, its stream still reports how its containers end
        if not same:
            raise self._call.other_engine()
        self._audits_failed = 0
        await in_turns(audit.compare(listing))
        differing = audit.differing
        if differing:
            await asyncio.sleep(REPORT_DELAY)
            if not await self._suspect(differing, InspectReason.DECIDES):
                self._audits.request_for_loss()
        incomplete = {id for id, listed in listing.containers.items() if listed.container is None} - audit.touched
        audit.end()
        if reread:
            # If the events of a restart were lost, a listing without PIDs does not show it: inspect some each time.
            await self._suspect(self._tracker.longest_unread(incomplete), InspectReason.CHANGED)

    async def _suspect(self, ids: Iterable[str], reason: InspectReason) -> bool:
        """Inspect containers for an audit, some at a time, but for those that are reported meanwhile.

        Return False if there was no room for some, as others cannot be read.
        """
        left, room = [*ids], True
        while left:
            part, left = left[:PART], left[PART:]
            room = self._tracker.suspect([id for id in part if id not in self._tracker.audit.touched], reason) and room
            await asyncio.sleep(0)
        return room

    def _audit_failed(self, error: EngineError) -> None:
        self._counters.audits_failed += 1
        failures = self._audits_failed = self._audits_failed + 1
        log.log(log_level(failures), "an audit failed (%d in a row), the watch goes on without it: %s", failures, error)
        self._list_again(backoff(failures, self._settings.random, LAST_AUDIT_RETRY))


def _first(error: BaseException) -> BaseException:
    """Return the first error of a task group's exception group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
