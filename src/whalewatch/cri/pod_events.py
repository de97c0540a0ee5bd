"""Follow a CRI engine through its pod events.

Why nothing is missed:

* An engine changes a state before it reports the change, so a reading made after an event contains the change.
* The adapter opens the stream, then waits for the answer to another call on the same connection, and then lists. This
  does not prove that the subscription existed before the listing, so the watcher lists once more afterwards.
* CRI-O and containerd 1.7 send a backlog to their first subscriber. The engine runs on this host, so its events have
  the time of this host's clock: every reading made after the subscription contains events that are older than it. So
  the adapter drops old events at the beginning of a stream. It does not drop later ones, which look old if the clock
  was set back.
* A stream is read at once, by a task of its own: otherwise containerd 2 would delay its CRI, and CRI-O would drop the
  events of its other readers. While the event loop is blocked, gRPC goes on reading (see `_grpc.connection`).
* The first stream of a connection also shows whether the engine has pod events at all: a stream that was opened only to
  see that would take the backlog with it.
* Some engines give each event to one stream only, or crash if a stream ends while events are on their way (see
  `danger`). So there one stream is used for the whole connection, and passed from one reader to the next.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime

from google.protobuf.message import DecodeError

from whalewatch._core.engine import Dead, Listing, Signal, SignalType
from whalewatch._core.errors import EngineError
from whalewatch._core.model import Container
from whalewatch._core.text import printable
from whalewatch._grpc.connection import denied, unimplemented
from whalewatch._grpc.items import parse
from whalewatch._wire import cri_pb2 as wire
from whalewatch.cri.reading import is_about_sandbox, signal
from whalewatch.cri.source import Link
from whalewatch.cri.verbose import Verbose

__all__ = ["CONTAINERD", "PodEvents", "danger", "refused"]

CONTAINERD, CRIO = "containerd", "cri-o"
"""The names by which engines introduce themselves."""

PROBE_TIMEOUT = 0.25
"""Seconds within which an engine without pod events ends their stream."""

BACKLOG_TIMEOUT = 10.0
"""Seconds within which an engine sends its backlog."""


MAX_UNREAD = 16_384
"""Most signals of a stream that wait for a reader; with more, all of them are replaced by LOST."""


class _Stream:
    """One stream of pod events, and the signals from it that were not taken yet.

    Attributes:
        signals: the signals; None at the end of the stream.
        received: whether it had any event.
        task: reads the stream; if an error ends the stream, it fails with it.
        closing: ends the stream.
    """

    def __init__(
        self, messages: AsyncIterator[bytes], read: Callable[[bytes], list[Signal]], closing: AsyncExitStack
    ) -> None:
        self.signals: asyncio.Queue[Signal | None] = asyncio.Queue()
        self.received = False
        self.task = asyncio.create_task(self._run(messages, read), name="whalewatch pod events")
        self.task.add_done_callback(lambda _: self.signals.put_nowait(None))
        self.closing = closing
        closing.push_async_callback(self._stop)

    async def _run(self, messages: AsyncIterator[bytes], read: Callable[[bytes], list[Signal]]) -> None:
        async for message in messages:
            self.received = True
            for found in read(message):
                self.put(found)

    def put(self, signal: Signal) -> None:
        """Add a signal."""
        if self.signals.qsize() >= MAX_UNREAD:
            while not self.signals.empty():
                self.signals.get_nowait()
            self.signals.put_nowait(Signal(SignalType.LOST))
        self.signals.put_nowait(signal)

    async def _stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


class PodEvents:
    """Source "pod-events": the events of the CRI."""

    name = "pod-events"

    def __init__(self, link: Link, *, sole: bool = False) -> None:
        """Make a source for one connection.

        Args:
            link: the connection.
            sole: whether to use one stream for the whole connection.
        """
        self._link = link
        self._sole = sole
        self._verbose = Verbose(link, self._report)
        self._began: int | None = None  # nanoseconds since the epoch; 0 after the end of the backlog
        self._backlog_until = 0.0
        self._streams: list[_Stream] = []
        self._next: _Stream | None = None  # what the next reader reads

    async def missing(self) -> str:
        """Open the first stream; return why the engine has no pod events, "" if it has some.

        Without `enable_pod_events` CRI-O ends the stream at once, without an error; other engines refuse the call.
        """
        calls, stream = self._link.calls, await self._open()
        await calls.version("ping")
        await asyncio.wait({stream.task}, timeout=PROBE_TIMEOUT)
        if not stream.task.done() or stream.received:
            return ""
        error = stream.task.exception()
        if error is None:
            return calls.connection.message("the stream of pod events ends at once: is enable_pod_events off?")
        if isinstance(error, EngineError) and refused(error):
            return str(error)
        raise error

    async def signals(self) -> AsyncGenerator[Signal, None]:
        """Follow the events."""
        since = datetime.now(UTC)
        stream = self._next or await self._open()
        if not self._sole:
            self._next = None
        try:
            await self._link.calls.version("ping")
            yield Signal(SignalType.SUBSCRIBED, timestamp=since)
            while (received := await stream.signals.get()) is not None:
                yield received
            stream.signals.put_nowait(None)  # another reader may wait for the end too
            stream.task.result()
        finally:
            if not self._sole:
                self._streams.remove(stream)
                await stream.closing.aclose()

    async def _open(self) -> _Stream:
        if self._began is None:
            self._began = time.time_ns()
            self._backlog_until = time.monotonic() + BACKLOG_TIMEOUT
            self._link.closing.push_async_callback(self._close)
        closing = AsyncExitStack()
        messages = await closing.enter_async_context(self._link.calls.events())
        stream = self._next = _Stream(messages, self._read, closing)
        self._streams.append(stream)
        return stream

    async def _close(self) -> None:
        for stream in self._streams:
            await stream.closing.aclose()

    def _report(self, signal: Signal) -> None:
        """Pass a signal of this adapter itself to all readers."""
        for stream in self._streams:
            stream.put(signal)

    def _read(self, message: bytes) -> list[Signal]:
        try:
            event = parse(wire.ContainerEventResponse, message)
            # The entries of maps have no fixed order, so the same event may come as different bytes.
            if self._link.seen.seen_before((event.container_id, event.container_event_type, event.created_at)):
                return []
            if self._check_backlog(event.created_at):
                return []
            received = signal(event, self._link.address)
        except (DecodeError, ValueError) as error:
            why = f"an event makes no sense: {printable(error)}"
            return [self._link.lost.report(self._link.calls.connection.message(why))]
        if received is None:
            return []
        if received.type is not SignalType.STARTED:
            return self._link.exited(received)
        if is_about_sandbox(event):
            self._link.records.note_sandbox(received.id)
        return [received]

    def _check_backlog(self, created_at: int) -> bool:
        """Return whether an event is from before the first stream; the first newer event ends the backlog."""
        if self._began is not None and (not 0 < created_at < self._began or time.monotonic() > self._backlog_until):
            self._began = 0
        return bool(self._began)

    async def listing(self) -> Listing:
        """List the containers and sandboxes that run."""
        return await self._verbose.listing()

    async def inspect(self, id: str) -> Container | Dead | None:
        """Read one container or sandbox."""
        return await self._verbose.inspect(id)


def danger(runtime: str, version: str) -> str:
    """Return how reading the pod events of an engine can harm others; "" if it cannot. Where it can, use one stream.

    CRI-O 1.26 and 1.27 have one queue for all readers. In 1.28 to 1.32, a stream that is cancelled while a backlog or a
    burst of events is sent can end the process ("negative WaitGroup counter"). A version that cannot be read counts as
    one of these.
    """
    numbers = re.match(r"(\d+)\.(\d+)", version)
    release = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    taking = "gives each pod event to one reader only: a watcher and a kubelet take them from each other"
    if runtime == CONTAINERD and release == (1, 7):
        return f"containerd 1.7 {taking}"
    if runtime == CRIO and release < (1, 28):
        return f"CRI-O before 1.28 {taking}"
    if runtime == CRIO and release < (1, 33):
        return "CRI-O before 1.33 can crash when a reader of its pod events leaves"
    return ""


def refused(error: EngineError) -> bool:
    """Return whether an error means that the engine has no pod events, or refuses them to us; others are outages."""
    return type(error) is EngineError or unimplemented(error) or denied(error)
