"""Waking tasks of any event loop, from any thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

__all__ = ["Wakeup", "wake"]


def wake(sleeper: asyncio.Future[None]) -> None:
    """Resolve a future of any loop, from any thread. If its loop is closed, nobody waits any more: do nothing."""
    loop = sleeper.get_loop()
    if loop is asyncio._get_running_loop():
        _resolve(sleeper)  # waking the loop that runs this code through its pipe would cost two system calls and a turn
        return
    try:
        loop.call_soon_threadsafe(_resolve, sleeper)
    except RuntimeError:
        return


def _resolve(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)


class Wakeup:
    """A condition that tasks wait for, in any event loop; any thread may notify them.

    A waiter registers *before* it checks its condition, and whoever changes the condition calls `notify` *afterwards*.
    So no change is missed, whatever the order of the two threads. The lock protects only the set.
    """

    def __init__(self) -> None:
        # Re-entrant, because a waiter whose loop was closed may be garbage-collected at any allocation, also in the
        # thread that holds the lock. All it does then is to leave the set.
        self._lock = threading.RLock()
        self._sleepers: set[asyncio.Future[None]] = set()

    async def until(self, done: Callable[[], bool]) -> None:
        """Wait until `done()` is true; it is called at once and after each `notify`, in the waiting task."""
        while not done():
            sleeper = asyncio.get_running_loop().create_future()
            with self._lock:
                self._sleepers.add(sleeper)
            try:
                if done():
                    return
                await sleeper
            finally:
                with self._lock:
                    self._sleepers.discard(sleeper)

    def notify(self) -> None:
        """Wake all waiting tasks; may be called from any thread."""
        with self._lock:
            sleepers, self._sleepers = self._sleepers, set()
        for sleeper in sleepers:
            wake(sleeper)
