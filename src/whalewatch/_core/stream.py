"""The event stream of one connection: read without a pause, renewed, and reopened when something cuts it.

Load balancers and proxies cut streams that are idle, while they pass calls on. Why nothing is lost then:

* The next stream is opened first, and then the engine is found to be the one that was connected: it has the same
  identity, and the same process listens. A process that has ended does not return, so both streams are of one process.
* Docker's next stream begins before the last event of the one before: it reports in the same order what has happened in
  between. The adapter leaves out what was reported before.
* A listing follows each reopening, once per `heartbeat` at most; it begins after the stream was reopened.

Some of this is not proven. Behind a proxy or systemd's socket nobody sees whether the engine was restarted, and has
forgotten its events; containerd replays nothing; Docker keeps 256 events, and its clock may be set back. Then events of
the gap are lost, and the listing finds what differs. A listing of Docker's has no PIDs, so it does not show a container
that was restarted in the gap under its id: regular audits find that.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import Task, TaskGroup
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from whalewatch._core.audit import REPORT_DELAY, AuditTimer
from whalewatch._core.calls import Calls
from whalewatch._core.cancellation import cancel_requests, raise_if_cancelled
from whalewatch._core.engine import ChecksIdentity, Engine, Signal, SignalType
from whalewatch._core.errors import EngineError, EngineUnavailable, WhalewatchError
from whalewatch._core.status import Counters
from whalewatch._core.text import logger
from whalewatch._core.tracker import MAX_UNRESOLVED, Tracker

__all__ = ["EventStream"]

log = logger("whalewatch.watcher")

SHORT_STREAM, MAX_SHORT_STREAMS = 1.0, 3
"""A stream is short if it ends within so many seconds without a signal; after so many in a row the connection has
failed. The idle time-outs of load balancers and proxies are longer."""

SIGNALS_PER_TURN, SECONDS_PER_TURN = 256, 0.01
"""Most signals that are applied, and most seconds that this takes, before other tasks get their turn: a burst must not
block the event loop of the application, also if each signal changes a picture of thousands of containers."""

SUBSCRIPTION = "the subscription to events"


class EventStream:
    """Reads the engine's event stream, and passes its signals to the tracker.

    Args:
        engine: the engine to follow.
        call: makes the calls to it.
        tracker: receives the signals.
        audits: is asked for an audit if input was lost, or a stream was reopened.
        counters: counts signals, and streams that were reopened.
    """

    def __init__(self, engine: Engine, call: Calls, tracker: Tracker, audits: AuditTimer, counters: Counters) -> None:
        self._engine = engine
        self._call = call
        self._tracker = tracker
        self._audits = audits
        self._counters = counters
        self._task: Task[None] | None = None
        self._reopened = asyncio.Event()
        self._warned = False  # that there are too many containers

    async def open(self, tasks: TaskGroup) -> None:
        """Start to read a stream, and wait until it reports everything that happens from now on."""
        subscribed = asyncio.Event()
        self._task = tasks.create_task(self._drain(subscribed), name="whalewatch stream")
        await self._call(SUBSCRIPTION, subscribed.wait())

    async def renew(self, tasks: TaskGroup) -> None:
        """Replace the stream by a new one, because the old one may have died silently.

        The two overlap, so that there is no gap: the old one is read for a moment longer, because events from before
        the new stream may still be on their way in it.
        """
        old = self._task
        await self.open(tasks)
        assert old is not None
        await asyncio.wait({old}, timeout=REPORT_DELAY)
        old.cancel()
        await asyncio.wait({old}, timeout=self._call.timeout)

    async def confirm(self, interval: float) -> None:
        """Ask for a listing after each reopening, but only once in this many seconds; never return."""
        while True:
            await self._reopened.wait()
            self._reopened.clear()
            self._audits.request_listing()
            await asyncio.sleep(interval)

    async def _drain(self, subscribed: asyncio.Event) -> None:
        """Read a stream, and whenever it is cut while the engine lives on, the next one."""
        loop, short = asyncio.get_running_loop(), 0
        cut: EngineUnavailable | None = None
        while True:
            began = loop.time()
            count, cut = await self._read(subscribed, cut)
            short = 0 if count or loop.time() - began >= SHORT_STREAM else short + 1
            if short == MAX_SHORT_STREAMS or not isinstance(self._engine, ChecksIdentity):
                raise cut

    async def _read(self, subscribed: asyncio.Event, cut: EngineUnavailable | None) -> tuple[int, EngineUnavailable]:
        """Read one stream to its end; return the number of its signals, and why it has ended.

        Args:
            subscribed: set once the stream is open.
            cut: why the stream before has ended, if this one continues it.

        Raises:
            EngineError: the stream could not be opened, failed in another way, or is of another engine.
        """
        loop, count, is_open = asyncio.get_running_loop(), 0, False
        turn_ends = loop.time() + SECONDS_PER_TURN
        async with _closing(self._engine.signals()) as signals:
            while True:
                try:
                    following = self._next(signals)
                    signal = await (following if is_open else self._call(SUBSCRIPTION, following))
                except EngineUnavailable as error:
                    if not is_open:
                        raise
                    return count, error
                if signal.type is SignalType.SUBSCRIBED:
                    is_open = True
                    if cut is None:
                        self._tracker.stream_opened(signal.timestamp)
                    else:
                        await self._check_reopened(cut)
                    subscribed.set()
                else:
                    self._apply(signal)
                    count += 1
                if count % SIGNALS_PER_TURN == 0 or loop.time() > turn_ends:
                    await asyncio.sleep(0)
                    turn_ends = loop.time() + SECONDS_PER_TURN

    def _apply(self, signal: Signal) -> None:
        """Apply one signal of a container; ask for an audit if it cannot be understood, or would be too much."""
        self._counters.signals += 1
        misplaced = signal.container is not None and signal.container.id != signal.id
        lost = signal.type is SignalType.LOST or misplaced
        if not lost and not self._tracker.apply_signal(signal):
            lost = True
            self._warn_of_too_many()
        if lost:
            self._counters.lost += 1
            self._audits.request_for_loss()

    def _warn_of_too_many(self) -> None:
        if self._warned:
            return
        self._warned = True
        waiting, most = f"{MAX_UNRESOLVED:,} containers that started", f"{self._tracker.max_containers:,} containers"
        why = f"{waiting} could not be read yet, or {most} (max_containers) are followed"
        log.warning("%s", self._call.message(f"{why}: more starts count as lost, and audits look for them"))

    async def _next(self, signals: AsyncIterator[Signal]) -> Signal:
        before = cancel_requests()
        try:
            signal = await anext(signals, None)
        except WhalewatchError:
            raise
        except asyncio.CancelledError as error:
            raise_if_cancelled(before)
            raise EngineUnavailable(self._call.message("the event stream was cancelled from within")) from error
        except Exception as error:
            raise EngineError(self._call.message(f"the event stream failed: {error!r}")) from error
        raise_if_cancelled(before)  # an adapter may have swallowed a cancellation
        if signal is None:
            raise EngineUnavailable(self._call.message("the event stream ended"))
        return signal

    async def _check_reopened(self, cut: EngineUnavailable) -> None:
        """Check that the stream that was just opened is of the same engine as the one that was cut."""
        if not await self._call.same_engine():
            raise self._call.other_engine() from cut
        self._counters.reopened += 1
        level = logging.DEBUG if self._counters.reopened > 1 else logging.INFO
        log.log(level, "%s; another one continues it. Does something in between cut idle connections?", cut)
        self._reopened.set()


@asynccontextmanager
async def _closing(signals: AsyncIterator[Signal]) -> AsyncIterator[AsyncIterator[Signal]]:
    """Close an async generator at once; other async iterators need no closing."""
    try:
        yield signals
    finally:
        if isinstance(signals, AsyncGenerator):
            await signals.aclose()
