"""Inspections: has containers read, as many at a time as there are slots, and again those that cannot be read."""

from __future__ import annotations

import asyncio
import logging
from asyncio import TaskGroup
from collections.abc import Collection
from itertools import count
from random import Random

from whalewatch._core.audit import GRACE
from whalewatch._core.calls import Calls
from whalewatch._core.engine import Dead, Engine
from whalewatch._core.errors import EngineError, ProtocolViolation
from whalewatch._core.reconcile import InspectReason
from whalewatch._core.slots import release_when_slow
from whalewatch._core.tracker import Tracker

__all__ = ["Inspections", "backoff"]

log = logging.getLogger("whalewatch.watcher")

EXIT_DELAY = 0.25
"""Seconds to wait before reading a container that is likely to exit: its exit then needs no reading. Docker 26 under
load reports it up to 0.18 s after the end of its networks."""

WARN_AFTER_FAILURES = 2
"""Failures in a row after which a container that cannot be read is warned about. One may be the connection's failure,
which is reported as such."""

MAX_WARNED = 8
"""Containers that are warned about at a time: more are the engine's failure, and `Stats.unresolved` counts them."""

FIRST_RETRY, LAST_RETRY = 0.5, 30.0
"""Seconds until a container that could not be read is tried again: doubling from the first to the last."""


def backoff(failures: int, random: Random) -> float:
    """Seconds to wait after so many failures in a row, jittered by a quarter."""
    return min(LAST_RETRY, FIRST_RETRY * 2.0 ** min(failures - 1, 10)) * random.uniform(0.75, 1.25)


class Inspections:
    """The inspections of one connection: what to read, in which order, and what cannot be read.

    News come first, then what failed or an audit asks for; of these the longest waiting.

    Args:
        engine: whom to ask.
        call: makes the calls to it.
        tracker: takes what is read.
        concurrency: number of slots.
        random: for jitter.
        warned: containers that were warned about and could not be read since, over all connections.

    Attributes:
        failing: failures in a row of each container that cannot be read.
    """

    def __init__(
        self, engine: Engine, call: Calls, tracker: Tracker, *, concurrency: int, random: Random, warned: set[str]
    ) -> None:
        self.failing: dict[str, int] = {}
        self._engine = engine
        self._call = call
        self._tracker = tracker
        self._random = random
        self._warned = warned
        self._slots = asyncio.Semaphore(concurrency)
        self._queue: asyncio.PriorityQueue[tuple[bool, int, str]] = asyncio.PriorityQueue()
        self._turns = count()
        self._queued: dict[str, bool] = {}  # by container, whether its reading can wait
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._awaited: set[str] = set()
        self._all_tried = asyncio.Event()

    def request(self, id: str, reason: InspectReason) -> None:
        """Queue a container, once; what is likely to exit is left alone for a moment."""
        if reason is InspectReason.EXIT_LIKELY:
            if id not in self._timers and id not in self._queued:
                self._enqueue_after(EXIT_DELAY, id)
            return
        if (timer := self._timers.pop(id, None)) is not None:
            timer.cancel()
        self._enqueue(id)

    async def wait_until_tried(self, ids: Collection[str]) -> None:
        """Wait until each of these containers, which are requested already, was tried once."""
        self._awaited = set(ids)
        if self._awaited:
            self._all_tried.clear()
            await self._all_tried.wait()

    async def run(self, tasks: TaskGroup) -> None:
        """Read what is queued, for ever, each container by a task of its own."""
        while True:
            await self._slots.acquire()
            can_wait, _, id = await self._queue.get()
            if self._queued.get(id) is not can_wait:
                self._slots.release()  # it could wait no longer, and was read before
                continue
            del self._queued[id]
            if self._tracker.start_inspect(id):
                tasks.create_task(self._inspect(id), name="whalewatch inspect")
            else:
                self._slots.release()
                self._succeeded(id)
                self._tried(id)

    def close(self) -> None:
        """Leave no timer behind."""
        for timer in self._timers.values():
            timer.cancel()

    def _enqueue_after(self, delay: float, id: str) -> None:
        self._timers[id] = asyncio.get_running_loop().call_later(delay, self._enqueue, id)

    def _enqueue(self, id: str) -> None:
        self._timers.pop(id, None)
        can_wait = id in self.failing or id in self._tracker.audit.suspects
        if id not in self._queued or (self._queued[id] and not can_wait):
            self._queued[id] = can_wait
            self._queue.put_nowait((can_wait, next(self._turns), id))

    async def _inspect(self, id: str) -> None:
        try:
            with release_when_slow(self._slots, self._call.timeout):
                reading = await self._call("inspect", self._engine.inspect(id))
            container = reading.container if isinstance(reading, Dead) else reading
            if container is not None and container.id != id:
                raise ProtocolViolation(self._call.message(f"asked about {id!r:.80}, it tells of {container.id!r:.80}"))
        except EngineError as error:
            self._failed(id, error)
        else:
            self._succeeded(id)
            if self._tracker.surprising(id, reading):
                # It may have happened just now, and be reported next: what comes is kept, and taken with the reading.
                # No slot is held meanwhile: what an audit finds must not hold up what the engine reports.
                await asyncio.sleep(GRACE)
            self._tracker.inspect_finished(id, reading)
        self._tried(id)

    def _failed(self, id: str, error: EngineError) -> None:
        """Keep what is known of a container that cannot be read, and try again later."""
        failures = self.failing[id] = self.failing.get(id, 0) + 1
        warn = failures == WARN_AFTER_FAILURES and len(self._warned) < MAX_WARNED and id not in self._warned
        if warn:
            self._warned.add(id)
        log.log(logging.WARNING if warn else logging.DEBUG, "cannot read container %.80r: %s", id, error)
        self._tracker.inspect_failed(id)
        if id not in self._queued and id not in self._timers:
            self._enqueue_after(backoff(failures, self._random), id)

    def _succeeded(self, id: str) -> None:
        self.failing.pop(id, None)
        self._warned.discard(id)

    def _tried(self, id: str) -> None:
        self._awaited.discard(id)
        if not self._awaited:
            self._all_tried.set()
