"""Waking tasks of any event loop, from any thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

__all__ = ["Wakeup", "wake"]


def wake(sleeper: asyncio.Future[None]) -> None:
    """Resolve a future of any loop, from any thread; a loop that is closed has nobody left to wake."""
    loop = sleeper.get_loop()
    if loop is asyncio._get_running_loop():
        _resolve(sleeper)  # waking our own loop through its pipe would cost two system calls and a turn
        return
    try:
        loop.call_soon_threadsafe(_resolve, sleeper)
    except RuntimeError:
        return


def _resolve(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)


class Wakeup:
    """Something that tasks wait for, in whichever loop they run.

    A waiter registers *before* it looks at its condition, and whoever changes the condition rings *after*: so no
    change is missed, whatever the order of the two threads. The lock covers nothing but the set.
    """

    def __init__(self) -> None:
        # Re-entrant, because a waiter whose loop was closed may be collected at any allocation, also by the thread that
        # holds the lock; all it does then is to leave the set.
        self._lock = threading.RLock()
        self._sleepers: set[asyncio.Future[None]] = set()

    async def until(self, done: Callable[[], bool]) -> None:
        """Wait until `done()`, which is called at once and after each `ring`, in the waiter's own task."""
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

    def ring(self) -> None:
        """Wake all that wait; callable from any thread."""
        with self._lock:
            sleepers, self._sleepers = self._sleepers, set()
        for sleeper in sleepers:
            wake(sleeper)
