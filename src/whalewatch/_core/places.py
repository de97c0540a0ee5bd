"""Places for calls that are made at a time: what hangs must not hold up the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["SLOW", "given_back"]

SLOW = 8
"""The part of the time allowed (one eighth) after which a call that is not answered no longer has a place."""


@contextmanager
def given_back(places: asyncio.Semaphore, allowed: float) -> Iterator[None]:
    """Give a place, which is held, back at the end of a call, or before, once the call is slow.

    Those that began within one eighth of the time allowed all had a place at its end: never are more than `SLOW`
    times as many under way as there are places, though nothing is answered at all.

    Args:
        places: of which one is held.
        allowed: seconds that the call may take.
    """
    held = True

    def give_back() -> None:
        nonlocal held
        if held:
            held = False
            places.release()

    slow = asyncio.get_running_loop().call_later(allowed / SLOW, give_back)
    try:
        yield
    finally:
        slow.cancel()
        give_back()
