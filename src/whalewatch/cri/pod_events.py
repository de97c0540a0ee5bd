"""Follow a CRI engine by its pod events.

The order of things:

* An engine changes a state before it tells of it, so what is read after an event contains it.
* The stream is opened, then a call on the same connection is answered, then the listing begins. That is no proof that
  the subscription existed before the listing, so the watcher lists once more afterwards.
* CRI-O and containerd 1.7 hand a backlog to their first subscriber. Events are dated by the clock of this host, which
  the engine's socket belongs to: what is older than our asking for the stream is contained in whatever is read from
  then on. Old events at the beginning of a stream are left out for that; later ones, which there are if the clock was
  set back, are not.
* The stream is always drained: containerd 2 would hold its CRI up, CRI-O drops what is too much.
* containerd 1.7 gives each event to one stream only, and notices that a stream has gone when it has lost an event to
  it. There one stream serves for the whole connection, and is handed on from one reader to the next.
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
from whalewatch._grpc.connection import denied
from whalewatch._wire import cri_pb2 as wire
from whalewatch.cri.reading import signal, tells_sandbox
from whalewatch.cri.source import Link
from whalewatch.cri.verbose import Verbose

__all__ = ["PodEvents", "refused"]

PROBE = 0.25
"""Seconds within which an engine that tells no pod events ends their stream."""

BACKLOG = 10.0
"""Seconds within which an engine hands out its backlog."""


class PodEvents:
    """The CRI's own events."""

    name = "pod-events"

    def __init__(self, link: Link, *, competing: bool = False) -> None:
        """Take note of the connection.

        Args:
            link: the connection.
            competing: whether the engine gives each event to one stream only.
        """
        self._link = link
        self._competing = competing
        self._verbose = Verbose(link)
        self._began: int | None = None  # nanoseconds since the epoch; 0 once the backlog is over
        self._backlog_until = 0.0
        self._only: AsyncIterator[bytes] | None = None
        self._reading: asyncio.Task[bytes | None] | None = None

    async def missing(self) -> str:
        """Tell why the engine has no pod events, "" if it has.

        Without `enable_pod_events` CRI-O ends the stream at once, as if all had been told; others refuse the call.
        """
        calls = self._link.calls
        async with calls.events() as messages:
            first = asyncio.create_task(_next(messages), name="whalewatch probe")
            try:
                await calls.version("ping")
                await asyncio.wait({first}, timeout=PROBE)
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
            self._backlog_until = time.monotonic() + BACKLOG
        async with self._messages() as messages:
            await self._link.calls.version("ping")
            yield Signal(SignalType.SUBSCRIBED, timestamp=since)
            try:
                async for message in messages:
                    told = self._read(message)
                    if told is not None:
                        yield told
            except UnsupportedEngine as error:
                raise UnsupportedEngine(
                    self._link.calls.connection.message("it has no pod events")
                ) from error.__cause__

    @asynccontextmanager
    async def _messages(self) -> AsyncIterator[AsyncIterator[bytes]]:
        if not self._competing:
            async with self._link.calls.events() as messages:
                yield messages
            return
        if self._only is None:
            self._only = await self._link.closing.enter_async_context(self._link.calls.events())
            self._link.closing.push_async_callback(self._stop_reading)
        async with aclosing(self._handed_on(self._only)) as messages:
            yield messages

    async def _handed_on(self, stream: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Read on where the former reader is: for a moment both wait for the same message."""
        while True:
            if self._reading is None:
                self._reading = asyncio.create_task(_next(stream), name="whalewatch pod events")
            reading = self._reading
            message = await asyncio.shield(reading)  # to cancel it would end the stream
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
            # Maps come in any order, so that one event may come as different bytes.
            if self._link.seen.seen_before((event.container_id, event.container_event_type, event.created_at)):
                return None
            if self._of_backlog(event.created_at):
                return None
            told = signal(event)
        except (DecodeError, ValueError) as error:
            why = f"an event makes no sense: {printable(error)}"
            return self._link.lost.report(self._link.calls.connection.message(why))
        if told is None:
            return None
        if told.type is not SignalType.STARTED:
            self._link.records.forget(told.id)
        elif tells_sandbox(event):
            self._link.records.note_sandbox(told.id)
        return told

    def _of_backlog(self, told_at: int) -> bool:
        """Whether an event comes from before the first stream."""
        if self._began is not None and (not 0 < told_at < self._began or time.monotonic() > self._backlog_until):
            self._began = 0
        return bool(self._began)

    async def listing(self) -> Listing:
        """List what runs."""
        return await self._verbose.listing()

    async def inspect(self, id: str) -> Container | None:
        """Read one container or sandbox."""
        return await self._verbose.inspect(id)


def refused(error: EngineError) -> bool:
    """Whether an error is an engine's answer that it tells no pod events, or none to us; any other is an outage."""
    return type(error) in {EngineError, UnsupportedEngine} or denied(error)


async def _next(messages: AsyncIterator[bytes]) -> bytes | None:
    return await anext(messages, None)
