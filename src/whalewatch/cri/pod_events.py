"""Follow a CRI engine through its pod events.

Why nothing is missed:

* An engine changes a state before it reports the change, so a reading made after an event contains the change.
* The adapter opens the stream, then waits for the answer to another call on the same connection, and then lists. This
  does not prove that the subscription existed before the listing, so the watcher lists once more afterwards.
* CRI-O and containerd 1.7 send a backlog to their first subscriber. The engine runs on this host, so its events have
  the time of this host's clock: every reading made after the subscription contains events that are older than it. So
  the adapter drops old events at the beginning of a stream. It does not drop later ones, which look old if the clock
  was set back.
* The stream is always read at once: otherwise containerd 2 would delay its CRI, and CRI-O would drop events.
* containerd 1.7 gives each event to one stream only, and notices that a stream has ended only after it has lost an
  event to it. So there one stream is used for the whole connection, and passed from one reader to the next.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime

from google.protobuf.message import DecodeError

from whalewatch._core.engine import Listing, Signal, SignalType
from whalewatch._core.errors import EngineError, UnsupportedEngine
from whalewatch._core.model import Container
from whalewatch._core.text import printable
from whalewatch._grpc.connection import denied, unimplemented
from whalewatch._wire import cri_pb2 as wire
from whalewatch.cri.reading import is_about_sandbox, signal
from whalewatch.cri.source import Link
from whalewatch.cri.verbose import Verbose

__all__ = ["PodEvents", "refused"]

PROBE_TIMEOUT = 0.25
"""Seconds within which an engine without pod events ends their stream."""

BACKLOG_TIMEOUT = 10.0
"""Seconds within which an engine sends its backlog."""


class PodEvents:
    """Source "pod-events": the events of the CRI."""

    name = "pod-events"

    def __init__(self, link: Link, *, competing: bool = False) -> None:
        """Make a source for one connection.

        Args:
            link: the connection.
            competing: whether the engine gives each event to one stream only.
        """
        self._link = link
        self._competing = competing
        self._verbose = Verbose(link)
        self._began: int | None = None  # nanoseconds since the epoch; 0 after the end of the backlog
        self._backlog_until = 0.0
        self._shared_stream: AsyncIterator[bytes] | None = None
        self._reading: asyncio.Task[bytes | None] | None = None

    async def missing(self) -> str:
        """Return why the engine has no pod events; "" if it has some.

        Without `enable_pod_events` CRI-O ends the stream at once, without an error; other engines refuse the call.
        """
        calls = self._link.calls
        async with calls.events() as messages:
            first = asyncio.create_task(_next(messages), name="whalewatch probe")
            try:
                await calls.version("ping")
                await asyncio.wait({first}, timeout=PROBE_TIMEOUT)
                if not first.done() or first.result() is not None:
                    return ""
            except EngineError as error:
                if refused(error):
                    return str(error)
                raise
            finally:
                first.cancel()
                await asyncio.gather(first, return_exceptions=True)
        return calls.connection.message("the stream of pod events ends at once: is enable_pod_events off?")

    async def signals(self) -> AsyncGenerator[Signal, None]:
        """Follow the events."""
        since = datetime.now(UTC)
        if self._began is None:
            self._began = time.time_ns()
            self._backlog_until = time.monotonic() + BACKLOG_TIMEOUT
        async with self._messages() as messages:
            await self._link.calls.version("ping")
            yield Signal(SignalType.SUBSCRIBED, timestamp=since)
            try:
                async for message in messages:
                    received = self._read(message)
                    if received is not None:
                        yield received
            except EngineError as error:
                if not unimplemented(error):
                    raise
                raise UnsupportedEngine(
                    self._link.calls.connection.message("it has no pod events")
                ) from error.__cause__

    @asynccontextmanager
    async def _messages(self) -> AsyncIterator[AsyncIterator[bytes]]:
        if not self._competing:
            async with self._link.calls.events() as messages:
                yield messages
            return
        if self._shared_stream is None:
            self._shared_stream = await self._link.closing.enter_async_context(self._link.calls.events())
            self._link.closing.push_async_callback(self._stop_reading)
        async with aclosing(self._continue(self._shared_stream)) as messages:
            yield messages

    async def _continue(self, stream: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Continue where the previous reader is: for a moment both wait for the same message."""
        while True:
            if self._reading is None:
                self._reading = asyncio.create_task(_next(stream), name="whalewatch pod events")
            reading = self._reading
            message = await asyncio.shield(reading)  # a cancellation of the task would end the stream
            if self._reading is reading:
                self._reading = None
            if message is None:
                return
            yield message

    async def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    def _read(self, message: bytes) -> Signal | None:
        try:
            event = wire.ContainerEventResponse.FromString(message)
            # The entries of maps have no fixed order, so the same event may come as different bytes.
            if self._link.seen.seen_before((event.container_id, event.container_event_type, event.created_at)):
                return None
            if self._check_backlog(event.created_at):
                return None
            received = signal(event)
        except (DecodeError, ValueError) as error:
            why = f"an event makes no sense: {printable(error)}"
            return self._link.lost.report(self._link.calls.connection.message(why))
        if received is None:
            return None
        if received.type is not SignalType.STARTED:
            self._link.records.forget(received.id)
        elif is_about_sandbox(event):
            self._link.records.note_sandbox(received.id)
        return received

    def _check_backlog(self, created_at: int) -> bool:
        """Return whether an event is from before the first stream; the first newer event ends the backlog."""
        if self._began is not None and (not 0 < created_at < self._began or time.monotonic() > self._backlog_until):
            self._began = 0
        return bool(self._began)

    async def listing(self) -> Listing:
        """List the containers and sandboxes that run."""
        return await self._verbose.listing()

    async def inspect(self, id: str) -> Container | None:
        """Read one container or sandbox."""
        return await self._verbose.inspect(id)


def refused(error: EngineError) -> bool:
    """Return whether an error means that the engine has no pod events, or refuses them to us; others are outages."""
    return type(error) in {EngineError, UnsupportedEngine} or unimplemented(error) or denied(error)


async def _next(messages: AsyncIterator[bytes]) -> bytes | None:
    return await anext(messages, None)
