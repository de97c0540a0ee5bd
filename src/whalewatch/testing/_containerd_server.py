"""The fake containerd's sockets: a gRPC server, and in front of it what can hang, refuse and cut connections."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from whalewatch.testing._containerd_calls import KINDS, STREAMS, Answers, Call, read_call
from whalewatch.testing._containerd_events import FilterError, Subscriber
from whalewatch.testing._containerd_state import FakeContainerdError
from whalewatch.testing._containerd_wire import fields, message, texts

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import AsyncIterator, Callable, Collection

    from whalewatch.testing._containerd_events import Exchange
    from whalewatch.testing._docker_calls import CallFaults

_BACKLOG = 512  # connections the kernel holds for us, plenty for a test
_CHUNK = 256 * 1024  # bytes passed on at a time
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class Service(grpc.GenericRpcHandler):
    """Answers containerd's calls, with the faults that are in force."""

    def __init__(
        self,
        answers: Answers,
        exchange: Exchange,
        faults: CallFaults,
        requests: Counter[str],
        changed: Callable[[], None],
        *,
        list_stream: bool,
    ) -> None:
        """Answer from these parts; ``changed`` is called when a call has arrived."""
        self._answers = answers
        self._exchange = exchange
        self._faults = faults
        self._requests = requests
        self._changed = changed
        self._missing = frozenset() if list_stream else frozenset({"container_list_stream"})

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Find who answers a call; None for a call that there is not."""
        kind = KINDS.get(handler_call_details.method)
        if kind is None or kind in self._missing:
            return None
        if kind == "subscribe":
            return grpc.unary_stream_rpc_method_handler(self._subscribe)
        if kind in STREAMS:
            return grpc.unary_stream_rpc_method_handler(self._list_stream)

        async def unary(request: bytes, context: Any) -> bytes:
            return await self._unary(kind, request, context)

        return grpc.unary_unary_rpc_method_handler(unary)

    async def _begin(self, kind: str, request: bytes, context: Any) -> tuple[Call, Collection[str], bytes | None]:
        """Count a call, and do what is in its way; bytes stand for the true answer."""
        metadata = dict(context.invocation_metadata() or ())
        namespace = str(metadata.get("containerd-namespace", ""))
        call = read_call(kind, namespace, request) if kind != "subscribe" else Call("", {})
        targets = (f"{namespace}/", f"/{call.id}", f"{namespace}/{call.id}")
        self._requests[kind] += 1
        self._changed()
        told = await self._faults.before(kind, targets)
        if told is not None and told.body is None:
            await context.abort(_CODES[told.status], told.message)
        return call, targets, told.body if told is not None else None

    async def _unary(self, kind: str, request: bytes, context: Any) -> bytes:
        call, targets, body = await self._begin(kind, request, context)
        if body is not None:
            return body
        try:
            answer = await self._answers.answer(kind, call)
        except FakeContainerdError as error:
            await context.abort(grpc.StatusCode[error.code], error.message)
            raise
        await self._faults.after(kind, targets)
        return answer

    async def _list_stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        kind = "container_list_stream"
        call, targets, body = await self._begin(kind, request, context)
        if body is not None:
            yield body
            return
        if not call.namespace:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "namespace is required: failed precondition")
        listed = [message((1, container)) for container in self._answers.listed(call.namespace)]
        await self._faults.after(kind, targets)
        for container in listed:
            yield container

    async def _subscribe(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        _, targets, body = await self._begin("subscribe", request, context)
        if body is not None:
            yield body
        try:
            subscriber = Subscriber(texts(fields(request), 1))
        except FilterError as error:
            await context.abort(grpc.StatusCode.UNKNOWN, f"subscription error: {error}: invalid argument")
            raise
        self._exchange.subscribe(subscriber)
        try:
            await self._faults.after("subscribe", targets)
            while (envelope := await subscriber.next()) is not None:
                self._changed()
                yield envelope
        finally:
            self._exchange.unsubscribe(subscriber)
        code, details = subscriber.ended or ("OK", "")
        if code != "OK":
            await context.abort(grpc.StatusCode[code], details)


class Front:
    """Listens at the engine's socket, and passes on all bytes between the clients and the gRPC server behind it.

    gRPC's own server cannot be made to hang, nor to vanish as if it had been killed; bytes can.
    """

    def __init__(self, behind: Path) -> None:
        """Prepare to pass on to the socket ``behind``."""
        self._behind = behind
        self._path = Path()
        self._bound = False
        self._listening: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._thawed = asyncio.Event()
        self._thawed.set()

    async def listen(self, path: Path | None = None) -> None:
        """Accept connections; without a path at the one of the time before."""
        self._path = path or self._path
        if self._listening is not None:
            return
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(self._path))
        except OSError:
            listener.close()
            raise
        self._bound = True
        # With a bound socket asyncio leaves the file alone, so that a dead engine's stays behind as it does in life.
        self._listening = await asyncio.start_server(self._accept, sock=listener, backlog=_BACKLOG, limit=_CHUNK)

    def freeze(self) -> None:
        """Accept connections, and pass nothing on."""
        self._thawed.clear()

    def thaw(self) -> None:
        """Pass on what has been waiting."""
        self._thawed.set()

    def refuse(self) -> None:
        """Close the listening socket and cut all connections; the socket's file stays."""
        listening, self._listening = self._listening, None
        if listening is not None:
            listening.close()
        self.cut()

    def cut(self) -> None:
        """Cut all connections."""
        for connection in self._connections:
            connection.cancel()

    async def close(self) -> None:
        """End everything; a second time does nothing."""
        self.refuse()
        if self._connections:
            await asyncio.wait(self._connections)
        if self._bound:
            self._path.unlink(missing_ok=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._connect(reader, writer), name="fake containerd connection")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            behind_reader, behind_writer = await asyncio.open_unix_connection(self._behind, limit=_CHUNK)
            writers.append(behind_writer)
            # When one direction ends, so does the other.
            pumps = [
                asyncio.create_task(self._pump(reader, behind_writer)),
                asyncio.create_task(self._pump(behind_reader, writer)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.wait(pumps)
        except (OSError, asyncio.CancelledError):
            pass  # cut, or the server behind has been closed: nobody waits for this task's end but `close`
        finally:
            for each in writers:
                each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                await self._thawed.wait()
                writer.write(data)
                await writer.drain()


class Server:
    """The gRPC server, and its front."""

    def __init__(self, service: Service) -> None:
        """Prepare to serve."""
        self.front = Front(Path())
        self._service = service
        self._grpc: Any = None

    async def start(self, path: Path, behind: Path) -> None:
        """Serve at a socket, by way of another one."""
        self.front = Front(behind)
        options = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.so_reuseport", 0),
        ]
        self._grpc = grpc.aio.server(handlers=(self._service,), options=options)
        self._grpc.add_insecure_port(f"unix://{behind}")
        await self._grpc.start()
        await self.front.listen(path)

    async def close(self) -> None:
        """End everything; a second time does nothing."""
        await self.front.close()
        server, self._grpc = self._grpc, None
        if server is not None:
            await server.stop(None)
