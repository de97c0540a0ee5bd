"""Slots for calls that run at the same time: a call that hangs must not delay the others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["SLOW_FRACTION", "release_when_slow"]

SLOW_FRACTION = 1 / 8
"""The part of its time-out after which a call that is not answered loses its slot."""


@contextmanager
def release_when_slow(slots: asyncio.Semaphore, timeout: float) -> Iterator[None]:
    """Release a slot at the end of a call, or earlier if the call is slow. The caller has acquired the slot.

    Calls that began within the last eighth of the time-out still hold their slots, so there are at most as many of them
    as slots. So even if the engine answers nothing at all, at most eight times as many calls are under way.

    Args:
        slots: the semaphore of which the caller holds one slot.
        timeout: seconds that the call may take.
    """
    held = True

    def release() -> None:
        nonlocal held
        if held:
            held = False
            slots.release()

    slow = asyncio.get_running_loop().call_later(timeout * SLOW_FRACTION, release)
    try:
        yield
    finally:
        slow.cancel()
        release()
