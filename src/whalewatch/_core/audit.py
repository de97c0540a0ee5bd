"""Audits: which containers they must check, and when the next one is due."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator
from itertools import islice
from random import Random

from whalewatch._core.engine import Listing
from whalewatch._core.feed import Feed
from whalewatch._core.turns import Turn

__all__ = ["REPORT_DELAY", "Audit", "AuditTimer", "log_level"]

REPORT_DELAY = 0.5
"""Seconds that an audit waits for the stream to report a difference by itself (Podman reports up to 0.2 s late)."""

FIRST_DELAY, LAST_DELAY = 1.0, 30.0
"""Least seconds between requested audits: doubling from the first to the last while input keeps being lost."""

MIN_REREAD = 20
"""An audit inspects a tenth of the containers again, but at least this many, or all if there are fewer."""


def log_level(count: int) -> int:
    """Return the level to log something that keeps happening: WARNING the 1st, 2nd, 4th, 8th, ... time, else DEBUG."""
    return logging.DEBUG if count & (count - 1) else logging.WARNING


class Audit:
    """The containers that an audit must check; the tracker keeps it up to date.

    Args:
        feed: has the picture that is audited.

    Attributes:
        touched: containers that were reported or read since the stream was opened or the last audit began. A listing
            may be older than these reports and readings, so it is not compared with them.
        suspects: containers that are to be inspected for an audit.
    """

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self.touched: set[str] = set()
        self.suspects: set[str] = set()
        self._differing: set[str] = set()
        self._recording = True
        self._unverified: dict[str, None] = {}  # all containers that are alive; the one read longest ago comes first

    def begin(self) -> None:
        """Start to record touched containers, just before a listing begins."""
        self.touched.clear()
        self._recording = True

    def end(self) -> None:
        """Stop recording touched containers until the next listing."""
        self.touched.clear()
        self._recording = False

    def reset(self, alive: Iterable[str]) -> None:
        """Start again with these containers; none of them was read yet."""
        self.begin()
        self.suspects.clear()
        self._unverified = dict.fromkeys(alive)

    def touch(self, id: str) -> None:
        """Record that a container was reported or read."""
        if self._recording:
            self.touched.add(id)

    def add(self, id: str) -> None:
        """Add a container that is alive."""
        self._unverified.setdefault(id)

    def remove(self, id: str) -> None:
        """Forget a container."""
        self._unverified.pop(id, None)
        self.suspects.discard(id)

    def finish_inspect(self, id: str) -> bool:
        """Record that a container was read; return whether it was read for an audit."""
        self.touch(id)
        suspect = id in self.suspects
        self.remove(id)
        return suspect

    def compare(self, listing: Listing) -> Iterator[None]:
        """Find out about which containers a listing and the picture differ, for `differing`; yield between turns."""
        picture, known, turn = self._feed.snapshot, listing.containers, Turn()
        self._differing = {id for id in picture._by_id if id not in known and listing.scope(id) not in listing.failed}
        for id, listed in known.items():
            container = picture._get(id)
            if container is None or listed.contradicts(container):
                self._differing.add(id)
            if turn.is_over:
                yield
                turn = Turn()

    @property
    def differing(self) -> set[str]:
        """The containers about which the last listing and the picture differ.

        Touched containers are left out: the stream has reported them since the listing began, and is newer.
        """
        return self._differing - self.touched

    def longest_unread(self, among: set[str]) -> list[str]:
        """Return a tenth of these containers, at least `MIN_REREAD`: those that were read longest ago."""
        return list(islice((id for id in self._unverified if id in among), max(MIN_REREAD, len(among) // 10)))


class AuditTimer:
    """When the next audit is due: at regular intervals, and soon after input was lost, but then less and less often."""

    def __init__(self, interval: float | None, random: Random) -> None:
        """Make a timer.

        Args:
            interval: seconds between regular audits, with a jitter of a tenth; None for no regular audits.
            random: for jitter.
        """
        self._interval = interval
        self._random = random
        self._requested = asyncio.Event()
        self._thorough = False  # whether some requests since the last call of `wait` ask for more than a listing
        self._input_lost = False  # since the last call of `wait`
        self._delay = FIRST_DELAY
        self._due_at: float | None = None

    def request_listing(self) -> None:
        """Ask for an audit soon that only lists, because a stream was reopened."""
        self._requested.set()

    def request(self) -> None:
        """Ask for an audit soon."""
        self._thorough = True
        self._requested.set()

    def request_for_loss(self) -> None:
        """Ask for an audit soon, because input was lost."""
        self._input_lost = True
        self.request()

    def clear_requests(self) -> None:
        """Forget all requests so far: the audit that begins now fulfils them."""
        self._requested.clear()

    async def wait(self) -> bool:
        """Wait until an audit is due or requested; return whether it should do more than list.

        That is to renew the stream, and to inspect some containers again. While input keeps being lost, only the first
        requested audit does so. After a time without losses, the next audit counts as the first one again.
        """
        loop = asyncio.get_running_loop()
        started, due = loop.time(), False
        if self._due_at is None and self._interval is not None:
            self._due_at = started + self._interval * self._random.uniform(0.9, 1.1)
        try:
            async with asyncio.timeout_at(self._due_at):
                await asyncio.sleep(self._delay)
                await self._requested.wait()
        except TimeoutError:
            self._due_at, due = None, True
        calm = not self._input_lost or loop.time() - started > 2 * self._delay
        first = self._thorough and (calm or self._delay == FIRST_DELAY)
        self._delay = FIRST_DELAY if calm else min(LAST_DELAY, 2 * self._delay)
        self._thorough = self._input_lost = False
        return due or first
