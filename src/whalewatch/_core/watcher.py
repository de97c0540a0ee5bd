"""The watcher: follows one engine from entering to leaving, whatever the engine does."""

from __future__ import annotations

import asyncio
import logging
from asyncio import Task
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from datetime import UTC, datetime
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypedDict

from whalewatch._core.cancellation import cancel_requests, raise_if_cancelled
from whalewatch._core.engine import MAX_CONTAINERS, Engine, display_name
from whalewatch._core.errors import UnsupportedEngine, WhalewatchError
from whalewatch._core.feed import Feed
from whalewatch._core.kernel import Kernel
from whalewatch._core.latest import StatusChanges, first_picture
from whalewatch._core.model import ContainerEvent, EventType, FrozenMapping
from whalewatch._core.portfolio import Portfolio, deadline
from whalewatch._core.retry import Backoff, Retry
from whalewatch._core.session import Session, Settings, Warned
from whalewatch._core.status import Counters, Stats, Status, WatchState
from whalewatch._core.subscription import Subscription
from whalewatch._core.text import logger
from whalewatch._core.tracker import Tracker

__all__ = ["Watcher", "WatcherOptions"]

if TYPE_CHECKING:
    from typing_extensions import TypeVar  # type checkers bring it along

    E_co = TypeVar("E_co", bound=Engine, default=Engine, covariant=True)
else:
    from typing import TypeVar

    E_co = TypeVar("E_co", bound=Engine, covariant=True)

log = logger("whalewatch.watcher")

CLOSE_TIMEOUT = 2.0
"""Seconds that an engine adapter has to close its connections."""


def _utc_now() -> datetime:
    return datetime.now(UTC)


class WatcherOptions(TypedDict, total=False):
    """The options of `Watcher`, which the ``watch`` function of every engine passes on; `Watcher` describes them."""

    retry: Retry | None
    heartbeat: float
    audit: float | None
    call_timeout: float
    concurrency: int
    kernel: bool
    clock: Callable[[], datetime]
    random: Random | None


class Watcher(Generic[E_co]):
    """Follows one container engine: a synchronisation, then the engine's event stream; all again after every failure.

    A watcher can be used once. As an async context manager it works in the background from entering to leaving, and
    leaving also closes the engine; `run` does the same in the foreground. `portfolio`, `events`, `status` and `stats`
    may be used from any thread; everything else belongs to the event loop in which the watcher runs.

    A child that is forked meanwhile has a copy in which nothing changes: whatever would wait there raises
    `RuntimeError`, and so does leaving without an exception. The child does not disturb the parent's connections.

    Example::

        async with moby.watch() as watcher:
            await watcher.ready(timeout=10)
            for container in await watcher.portfolio.containers():
                print(container.name)

    Args:
        engine: the engine to follow; only this watcher may use it from now on.
        retry: how to retry after a failure; None never retries: the first failure ends the watch with its error. An
            engine that is recognised as another kind, or as too old, ends it in any case, before the first
            synchronisation.
        heartbeat: seconds between calls that check whether the engine still answers.
        audit: seconds between audits, with a jitter of a tenth. Each audit compares a listing with the picture, and
            renews the event stream. None makes only the audit that confirms each synchronisation.
        call_timeout: seconds that the engine has to answer a call. A listing has `heartbeat` seconds more. If the
            engine reports progress, this time starts again with each part of the listing that arrives; the whole may
            take ten times as long.
        concurrency: number of containers that are inspected at the same time. Calls that are not answered within an
            eighth of `call_timeout` do not count, so there may be eight times as many.
        kernel: whether to watch the processes of containers, where the engine runs on this machine (Linux). Then an
            exit is known within milliseconds, also while the engine is frozen, dead or polled. It needs no privilege.
        clock: returns the time, in aware UTC, for changes that the engine does not date.
        random: for jitter.

    Raises:
        ValueError: `heartbeat`, `audit`, `call_timeout` or `concurrency` is not positive.
    """

    def __init__(
        self,
        engine: E_co,
        *,
        retry: Retry | None = Retry(),  # noqa: B008 - immutable
        heartbeat: float = 10.0,
        audit: float | None = 300.0,
        call_timeout: float = 5.0,
        concurrency: int = 8,
        kernel: bool = True,
        clock: Callable[[], datetime] = _utc_now,
        random: Random | None = None,
    ) -> None:
        self._engine = engine
        self._retry = retry
        jitter = random or Random()  # noqa: S311 - jitter is no secret
        self._settings = Settings(heartbeat, audit, call_timeout, concurrency, clock, jitter)
        self._feed = Feed()
        self._portfolio = Portfolio(self._feed)
        self._status = Status(state=WatchState.CONNECTING, since=clock(), source=engine.source)
        self._backoff = Backoff(retry)
        self._counters = Counters()
        self._kernel = Kernel(engine, self._feed, clock, enabled=kernel)
        self._tracker = Tracker(
            self._feed, clock, self._counters, getattr(engine, "max_containers", MAX_CONTAINERS), self._kernel
        )
        self._warned = Warned()
        self._loss_logged = False  # as a warning, since it was last in sync
        self._session: Session | None = None
        self._used = False
        self._task: Task[None] | None = None

    @property
    def engine(self) -> E_co:
        """The engine that is followed."""
        return self._engine

    @property
    def portfolio(self) -> Portfolio:
        """The queries about the containers that are alive; may be used from any thread and event loop."""
        return self._portfolio

    @property
    def status(self) -> Status:
        """The current status of the watch; may be read from any thread."""
        return self._status

    @property
    def stats(self) -> Stats:
        """The counters since the start; may be read from any thread."""
        session = self._session
        return self._counters.stats(
            calls=FrozenMapping(self._engine.calls),
            unresolved=session.unresolved if session else 0,
            revisions=self._feed.snapshot.revision,
            kernel=self._kernel.stats,
        )

    @property
    def endings(self) -> tuple[ContainerEvent, ...]:
        """The last 1,024 exits, the oldest first, each amended by what was told later; may be read from any thread.

        The kernel tells an exit before the engine says why (`oom`, `requested`), and on some systems without its code.
        """
        return tuple(self._tracker.endings)

    def events(
        self,
        *,
        replay: bool = True,
        buffer: int = 1024,
        types: Collection[EventType] | None = None,
        where: Callable[[ContainerEvent], bool] | None = None,
        brief: bool = True,
    ) -> Subscription:
        """Subscribe to events; may be called from any thread. Everything that happens after this call is delivered.

        Args:
            replay: whether to begin with STARTED for every container that is alive now; later events follow without
                gap or overlap.
            buffer: number of events that may wait for the reader before they collapse to net differences.
            types: deliver only events of these types; None for all types.
            where: deliver only events for which this function returns true; it is called in the reader's task.
            brief: whether to deliver the events of containers that were dead before they could be read
                (`ContainerEvent.brief`).

        Example::

            async for event in watcher.events(types={EventType.EXITED}, replay=False):
                print(event.container.name, event.exit_code)

        Raises:
            ValueError: `buffer` is less than 1.
        """
        return Subscription(self._feed, replay=replay, buffer=buffer, types=types, where=where, brief=brief)

    async def ready(self, timeout: float | None = None) -> None:
        """Wait for the first successful synchronisation.

        Args:
            timeout: seconds; None waits as long as the watch lasts.

        Raises:
            NotSynced: there was none in time. Its ``__cause__`` is the error that disconnected the watch, if it is
                disconnected.
            EngineError: an error ended the watch before the first synchronisation.
            WatchEnded: the watcher was closed before the first synchronisation.
            RuntimeError: the watcher was not entered.
        """
        async with deadline(self._feed, timeout, f"no synchronisation with {self._engine.address}"):
            await first_picture(self._feed)

    def status_changes(self) -> AsyncIterator[Status]:
        """Iterate over the status: the current one, then the new one after each change.

        If the status changes several times before the reader asks again, only the latest status is given. The iteration
        ends after CLOSED.
        """
        return StatusChanges(self._feed, lambda: self._status)

    def run(self) -> Coroutine[Any, Any, None]:
        """Follow the engine in the foreground, until cancelled or closed. The watcher is used from this call on.

        Raises:
            EngineError: the failure after which `retry` stopped.
            RuntimeError: the watcher was used before.
        """
        self._use()
        return self._run()

    async def _run(self) -> None:
        if self._feed.ended:
            return
        task = self._start()
        try:
            await asyncio.wait({task})
        finally:
            await self.aclose()
        if not task.cancelled():
            task.result()

    async def __aenter__(self) -> Self:
        self._use()
        self._start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._feed.forked and exc_type is not None:
            return
        await self.aclose()

    def _start(self) -> Task[None]:
        task = self._task = asyncio.create_task(self._watch(), name=f"whalewatch {self._engine.address}")
        task.add_done_callback(_retrieve_exception)
        return task

    async def aclose(self) -> None:
        """End the watch and close the engine, as leaving ``async with`` does; closing twice is fine.

        Subscriptions and waits end at once. It does nothing if the watcher was not used.

        Raises:
            RuntimeError: this is a forked child of the process that watches.
        """
        self._feed.check_process()
        task = self._task
        if task is None:
            if self._used and not self._feed.ended:
                await self._finish(None)  # run() was called, and has not begun
            return
        task.cancel()
        cancelled: asyncio.CancelledError | None = None
        while not task.done():
            # No task must be left behind. If this task is cancelled, it still waits for the end of the other; and if an
            # engine adapter swallows the cancellation of the other task, that task is cancelled again.
            try:
                _, pending = await asyncio.wait({task}, timeout=2 * CLOSE_TIMEOUT)
                for one in pending:
                    one.cancel()
            except asyncio.CancelledError as error:
                cancelled = error
        if not self._feed.ended:
            await self._finish(None)  # the task was cancelled before its first step, so it never ran
        if cancelled is not None:
            raise cancelled

    def _use(self) -> None:
        self._feed.check_process()
        if self._used:
            msg = "a watcher is for one use only: make a new one"
            raise RuntimeError(msg)
        self._used = True
        self._feed.begin()

    async def _watch(self) -> None:
        ended: WhalewatchError | None = None
        before = cancel_requests()
        try:
            # Raises a cancellation that was requested already; later it would look like one of the adapter.
            await asyncio.sleep(0)
            while True:
                session = self._session = Session(
                    self._engine,
                    self._tracker,
                    self._settings,
                    self._counters,
                    warned=self._warned,
                    progress=self._progress,
                )
                error = await session.run()
                # If a task group fails at the moment it is cancelled, it raises the failure and not the cancellation.
                raise_if_cancelled(before)
                delay = self._failed(session, error)
                if delay is None:
                    ended = error
                    break
                await asyncio.sleep(delay)
        except Exception as error:
            # A fault of this library, or of an adapter of the application: it must not look like a clean end.
            log.exception("%s: internal error", display_name(self._engine))
            ended = WhalewatchError(f"internal error: {error!r}")
            raise
        finally:
            await self._finish(ended)
        raise ended

    async def _finish(self, ended: WhalewatchError | None) -> None:
        self._kernel.close()
        try:
            await self._close_engine()
        finally:
            try:
                self._show(WatchState.CLOSED, error=ended)
            finally:
                self._feed.end(ended)

    def _failed(self, session: Session, error: WhalewatchError) -> float | None:
        """Record why a session ended; return the seconds until the next one, None to stop."""
        self._session = None
        held = None
        if session.synced_at is not None:
            self._counters.outages += 1
            held = asyncio.get_running_loop().time() - session.synced_at
        delay = self._backoff.after(error, connected=session.connected, held=held)
        # Later the engine is known to be the right one, and something else may answer while it is away.
        wrong = isinstance(error, UnsupportedEngine) and not session.connected and not self._feed.was_synced
        if wrong:
            delay = None
        warn = wrong or self._backoff.attempt <= 1
        self._loss_logged = self._loss_logged or warn
        log.log(
            logging.WARNING if warn else logging.DEBUG,
            "%s; %s",
            error,
            "giving up" if delay is None else f"trying again in {delay:.1f} s",
        )
        self._feed.set_error(error)
        self._show(WatchState.DISCONNECTED, error=error)
        return delay

    def _progress(self, state: WatchState) -> None:
        synced = state is WatchState.SYNCED
        if synced and self._feed.error is not None:
            level = logging.INFO if self._loss_logged else logging.DEBUG
            log.log(level, "%s: in sync again", display_name(self._engine))
        if synced:
            self._loss_logged = False
            self._feed.set_error(None)
        self._show(state, error=None if synced else self._feed.error)

    def _show(self, state: WatchState, *, error: WhalewatchError | None) -> None:
        self._status = Status(
            state=state,
            since=self._settings.now(),
            attempt=self._backoff.attempt,
            error=error,
            source=self._engine.source,
        )
        self._feed.changed.notify()

    async def _close_engine(self) -> None:
        if self._feed.forked:
            return  # its connections are the parent's
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._engine.close()
        except Exception as error:  # noqa: BLE001 - whatever it is, the watch has ended anyway
            log.warning("%s: not closed cleanly: %r", display_name(self._engine), error)


def _retrieve_exception(task: Task[None]) -> None:
    """Keep asyncio from logging the error of a background watch: `status`, `ready` and others report it."""
    if not task.cancelled():
        task.exception()
