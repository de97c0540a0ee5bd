"""A proxy in front of an engine's socket, to break what lies between an engine and its watcher."""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

_CHUNK = 65_536
_ACCEPTING = 5  # turns of the loop, within which asyncio's server makes a connection of what it has accepted
_EVENTS = re.compile(rb"GET \S*/events\?")
_CODINGS = re.compile(rb"\r\naccept-encoding:([^\r]*)", re.IGNORECASE)

Event = dict[str, Any]


def passed_on(event: Event) -> list[Event]:
    return [event]


class Proxy:
    """Passes bytes between an engine's socket, or its port of 127.0.0.1, and a socket or with `tcp` a port of its own.

    An async context manager; belongs to the event loop in which it was entered.

    Attributes:
        rewrite: what becomes of each event of a Docker engine: the events to pass on in its place, in order. None of
            them swallows it; an event may also be kept and returned with a later one.
        newline: what is put behind each event of a Docker engine.
        compressing: whether new event streams of a Docker engine are compressed if the client allows that. The
            compressor keeps what it gets until it has much.
        refused: what the first lines of requests begin with that a Docker engine seems to refuse with 403; none of them
            opens an event stream.
        streams: event streams that were opened so far.
        connections: connections that were accepted so far.
    """

    def __init__(self, upstream: Path | int, *, tcp: bool = False) -> None:
        self._upstream = upstream
        self._folder = tempfile.TemporaryDirectory(prefix="ww-proxy-")
        self._path = Path(self._folder.name, "engine.sock")
        self._tcp = tcp
        self._port = 0
        self._server: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._serving: set[asyncio.Task[None]] = set()
        self._open: dict[asyncio.StreamWriter, _Events] = {}
        self.rewrite: Callable[[Event], Iterable[Event]] = passed_on
        self.newline = b"\n"
        self.compressing = False
        self.refused: re.Pattern[bytes] | None = None
        self.streams = self.connections = 0

    async def __aenter__(self) -> Self:
        await self.up()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.down()
        self._folder.cleanup()

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self._port}" if self._tcp else f"unix://{self._path}"

    async def up(self) -> None:
        """Listen, at the same address as before; a socket file is replaced by a new one."""
        if self._server is not None:
            return
        if self._tcp:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
            self._port = self._server.sockets[0].getsockname()[1]
        else:
            self._path.unlink(missing_ok=True)
            self._server = await asyncio.start_unix_server(self._accept, self._path)

    async def down(self, *, missing: bool = True) -> None:
        """Cut all connections, and refuse new ones; the socket file may stay though nobody listens there."""
        server, self._server = self._server, None
        if server is not None:
            for listener in server.sockets:
                asyncio.get_running_loop().remove_reader(listener.fileno())
            for _ in range(_ACCEPTING):  # closed while it makes a connection of what it has accepted, it loses that
                await asyncio.sleep(0)
            server.close()
        await self.cut()
        if missing:
            self._path.unlink(missing_ok=True)

    async def cut(self) -> None:
        for task in self._serving:
            task.cancel()
        if self._serving:
            await asyncio.wait([*self._serving])

    def end_streams(self) -> None:
        """End all event streams of a Docker engine in good order, and leave other connections alone."""
        self._write(b"0\r\n\r\n")
        for events in self._open.values():
            events.ended = events.streaming

    @asynccontextmanager
    async def idle_cuts(self, seconds: float) -> AsyncIterator[None]:
        """Cut each event stream of a Docker engine that was idle for so long, as load balancers do, within a block."""
        task = asyncio.create_task(self._cut_idle(seconds))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _cut_idle(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds / 20)
            now = time.monotonic()
            for writer, events in self._open.items():
                if events.streaming and now - events.latest > seconds:
                    writer.transport.abort()

    def stall(self) -> None:
        """Pass nothing on any more, in either direction; connections stay open, and new ones are accepted."""
        self._flowing.clear()

    def flow(self) -> None:
        """Pass on again, what was held back too."""
        self._flowing.set()

    def inject(self, line: bytes) -> None:
        """Put bytes into all event streams of a Docker engine, as one chunk."""
        self._write(_chunk(line))

    def _write(self, data: bytes) -> None:
        for writer, events in self._open.items():
            if events.streaming:
                writer.write(data)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self.connections += 1
        engine: asyncio.StreamWriter | None = None
        try:
            # A cancelled task that serves a connection would be told of as an error, so this one never ends cancelled.
            with suppress(OSError, asyncio.CancelledError):
                try:
                    answers, engine = await self._dial()
                    events = self._open[writer] = _Events(self)
                    async with asyncio.TaskGroup() as pumps:
                        asked = pumps.create_task(self._pump(reader, engine, events.asked))
                        answered = pumps.create_task(self._pump(answers, writer, events.answered))
                        await asyncio.wait({asked, answered}, return_when=asyncio.FIRST_COMPLETED)
                        asked.cancel()
                        answered.cancel()
                except* OSError:
                    pass
        finally:
            self._open.pop(writer, None)
            for end in (writer, engine):
                if end is not None:
                    end.transport.abort()
            self._serving.discard(task)

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._upstream, int):
            return await asyncio.open_connection("127.0.0.1", self._upstream)
        return await asyncio.open_unix_connection(self._upstream)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, through: Callable[[bytes], bytes]
    ) -> None:
        while data := await reader.read(_CHUNK):
            await self._flowing.wait()
            writer.write(through(data))
            await writer.drain()


class _Events:
    """Finds the event stream in a connection, and rewrites it."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._expected = self._compressible = self._refused = False
        self._compressor: Any = None
        self._rest = b""
        self.latest = 0.0  # when bytes of the stream came, by the monotonic clock
        self.streaming = False
        self.ended = False

    def asked(self, data: bytes) -> bytes:
        if self.ended:
            raise ConnectionResetError  # the engine still sends the stream that was ended here
        if _EVENTS.match(data):  # no request is sent before the former was answered
            self._expected = True
            allowed = _CODINGS.search(data)
            self._compressible = allowed is None or b"gzip" in allowed[1] or b"*" in allowed[1]
            self._proxy.streams += 1
        self._refused = self._proxy.refused is not None and self._proxy.refused.match(data) is not None
        return data

    def answered(self, data: bytes) -> bytes:
        if self.ended:
            return b""
        if self._refused:
            self._refused = False
            return data.replace(b" 200 OK", b" 403 Forbidden", 1)
        if not self._expected:
            return data
        self.latest = time.monotonic()
        self._rest += data
        told = b""
        if not self.streaming:
            head, found, self._rest = self._rest.partition(b"\r\n\r\n")
            if not found:
                self._rest = head
                return b""
            self.streaming = b"chunked" in head.lower()
            if self.streaming and self._compressible and self._proxy.compressing:
                self._compressor = zlib.compressobj(wbits=31)
                head += b"\r\nContent-Encoding: gzip"
            told = head + found
        if not self.streaming:
            rest, self._rest = self._rest, b""
            return told + rest
        while (at := self._rest.find(b"\r\n") + 2) >= 2:
            after = at + int(self._rest[: at - 2], 16) + 2
            if len(self._rest) < after:
                break
            chunk, self._rest = self._rest[at : after - 2], self._rest[after:]
            told += self._rewritten(chunk) if chunk else b"0\r\n\r\n"
        return told

    def _rewritten(self, chunk: bytes) -> bytes:
        events = (json.loads(line) for line in chunk.splitlines() if line.strip())
        told = [json.dumps(new).encode() for event in events for new in self._proxy.rewrite(event)]
        told = [event + self._proxy.newline for event in told]
        if self._compressor is not None:
            told = [self._compressor.compress(event) for event in told]
        return b"".join(_chunk(event) for event in told if event)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)
