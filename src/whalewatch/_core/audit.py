"""Audits: which containers they must look at, and when the next is due."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import islice
from random import Random

from whalewatch._core.engine import Listing
from whalewatch._core.feed import Feed

__all__ = ["GRACE", "Audit", "AuditTimer"]

GRACE = 0.5
"""Seconds that an audit leaves to the stream to report a difference by itself (Podman reports up to 0.2 s late)."""

FIRST_PAUSE, LAST_PAUSE = 1.0, 30.0
"""Seconds at least between audits that bad input asks for: doubling from the first to the last while it goes on."""

REREAD = 20
"""Containers that an audit reads anew at least, if there are so many; else a tenth of them."""


class Audit:
    """What audits go by; the tracker keeps it up to date.

    Args:
        feed: whose picture is audited.

    Attributes:
        touched: containers of which something was reported or read since the stream was opened, or the last audit
            began. What a listing says of them may be older than that.
        suspects: containers that are to be inspected for an audit.
    """

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self.touched: set[str] = set()
        self.suspects: set[str] = set()
        self._recording = True
        self._unverified: dict[str, None] = {}  # every container alive, the longest unread first

    def begin(self) -> None:
        """Record from now on what is touched: a listing follows."""
        self.touched.clear()
        self._recording = True

    def end(self) -> None:
        """Record nothing until the next listing."""
        self.touched.clear()
        self._recording = False

    def reset(self, alive: Iterable[str]) -> None:
        """Begin anew with these containers, of which none was read."""
        self.begin()
        self.suspects.clear()
        self._unverified = dict.fromkeys(alive)

    def touch(self, id: str) -> None:
        """Take note that something was reported or read of a container."""
        if self._recording:
            self.touched.add(id)

    def add(self, id: str) -> None:
        """Take note of a container that is alive."""
        self._unverified.setdefault(id)

    def remove(self, id: str) -> None:
        """Forget a container."""
        self._unverified.pop(id, None)
        self.suspects.discard(id)

    def inspected(self, id: str) -> bool:
        """Take note that a container was read; return whether that was for an audit."""
        self.touch(id)
        suspect = id in self.suspects
        self.remove(id)
        return suspect

    def differing(self, listing: Listing) -> set[str]:
        """Return the containers about which a listing and the picture differ.

        Those of which the stream has reported something since the listing began are left to it.
        """
        picture = self._feed.snapshot
        differing = {
            id
            for id, listed in listing.containers.items()
            if (known := picture._get(id)) is None or listed.contradicts(known)
        }
        differing |= {
            known.id
            for known in picture
            if known.id not in listing.containers and listing.scope(known.id) not in listing.failed
        }
        return differing - self.touched

    def longest_unread(self, among: set[str]) -> list[str]:
        """Return a tenth of these containers, `REREAD` at least: those that were not read for the longest time."""
        return list(islice((id for id in self._unverified if id in among), max(REREAD, len(among) // 10)))


class AuditTimer:
    """When the next audit is due: at regular times, and after bad input soon, but less and less often."""

    def __init__(self, interval: float | None, random: Random) -> None:
        """Make a timer.

        Args:
            interval: seconds between regular audits, jittered by a tenth; None for none.
            random: for jitter.
        """
        self._interval = interval
        self._random = random
        self._requested = asyncio.Event()
        self._noisy = False  # whether input was lost since the last audit was waited for
        self._pause = FIRST_PAUSE
        self._due_at: float | None = None

    def request(self) -> None:
        """Have an audit made soon."""
        self._requested.set()

    def request_for_loss(self) -> None:
        """Have an audit made soon, because input was lost."""
        self._noisy = True
        self._requested.set()

    def satisfy(self) -> None:
        """Take note that an audit begins: it is the one that was requested so far."""
        self._requested.clear()

    async def wait(self) -> bool:
        """Wait until an audit is due or requested; return whether it shall read some containers anew.

        Of the audits for lost input only the first has containers read anew; after a while of silence the next is a
        first one again.
        """
        loop = asyncio.get_running_loop()
        begun, due = loop.time(), False
        if self._due_at is None and self._interval is not None:
            self._due_at = begun + self._interval * self._random.uniform(0.9, 1.1)
        try:
            async with asyncio.timeout_at(self._due_at):
                await asyncio.sleep(self._pause)
                await self._requested.wait()
        except TimeoutError:
            self._due_at, due = None, True
        silent = not self._noisy or loop.time() - begun > 2 * self._pause
        first = silent or self._pause == FIRST_PAUSE
        self._pause = FIRST_PAUSE if silent else min(LAST_PAUSE, 2 * self._pause)
        self._noisy = False
        return due or first
