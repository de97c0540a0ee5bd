"""Follow a CRI engine without events: list again and again, and report the differences.

Why this is correct:

* The differences begin with the first listing that is made after the stream was opened. What happens later is a
  difference of a later listing.
* Listings of the engine never overlap, and each is compared with the one before, whether it was made for a poll or for
  the watcher. So an audit finds nothing that is not reported here at the same time.
* A container that has stopped never runs again: the CRI gives its successor another id. So an exit is certain, although
  its signal has neither time nor PID.
* A container that starts and exits between two listings is never seen.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Iterator

from whalewatch._core.engine import Dead, Listing, Signal, SignalType
from whalewatch._core.errors import EngineTimeout
from whalewatch._core.model import Container
from whalewatch.cri.source import Link
from whalewatch.cri.verbose import Verbose

__all__ = ["Polling"]

POLL_TIMEOUT = 15.0
"""Seconds that the listing of a poll may take."""


class Polling:
    """Source "poll": each listing is compared with the one before."""

    name = "poll"

    def __init__(self, link: Link, interval: float) -> None:
        self._link = link
        self._verbose = Verbose(link, self._report)
        self._interval = interval
        self._listed = asyncio.Event()  # or there is something else to report
        self._unread: dict[str, Signal] = {}
        self._begun = self._refreshed = False

    async def signals(self) -> AsyncGenerator[Signal, None]:
        """Report differences as they are found.

        A stream that replaces another one continues where that one is: it may report a difference twice, but misses
        none.
        """
        yield Signal(SignalType.SUBSCRIBED)
        while True:
            try:
                async with asyncio.timeout(self._interval * random.uniform(0.9, 1.1)):  # noqa: S311 - no secret
                    await self._listed.wait()
            except TimeoutError:
                await self._poll()
            self._listed.clear()
            if self._refreshed:
                self._refreshed = False
                for signal in self._differences():
                    yield signal
            for signal in [*self._unread.values()]:
                yield signal
                self._unread.pop(signal.id, None)

    def _report(self, signal: Signal) -> None:
        self._unread[signal.id] = signal
        self._listed.set()

    async def _poll(self) -> None:
        try:
            async with asyncio.timeout(POLL_TIMEOUT):
                await self._link.records.refresh()
            self._refreshed = True
        except TimeoutError:
            raise EngineTimeout(self._link.calls.connection.message(f"no listing within {POLL_TIMEOUT:g} s")) from None

    def _differences(self) -> Iterator[Signal]:
        """Yield the changes since the last call; a change counts as reported when the next one is requested."""
        if not self._begun:
            return self._begin()
        entries = [(id, entry, entry.running) for id, entry in self._link.records.entries()]
        for id, entry, running in entries:
            if entry.reported is not None and running is None:
                yield Signal(SignalType.EXITED, id)
                self._link.records.note_reported(id, None)
        for id, entry, running in entries:
            if running is not None and entry.reported == running:
                entry.reported = running  # nobody keeps the former record
            elif running is not None:
                yield Signal(SignalType.STARTED if entry.reported is None else SignalType.CHANGED, id)
                self._link.records.note_reported(id, running)

    def _begin(self) -> None:
        self._begun = True
        for _, entry in self._link.records.entries():
            entry.reported = entry.running

    async def listing(self) -> Listing:
        """List the containers and sandboxes that run."""
        listing = await self._verbose.listing()
        if not self._begun:
            self._begin()
        self._refreshed = True
        self._listed.set()
        return listing

    async def inspect(self, id: str) -> Container | Dead | None:
        """Read one container or sandbox."""
        return await self._verbose.inspect(id)
