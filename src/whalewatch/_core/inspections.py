"""Inspections: inspect containers, as many at a time as there are slots, and retry those that cannot be read."""

from __future__ import annotations

import asyncio
import logging
from asyncio import TaskGroup
from collections import OrderedDict
from collections.abc import Collection
from collections.abc import Set as AbstractSet
from random import Random

from whalewatch._core.audit import REPORT_DELAY, log_level
from whalewatch._core.calls import Calls
from whalewatch._core.engine import Dead, Engine
from whalewatch._core.errors import EngineError, EngineTimeout, EngineUnavailable, ProtocolViolation
from whalewatch._core.slots import release_when_slow
from whalewatch._core.state import InspectReason
from whalewatch._core.status import Counters
from whalewatch._core.text import logger
from whalewatch._core.tracker import Tracker

__all__ = ["MAX_WARNED", "Inspections", "backoff"]

log = logger("whalewatch.watcher")

EXIT_DELAY = 0.25
"""Seconds to wait before inspecting a container that is likely to exit: if its exit is reported, no inspect is needed.
Docker 26 under load reports an exit up to 0.18 s after it disconnects the container's networks."""

REPORT_CHECKS = 8
"""How often it is checked, within `REPORT_DELAY`, whether the engine has reported what an inspect has found."""

WARN_AFTER_FAILURES = 2
"""Failures in a row after which a warning is logged about a container that cannot be read. A single failure may be that
of the connection, which is reported by itself."""

MAX_WARNED = 8
"""Containers, and parts of the engine, that may be warned about at the same time. If there are more, the engine is at
fault; `Stats.unresolved` counts all of them."""

FIRST_RETRY, LAST_RETRY = 0.5, 30.0
"""Seconds until the next attempt to read a container that could not be read: doubling from the first to the last."""


def backoff(failures: int, random: Random, longest: float = LAST_RETRY) -> float:
    """Return the seconds to wait after this number of failures in a row, with a jitter of a quarter."""
    return min(longest, FIRST_RETRY * 2.0 ** min(failures - 1, 10)) * random.uniform(0.75, 1.25)


class Inspections:
    """The inspections of one connection: which containers to read, in which order, and which cannot be read.

    Containers that the engine or the synchronisation is waiting for come first, then those that failed before or that
    an audit asks for. Within each of the two groups, the container that has waited longest comes first.

    Args:
        engine: the engine to ask.
        call: makes the calls to it.
        tracker: receives the readings.
        counters: has the drift, for messages.
        concurrency: number of slots.
        random: for jitter.
        warned: containers about which a warning was logged, and which could not be read since; shared by all
            connections.

    Attributes:
        failing: for each container that cannot be read, its number of failures in a row.
    """

    def __init__(
        self,
        engine: Engine,
        call: Calls,
        tracker: Tracker,
        counters: Counters,
        *,
        concurrency: int,
        random: Random,
        warned: set[str],
    ) -> None:
        self.failing: dict[str, int] = {}
        self._engine = engine
        self._call = call
        self._tracker = tracker
        self._counters = counters
        self._random = random
        self._warned = warned
        self._slots = asyncio.Semaphore(concurrency)
        self._urgent: OrderedDict[str, None] = OrderedDict()  # the queue: each container is in one of these at most
        self._can_wait: OrderedDict[str, None] = OrderedDict()
        self._queued = asyncio.Event()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._awaited: dict[str, float] = {}  # by container: seconds for which it is still tried
        self._all_tried = asyncio.Event()
        self._first_error: EngineError | None = None  # since all containers could be read

    def request(self, id: str, reason: InspectReason) -> None:
        """Queue a container, unless it is queued; wait `EXIT_DELAY` first if it is likely to exit."""
        if reason is InspectReason.EXIT_LIKELY:
            if not self._is_due(id):
                self._enqueue_after(EXIT_DELAY, id)
            return
        if (timer := self._timers.pop(id, None)) is not None:
            timer.cancel()
        self._enqueue(id)

    async def wait_until_tried(self, ids: Collection[str]) -> None:
        """Wait until each of these containers, which must be requested already, was read or has failed for too long.

        It is tried again, with growing pauses, for as long as one call may take: its attempts and the pauses together.
        The time that it waits for a slot does not count, because many containers are no reason to give one up.
        """
        self._awaited = dict.fromkeys(ids, self._call.timeout)
        for id in self._awaited.keys() & self._timers.keys():
            self.request(id, InspectReason.DECIDES)  # it has failed before; its pause may be long
        if self._awaited:
            self._all_tried.clear()
            await self._all_tried.wait()

    def check_readable(self, listed: AbstractSet[str]) -> None:
        """Check that at least half of these containers can be read.

        Raises:
            EngineError: more than half cannot be read. The message and the cause are those of the first failure.
        """
        unread = len(self.failing.keys() & listed)
        first = self._first_error
        if first is not None and unread > len(listed) / 2:
            kinds = (EngineTimeout, EngineUnavailable, ProtocolViolation)
            kind = next((kind for kind in kinds if isinstance(first, kind)), EngineError)
            raise kind(f"{first} ({unread} of {len(listed)} listed containers cannot be read)") from first

    async def run(self, tasks: TaskGroup) -> None:
        """Inspect the queued containers, each in a task of its own; never return."""
        while True:
            await self._slots.acquire()
            while not (queue := self._urgent or self._can_wait):
                self._queued.clear()
                await self._queued.wait()
            id, _ = queue.popitem(last=False)
            if self._tracker.start_inspect(id):
                tasks.create_task(self._inspect(id), name="whalewatch inspect")
            else:
                self._slots.release()
                self._succeeded(id)
                self._tried(id)

    def close(self) -> None:
        """Cancel all timers."""
        for timer in self._timers.values():
            timer.cancel()

    def _enqueue_after(self, delay: float, id: str) -> None:
        self._timers[id] = asyncio.get_running_loop().call_later(delay, self._enqueue, id)

    def _enqueue(self, id: str) -> None:
        self._timers.pop(id, None)
        if id in self._urgent:
            return
        if id in self.failing or id in self._tracker.audit.suspects:
            self._can_wait.setdefault(id)
        else:
            self._can_wait.pop(id, None)
            self._urgent[id] = None
        self._queued.set()

    def _is_due(self, id: str) -> bool:
        """Return whether a container is queued, or will be."""
        return id in self._urgent or id in self._can_wait or id in self._timers

    async def _inspect(self, id: str) -> None:
        began = asyncio.get_running_loop().time()
        try:
            with release_when_slow(self._slots, self._call.timeout):
                reading = await self._call("inspect", self._engine.inspect(id), timeout=self._awaited.get(id))
            container = reading.container if isinstance(reading, Dead) else reading
            if container is not None and container.id != id:
                raise ProtocolViolation(
                    self._call.message(f"asked about {id!r:.80}, it answers about {container.id!r:.80}")
                )
        except EngineError as error:
            self._failed(id, error, asyncio.get_running_loop().time() - began)
        else:
            self._succeeded(id)
            for _ in range(REPORT_CHECKS):
                if not self._tracker.found_unreported(id, reading):
                    break
                # It may have happened just now, so that the engine is about to report it. Signals that arrive during
                # this delay are kept, and applied with the reading. No slot is held meanwhile: the findings of an
                # audit must not delay inspects that the engine's signals ask for.
                await asyncio.sleep(REPORT_DELAY / REPORT_CHECKS)
            if self._tracker.inspect_finished(id, reading):
                drift, audits = self._counters.drift, self._counters.audits
                found = f"an audit found a change of container {id!r:.80} that was not reported"
                text = self._call.message(f"{found} (drift so far: {drift}, in {audits} audits)")
                log.log(log_level(drift), "%s", text)
            self._tried(id)

    def _failed(self, id: str, error: EngineError, seconds: float) -> None:
        """Keep the known state of a container that could not be read within these seconds, and try again later."""
        if not self.failing:
            self._first_error = error
        failures = self.failing[id] = self.failing.get(id, 0) + 1
        delay = backoff(failures, self._random)
        if id in self._awaited:
            self._awaited[id] -= seconds + delay
            if self._awaited[id] <= 0:
                self._tried(id)
        warn = failures == WARN_AFTER_FAILURES and len(self._warned) < MAX_WARNED and id not in self._warned
        if warn:
            self._warned.add(id)
        log.log(logging.WARNING if warn else logging.DEBUG, "cannot read container %.80r: %s", id, error)
        self._tracker.inspect_failed(id)
        if not self._is_due(id):
            self._enqueue_after(delay, id)

    def _succeeded(self, id: str) -> None:
        self.failing.pop(id, None)
        self._warned.discard(id)

    def _tried(self, id: str) -> None:
        self._awaited.pop(id, None)
        if not self._awaited:
            self._all_tried.set()
