"""Follow a CRI engine that tells no events: list again and again, and tell the differences.

The order of things:

* The first listing that is made after the stream was opened is what the differences begin with. What happens after it
  is a difference of a later one.
* Looks at the engine never overlap, and each is compared with the one before, whether it was made for a poll or for a
  listing. So an audit finds nothing that is not told here at the same time.
* A container that no longer runs never runs again: the CRI gives a successor another id. So an exit is certain, though
  it bears neither time nor PID.
* What lives and dies between two looks is never seen.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Iterator

from whalewatch._core.engine import Listing, Signal, SignalType
from whalewatch._core.errors import EngineTimeout
from whalewatch._core.model import Container
from whalewatch.cri.source import Link
from whalewatch.cri.verbose import Verbose

__all__ = ["Polling"]

LOOK_TIMEOUT = 15.0
"""Seconds that a look may take."""


class Polling:
    """Listings, compared with the former ones."""

    name = "poll"

    def __init__(self, link: Link, interval: float) -> None:
        self._link = link
        self._verbose = Verbose(link)
        self._interval = interval
        self._looked = asyncio.Event()
        self._begun = False

    async def signals(self) -> AsyncGenerator[Signal, None]:
        """Tell differences as they are found.

        A stream that takes over goes on where the former is: no difference is left out, some may be told twice.
        """
        yield Signal(SignalType.SUBSCRIBED)
        while True:
            try:
                async with asyncio.timeout(self._interval * random.uniform(0.9, 1.1)):  # noqa: S311 - no secret
                    await self._looked.wait()
            except TimeoutError:
                await self._look()
            self._looked.clear()
            for signal in self._differences():
                yield signal

    async def _look(self) -> None:
        try:
            async with asyncio.timeout(LOOK_TIMEOUT):
                await self._link.records.look()
        except TimeoutError:
            raise EngineTimeout(self._link.calls.connection.message(f"no listing within {LOOK_TIMEOUT:g} s")) from None

    def _differences(self) -> Iterator[Signal]:
        """What has changed since the last look; each difference is taken for reported once the next is asked for."""
        if not self._begun:
            return self._begin()
        entries = [(id, entry, entry.running) for id, entry in self._link.records.entries()]
        for id, entry, running in entries:
            if entry.reported is not None and running is None:
                yield Signal(SignalType.EXITED, id)
                entry.reported = None
        for id, entry, running in entries:
            if running is not None and entry.reported != running:
                yield Signal(SignalType.STARTED if entry.reported is None else SignalType.CHANGED, id)
                entry.reported = running

    def _begin(self) -> None:
        self._begun = True
        for _, entry in self._link.records.entries():
            entry.reported = entry.running

    async def listing(self) -> Listing:
        """List what runs."""
        listing = await self._verbose.listing()
        if not self._begun:
            self._begin()
        self._looked.set()
        return listing

    async def inspect(self, id: str) -> Container | None:
        """Read one container or sandbox."""
        return await self._verbose.inspect(id)
