"""The watcher for programs without an event loop: the same methods, blocking, over a thread and loop of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from types import TracebackType
from typing import Any, Generic, ParamSpec, Self, TypeVar

from whalewatch._core.errors import WatchEnded, WhalewatchError
from whalewatch._core.latest import first_picture
from whalewatch._core.model import Container, ContainerEvent, EventType, Pod, Project
from whalewatch._core.portfolio import Wanted
from whalewatch._core.snapshot import Snapshot
from whalewatch._core.status import Stats, Status, WatchState
from whalewatch._core.subscription import Subscription, SubscriptionStats
from whalewatch._core.watcher import E_co, Watcher

__all__ = ["BlockingSubscription", "BlockingWatcher", "in_thread"]

P = ParamSpec("P")
T = TypeVar("T")


def in_thread(watcher: Watcher[E_co]) -> BlockingWatcher[E_co]:
    """Let a watcher run in a thread of its own, for a program without an event loop.

    Example::

        with whalewatch.in_thread(moby.watch()) as watcher:
            watcher.ready(timeout=10)
            for event in watcher.events():
                print(event.type.value, event.container.name)

    Args:
        watcher: a watcher that was not used yet; only the returned object may use it from now on.
    """
    return BlockingWatcher(watcher)


class BlockingWatcher(Generic[E_co]):
    """A `Watcher` in a thread and an event loop of its own, made by `in_thread`; can be entered once, by ``with``.

    It has the methods of `Watcher` and `Portfolio`, with the same arguments, results and errors, but they block. Any
    thread may call them, also several at once; after the first synchronisation, queries answer from memory. An
    exception in the calling thread, such as `KeyboardInterrupt`, ends its wait at once and nothing else. A function
    given to `wait_for` or `wait_gone` is called in the watcher's thread, and must not block.

    Entering returns when the watch has begun, before it is ready. Leaving closes the watcher, ends all waits and
    iterations in other threads, and joins the thread. After it, queries answer from the last picture.

    Raises:
        RuntimeError: by all that waits: it is not entered yet, or called in the watcher's own thread; by everything but
            leaving: this is a forked child of the process that watches. Each process needs a watcher of its own.
        WatchEnded: by all that waits: it was left.
    """

    def __init__(self, watcher: Watcher[E_co]) -> None:
        self._watcher = watcher
        self._feed = watcher._feed
        self._portfolio = watcher.portfolio
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = threading.Event()
        self._leave: Future[None] = Future()
        # Whoever leaves sets `_leave` under this lock, so that the loop still runs whatever was passed to it before.
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._feed.check_process()
        with self._lock:
            if self._thread is not None:
                msg = "this watcher was entered by `with` before: make a new one"
                raise RuntimeError(msg)
            entered: Future[None] = Future()
            # A daemon, because the interpreter joins other threads at its exit: a program that forgot to leave would
            # hang there for ever. Leaving joins this one as well.
            name = f"whalewatch {self._watcher.engine.address}"
            self._thread = threading.Thread(target=self._run, args=(entered,), name=name, daemon=True)
        try:
            self._thread.start()
            entered.result()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._feed.forked:
            return  # the thread is the parent's
        with self._lock:
            if not self._leave.done():
                self._leave.set_result(None)
        self._join()

    def _join(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            self._ended.wait()  # before Python 3.13, a thread whose `join` is interrupted counts as ended from then on
            self._thread.join()

    def _run(self, entered: Future[None]) -> None:
        try:
            with asyncio.Runner() as runner:
                runner.run(self._watch(entered))
        except BaseException as error:
            if entered.done():
                raise
            entered.set_exception(error)
        finally:
            self._ended.set()

    async def _watch(self, entered: Future[None]) -> None:
        async with self._watcher:
            self._loop = asyncio.get_running_loop()
            entered.set_result(None)
            await asyncio.wrap_future(self._leave)

    def _wait(self, call: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a coroutine in the watcher's loop and wait for its result; an exception in this thread cancels it."""
        self._feed.check_process()
        loop = self._loop
        if loop is None:
            msg = "this watcher is not entered yet: use `with`"
            raise RuntimeError(msg)
        if loop is asyncio._get_running_loop():
            msg = "this is the watcher's own thread, which would wait for itself"
            raise RuntimeError(msg)
        # An exception may come at any moment, also before this thread knows the future of what it has started.
        caller: Future[None] = Future()

        async def run() -> T:
            task = asyncio.current_task()
            assert task is not None
            caller.add_done_callback(lambda _: task.done() or loop.call_soon_threadsafe(task.cancel))
            return await call(*args, **kwargs)

        try:
            with self._lock:
                future = None if self._leave.done() else asyncio.run_coroutine_threadsafe(run(), loop)
            if future is not None:
                return future.result()
            self._join()
        except CancelledError:  # the watch has ended, and its loop was faster
            pass
        finally:
            caller.cancel()
        return self._feed.raise_ended()

    @property
    def engine(self) -> E_co:
        """The engine that is followed; its methods and its `client` belong to the loop of the watcher's thread."""
        return self._watcher.engine

    @property
    def portfolio(self) -> Self:
        """The queries: this object itself has them."""
        return self

    @property
    def status(self) -> Status:
        """The current status of the watch."""
        self._feed.check_process()
        return self._watcher.status

    @property
    def stats(self) -> Stats:
        """The counters since the start."""
        self._feed.check_process()
        return self._watcher.stats

    @property
    def endings(self) -> tuple[ContainerEvent, ...]:
        """The last exits, each amended by what was told later; see `Watcher.endings`."""
        self._feed.check_process()
        return self._watcher.endings

    def status_changes(self) -> Iterator[Status]:
        """Iterate over the status: the current one, then the latest after each change; see `Watcher.status_changes`."""
        return _BlockingStatuses(self)

    def events(
        self,
        *,
        replay: bool = True,
        buffer: int = 1024,
        types: Collection[EventType] | None = None,
        where: Callable[[ContainerEvent], bool] | None = None,
        brief: bool = True,
    ) -> BlockingSubscription:
        """Subscribe to events, as `Watcher.events` does; `where` is called in the thread that iterates."""
        self._feed.check_process()
        subscription = self._watcher.events(replay=replay, buffer=buffer, types=types, where=where, brief=brief)
        return BlockingSubscription(self, subscription)

    def ready(self, timeout: float | None = None) -> None:
        """Wait for the first successful synchronisation; see `Watcher.ready`."""
        self._wait(self._watcher.ready, timeout)

    def snapshot(self) -> Snapshot:
        """Return the current picture at once; before the first synchronisation, an empty one that is not synced."""
        self._feed.check_process()
        return self._feed.snapshot

    def names(self) -> tuple[str, ...]:
        """Return the sorted names of the projects, without ""."""
        return self._picture().names()

    def projects(self) -> tuple[Project, ...]:
        """Return all projects, sorted by name; the first is "", even if it has no containers."""
        return self._picture().projects()

    def project(self, name: str) -> Project | None:
        """Return one project; None if none of its containers is alive. The project "" is never None."""
        return self._picture().project(name)

    def containers(self, project: str | None = None) -> tuple[Container, ...]:
        """Return all containers in the order in which they were first seen, or those of one project by name."""
        return self._picture().containers(project)

    def container(self, name_or_id: str) -> Container | None:
        """Find a container by its id, the first digits of it, or its name; None if there is none.

        See `Portfolio.container`.
        """
        return self._picture().container(name_or_id)

    def pods(self) -> tuple[Pod, ...]:
        """Return all Kubernetes pods that have a container alive, sorted by namespace and name."""
        return self._picture().pods()

    def pod(self, uid: str) -> Pod | None:
        """Return one Kubernetes pod; None if none of its containers is alive."""
        return self._picture().pod(uid)

    def total(self) -> int:
        """Return the number of containers that are alive."""
        return self._picture().total()

    def wait_for(self, wanted: Wanted, timeout: float | None = None) -> Container:
        """Wait until a container that matches is alive, and return it; see `Portfolio.wait_for`."""
        return self._wait(self._portfolio.wait_for, wanted, timeout)

    def wait_healthy(self, name_or_id: str, timeout: float | None = None) -> Container:
        """Wait until a container is alive and its own health check succeeds; see `Portfolio.wait_healthy`."""
        return self._wait(self._portfolio.wait_healthy, name_or_id, timeout)

    def wait_gone(self, wanted: Wanted, timeout: float | None = None) -> ContainerEvent | None:
        """Wait until every container that matches now has exited; see `Portfolio.wait_gone`."""
        return self._wait(self._portfolio.wait_gone, wanted, timeout)

    def changes(self, *, debounce: float = 0.0) -> Iterator[Snapshot]:
        """Iterate over pictures, the newest after each change; see `Portfolio.changes`."""
        return _BlockingPictures(self, self._portfolio.changes(debounce=debounce))

    def in_sync(self, timeout: float | None = None) -> None:
        """Wait until the picture is in sync with the engine; see `Portfolio.in_sync`."""
        self._wait(self._portfolio.in_sync, timeout)

    def _picture(self) -> Snapshot:
        return self.snapshot() if self._feed.was_synced else self._wait(first_picture, self._feed)


class _BlockingStatuses(Iterator[Status]):
    """Iterates over the status. It is no generator, because an interrupted wait must not end the iteration."""

    def __init__(self, watcher: BlockingWatcher) -> None:
        self._watcher = watcher
        self._seen: Status | None = None

    def __next__(self) -> Status:
        seen = self._seen
        if seen is not None and seen.state is WatchState.CLOSED:
            raise StopIteration
        with suppress(WhalewatchError):  # left meanwhile: the status is CLOSED
            self._watcher._wait(self._watcher._feed.changed.until, lambda: self._watcher._watcher.status is not seen)
        self._seen = self._watcher.status
        return self._seen


class _BlockingPictures(Iterator[Snapshot]):
    """Iterates over pictures; no generator either."""

    def __init__(self, watcher: BlockingWatcher, pictures: AsyncIterator[Snapshot]) -> None:
        self._watcher = watcher
        self._pictures = pictures

    def __next__(self) -> Snapshot:
        try:
            picture = self._watcher._wait(self._newest)
        except WatchEnded:  # left meanwhile
            picture = None
        if picture is None:
            raise StopIteration
        return picture

    async def _newest(self) -> Snapshot | None:
        return await anext(self._pictures, None)


class BlockingSubscription(Iterator[ContainerEvent]):
    """A blocking iterator of events, made by `BlockingWatcher.events`; also a context manager.

    It is a `Subscription` for programs without an event loop: it receives events from the moment it is made, collapses
    them if its reader is slow, and ends when the watcher is left, or with the error that ended the watch. Any thread
    may read it, but only one at a time. An interrupted wait loses no event.

    Raises:
        RuntimeError: by iterating: another thread reads it, the watcher is not entered yet, or this is a forked child.
        EngineError: by iterating: the error that ended the watch.
    """

    def __init__(self, watcher: BlockingWatcher, subscription: Subscription) -> None:
        self._watcher = watcher
        self._subscription = subscription
        self._reading = threading.Lock()

    @property
    def revision(self) -> int:
        """Revision of the last picture whose events were all delivered; 0 before any."""
        self._watcher._feed.check_process()
        return self._subscription.revision

    @property
    def stats(self) -> SubscriptionStats:
        """The current counters."""
        self._watcher._feed.check_process()
        return self._subscription.stats

    def __next__(self) -> ContainerEvent:
        self._watcher._feed.check_process()
        if not self._reading.acquire(blocking=False):
            msg = "this subscription has a reader already: make one for each thread"
            raise RuntimeError(msg)
        try:
            while (event := self._subscription._next()) is None:
                with suppress(WhalewatchError):  # left meanwhile: there may still be events to take
                    self._watcher._wait(self._subscription._more)
        except StopAsyncIteration:
            raise StopIteration from None
        finally:
            self._reading.release()
        return event

    def close(self) -> None:
        """End the iteration at once, from any thread, and drop pending events; closing twice is fine."""
        self._watcher._feed.check_process()
        self._subscription._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._watcher._feed.forked:  # another thread may have held the lock
            self.close()
