"""HTTP to one engine: the size of every answer is bounded, and every exception of other libraries is translated."""

from __future__ import annotations

import asyncio
import errno
import json
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any
from weakref import WeakKeyDictionary

import aiodocker
import aiohttp
from yarl import URL

from whalewatch._adapter.unix import listener, unreachable
from whalewatch._core.errors import EngineError, EngineTimeout, EngineUnavailable, ProtocolViolation, UnsupportedEngine
from whalewatch._core.text import printable
from whalewatch.moby.address import Endpoint

__all__ = ["Connection"]

MAX_BODY = 64 * 1024 * 1024
"""Most bytes that are read of one answer. A listing of 10,000 containers has some 15 MB."""

MAX_LINE = 4 * 1024 * 1024
"""Most bytes of one event. An event contains all labels of a container."""

NO_TIMEOUT = aiohttp.ClientTimeout(total=None)  # the watcher puts its own time-out on every call


class Connection:
    """A client to one engine. aiodocker provides the transport; this class makes its own requests on the same session.

    aiodocker reads answers of any size, raises a plain Python exception if a text is not UTF-8, and its event reader
    loses errors. So this class reads answers itself.

    Must be made in a running event loop.

    Args:
        endpoint: where to connect.
        engine: kind of engine, for messages.
        remedy: what to do if the permission to connect is missing, for messages.
        calls: counts the requests, by kind.

    Attributes:
        client: the client of aiodocker, for calls that the application makes itself.
        listed_bytes: number of bytes of listings that have arrived.
    """

    def __init__(self, endpoint: Endpoint, *, engine: str, remedy: str, calls: Counter[str]) -> None:
        self._endpoint = endpoint
        self._engine = engine
        self._remedy = remedy
        self._calls = calls
        self._prefix = ""
        self.listed_bytes: int = 0
        try:
            connector = _connector(endpoint)
        except aiodocker.DockerError as error:
            raise EngineUnavailable(self.message(printable(error.message))) from error
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=NO_TIMEOUT, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
        )
        self.client: aiodocker.Docker = aiodocker.Docker(url=endpoint.url, connector=connector, session=self._session)

    def use_version(self, version: str) -> None:
        """Use this version of the Engine API from now on, such as "1.45"."""
        self.client.api_version = f"v{version}"
        self._prefix = f"/v{version}"

    def message(self, text: str) -> str:
        """Name the engine and its address in front of a message."""
        return f"{self._engine} engine at {self._endpoint.address}: {text}"

    async def get(self, kind: str, path: str) -> tuple[Any, str]:
        """Get a JSON document, and the API version that the engine reports; "" if it reports none.

        Raises:
            EngineError: the request failed; see `_translated` and `_refused`.
        """
        async with self._request(kind, path) as response:
            body = await self._read(kind, response)
            if response.status != HTTPStatus.OK:
                raise self._refused(kind, response.status, body)
            try:
                document = json.loads(body.decode("utf-8", "replace"))
            except (ValueError, RecursionError) as error:
                shown = printable(body[:80])
                raise ProtocolViolation(self.message(f"the answer to {kind} is not JSON: {shown}")) from error
            return document, response.headers.get("Api-Version", "")

    async def find(self, kind: str, path: str) -> Any:
        """Get a JSON document, or None if the engine answers "not found"."""
        try:
            document, _ = await self.get(kind, path)
        except _Missing:
            return None
        if document is None:
            raise ProtocolViolation(self.message(f"the answer to {kind} is null"))
        return document

    async def ping(self) -> None:
        """Make a request that proves that the engine still answers."""
        async with self._request("ping", "/_ping") as response:
            body = await self._read("ping", response)
            if response.status != HTTPStatus.OK:
                raise self._refused("ping", response.status, body)

    @asynccontextmanager
    async def lines(self, kind: str, path: str) -> AsyncIterator[AsyncIterator[bytes | None]]:
        """Open an endless answer and read its lines; None for a line that is longer than `MAX_LINE`."""
        async with self._request(kind, path) as response:
            if response.status != HTTPStatus.OK:
                raise self._refused(kind, response.status, await self._read(kind, response))
            yield _lines(response.content)

    async def close(self) -> None:
        """Close all connections; closing twice is fine."""
        if isinstance(self._session.connector, TLSConnector):
            self._session.connector.abort()
        await self._session.close()

    def pid(self) -> int | None:
        """Return the PID of the process that listens at the other end of a Unix socket; None if it cannot be known."""
        return None if self._endpoint.path is None else listener(self._endpoint.path)

    @asynccontextmanager
    async def _request(self, kind: str, path: str) -> AsyncIterator[aiohttp.ClientResponse]:
        self._calls[kind] += 1
        url = URL(f"{self._endpoint.url}{self._prefix}{path}", encoded=True)
        try:
            async with self._session.get(url, allow_redirects=False) as response:
                yield response
        except EngineError:
            raise
        except (aiohttp.ClientError, aiodocker.DockerError, OSError, ValueError, RuntimeError) as error:
            raise self._translated(kind, error) from error

    async def _read(self, kind: str, response: aiohttp.ClientResponse) -> bytes:
        chunks, size = [], 0
        async for chunk in response.content.iter_any():
            size += len(chunk)
            self.listed_bytes += len(chunk) * (kind == "list")
            if size > MAX_BODY:
                raise ProtocolViolation(self.message(f"the answer to {kind} is larger than {MAX_BODY >> 20} MiB"))
            chunks.append(chunk)
        return b"".join(chunks)

    def _refused(self, kind: str, status: int, body: bytes) -> EngineError:
        """Return the error for an answer other than 200."""
        try:
            reason = json.loads(body.decode("utf-8", "replace"))["message"]
        except (ValueError, RecursionError, LookupError, TypeError):
            reason = body[:200].decode("utf-8", "replace")
        reason = printable(reason).strip() or "no reason given"
        if status == HTTPStatus.NOT_FOUND and kind == "inspect":
            return _Missing(self.message(reason))
        if status == HTTPStatus.BAD_REQUEST and "client version" in reason:
            return UnsupportedEngine(self.message(f"{reason}: this library speaks other versions of the Engine API"))
        if status == HTTPStatus.BAD_REQUEST and "HTTPS" in reason:
            return UnsupportedEngine(self.message(f"{reason}: use https://, or tls="))
        if status in {401, 403}:
            return EngineUnavailable(
                self.message(f"access denied ({status}: {reason}): something in front of it refuses {kind}")
            )
        if status in {301, 302, 307, 308, 404, 405}:
            return UnsupportedEngine(self.message(f"{status} for {kind} ({reason}): is this a {self._engine} engine?"))
        return EngineError(self.message(f"{kind} failed with {status}: {reason}"))

    def _translated(self, kind: str, error: Exception) -> EngineError:
        """Return the error for an exception of another library; its message says what can be done about it."""
        path = self._endpoint.path
        cause = getattr(error, "os_error", error)  # older releases of aiohttp have no os_error for certificates
        # If the engine refuses a certificate, the error is an OSError with the number of a TLS error, caused by one.
        refusals = (ssl.SSLError, ssl.CertificateError, aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch)
        if any(isinstance(one, refusals) for one in (error, cause, error.__cause__)):
            reason = f"TLS refused ({printable(cause)}): check the CA, the client certificate and its key"
        elif isinstance(error, aiodocker.DockerError):
            reason = printable(error.message)
        elif isinstance(error, TimeoutError):
            return EngineTimeout(self.message(f"no answer to {kind}"))
        elif isinstance(error, aiohttp.ClientResponseError):
            return UnsupportedEngine(self.message(f"the answer to {kind} is not HTTP as expected ({printable(error)})"))
        elif path and isinstance(cause, OSError) and (known := unreachable(cause, path, self._remedy)):
            reason = known
        elif isinstance(cause, OSError) and cause.errno == errno.ECONNREFUSED:
            reason = "connection refused: the engine is not running"
        elif isinstance(error, (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError)):
            reason = f"connection lost during {kind} ({printable(cause) or type(error).__name__})"
        else:
            return EngineError(self.message(f"{kind} failed: {printable(repr(error))}"))
        return EngineUnavailable(self.message(reason))


class _Missing(EngineError):
    """The answer 404 for one container; it never leaves this module."""


class TLSConnector(aiohttp.TCPConnector):
    """A connector that can close all its connections at once, including the idle ones.

    aiohttp waits half a minute until the engine confirms that an idle TLS connection is closed, and the engine may
    hang. Older releases of aiohttp wait like this for all other connections too.

    Attributes:
        transports: the transports of all connections that have not ended. The keys are their protocols, which live as
            long: not every event loop allows weak references to transports.
    """

    def __init__(self, tls: ssl.SSLContext) -> None:
        super().__init__(ssl=tls, limit=0)
        self.transports: WeakKeyDictionary[asyncio.BaseProtocol, asyncio.Transport] = WeakKeyDictionary()

    async def connect(self, *args: Any, **kwargs: Any) -> aiohttp.connector.Connection:
        connection = await super().connect(*args, **kwargs)
        if connection.protocol is not None and connection.transport is not None:
            self.transports[connection.protocol] = connection.transport
        return connection

    def abort(self) -> None:
        for transport in [*self.transports.values()]:
            transport.abort()


def _connector(endpoint: Endpoint) -> aiohttp.BaseConnector:
    """Make a connector without a limit: the application may use many connections, and the watcher needs its own."""
    if endpoint.path is not None:
        return aiohttp.UnixConnector(endpoint.path, limit=0)
    if endpoint.ssh is not None:
        from aiodocker.ssh import SSHConnector  # noqa: PLC0415 - ssh is an extra of aiodocker

        return SSHConnector(endpoint.ssh)  # it takes no limit argument, so the limit is 100, the default of aiohttp
    return aiohttp.TCPConnector(limit=0) if endpoint.tls is None else TLSConnector(endpoint.tls)


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes | None]:
    """Split a stream into lines. Yield None for a line that is longer than `MAX_LINE`, without keeping its bytes."""
    pieces: list[bytes] = []
    size = 0
    async for chunk in stream.iter_any():
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            line = None if size + len(end) > MAX_LINE else b"".join((*pieces, end))
            pieces, size = [], 0
            if line is None or line.strip():
                yield line
        size += len(rest)
        if size > MAX_LINE:
            pieces = []
        elif rest:
            pieces.append(rest)
