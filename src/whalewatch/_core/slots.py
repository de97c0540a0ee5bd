"""Slots for calls that are made at the same time: a call that hangs must not hold up the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["SLOW", "release_when_slow"]

SLOW = 8
"""The part of the time allowed (one eighth) after which a call that is not answered no longer has a slot."""


@contextmanager
def release_when_slow(slots: asyncio.Semaphore, allowed: float) -> Iterator[None]:
    """Release a slot, which is held, at the end of a call, or before, once the call is slow.

    Those that began within one eighth of the time allowed all had a slot at its end: never are more than `SLOW` times
    as many under way as there are slots, though nothing is answered at all.

    Args:
        slots: of which one is held.
        allowed: seconds that the call may take.
    """
    held = True

    def release() -> None:
        nonlocal held
        if held:
            held = False
            slots.release()

    slow = asyncio.get_running_loop().call_later(allowed / SLOW, release)
    try:
        yield
    finally:
        slow.cancel()
        release()
