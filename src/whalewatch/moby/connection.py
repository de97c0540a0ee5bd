"""The requests to a Docker engine: the size of every answer is bounded, and every failure is an `EngineError`."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from whalewatch._adapter.unix import engine_pid
from whalewatch._core.errors import EngineError, EngineUnavailable, ProtocolViolation, UnsupportedEngine
from whalewatch._core.text import printable
from whalewatch._http.client import Client
from whalewatch._http.dial import Dialler

if TYPE_CHECKING:
    import aiodocker

__all__ = ["Connection"]

MAX_LISTING = 64 * 1024 * 1024
"""Most bytes of a listing. That of 10,000 containers has some 15 MB."""

MAX_ITEM = 1024 * 1024
"""Most characters of an item of a listing."""

LARGE = 64 * 1024
"""Bytes of an answer that takes about a millisecond to decode; larger ones are decoded one at a time."""

MAX_DOCUMENT = 4 * 1024 * 1024
"""Most bytes of any other answer, and of an event. Each contains all labels of a container."""

TTRPC = ".ttrpc"
"""By default containerd has a socket for its shims beside that for gRPC, at the same path with this ending (section
ttrpc of its configuration). There it waits for ever for what it takes for the rest of a message."""


class Connection:
    """A client to one engine.

    Args:
        dialler: makes the connections, the application's too.
        engine: kind of engine, for messages.
        remedy: what to do if the permission to connect is missing, for messages.
        calls: counts the requests, by kind.

    Attributes:
        dialler: see above.
        listed_bytes: number of bytes of listings that have arrived.

    Raises:
        UnsupportedEngine: the socket is one that never answers HTTP.
    """

    def __init__(self, dialler: Dialler, *, engine: str, remedy: str, calls: Counter[str]) -> None:
        self.dialler: Dialler = dialler
        self._endpoint = dialler.endpoint
        self._engine = engine
        path = self._endpoint.path
        if path is not None and path.endswith(TTRPC):
            grpc = path.removesuffix(TTRPC)
            raise UnsupportedEngine(
                self.message(f"this is containerd's ttrpc socket: use whalewatch.containerd with {grpc}")
            )
        self._calls = calls
        self._decoding = asyncio.Lock()
        self._prefix = ""
        self._client = Client(dialler, message=self.message, remedy=remedy)
        self._application: aiodocker.Docker | None = None
        self.listed_bytes: int = 0

    @property
    def client(self) -> aiodocker.Docker | None:
        """A client of aiodocker for the application's own calls; None until a version of the API is agreed on."""
        if self._application is None and self._prefix:
            from whalewatch.moby.client import make  # noqa: PLC0415 - it loads aiohttp, which few applications need

            self._application = make(self.dialler, self._prefix.removeprefix("/"))
        return self._application

    def use_version(self, version: str) -> None:
        """Use this version of the Engine API from now on, such as "1.45"."""
        self._prefix = f"/v{version}"

    def message(self, text: str) -> str:
        """Name the engine and its address in front of a message."""
        return f"{self._engine} engine at {self._endpoint.address}: {text}"

    async def get(self, kind: str, path: str) -> Any:
        """Get a JSON document.

        Raises:
            EngineError: the request failed; see `_refused`.
        """
        body, _ = await self._body(kind, path)
        if len(body) <= LARGE:
            return self._decoded(kind, body)
        async with self._decoding:  # one after the other, and others have their turn in between
            await asyncio.sleep(0)
            return self._decoded(kind, body)

    def _decoded(self, kind: str, body: bytes) -> Any:
        try:
            return json.loads(body.decode("utf-8", "replace"))
        except (ValueError, RecursionError) as error:
            raise ProtocolViolation(self.message(f"the answer to {kind} is not JSON")) from error

    async def find(self, kind: str, path: str) -> Any:
        """Get a JSON document, or None if the engine answers "not found"."""
        try:
            document = await self.get(kind, path)
        except _Missing:
            return None
        if document is None:
            raise ProtocolViolation(self.message(f"the answer to {kind} is null"))
        return document

    async def ping(self) -> Mapping[str, str]:
        """Make a request that proves that the engine still answers; return its headers, by name in lower case."""
        return (await self._body("ping", "/_ping"))[1]

    @asynccontextmanager
    async def lines(self, kind: str, path: str) -> AsyncIterator[AsyncIterator[bytes | None]]:
        """Open an endless answer and read its lines; None for one that is longer than `MAX_DOCUMENT`."""
        self._calls[kind] += 1
        async with self._client.get(kind, f"{self._prefix}{path}") as answer:
            if answer.status != HTTPStatus.OK:
                raise self._refused(kind, path, answer.status, await answer.read(MAX_DOCUMENT))
            yield answer.lines(MAX_DOCUMENT)

    async def each(self, kind: str, path: str, take: Callable[[Any], object]) -> None:
        """Get a JSON array, and hand over each of its items while it arrives; what `take` raises ends that.

        Raises:
            EngineError: the request failed; see `_refused`.
        """
        self._calls[kind] += 1
        async with self._client.get(kind, f"{self._prefix}{path}") as answer:
            if answer.status != HTTPStatus.OK:
                raise self._refused(kind, path, answer.status, await answer.read(MAX_DOCUMENT))
            try:
                await answer.items(take, limit=MAX_LISTING, longest=MAX_ITEM, progress=self._listed)
            except (ValueError, RecursionError) as error:
                raise ProtocolViolation(
                    self.message(f"the answer to {kind} is not a JSON array ({printable(error)})")
                ) from error

    async def close(self) -> None:
        """Close all connections; closing twice is fine."""
        try:
            await self._client.close()
        finally:
            if self._application is not None:
                from whalewatch.moby.client import close  # noqa: PLC0415 - loaded by now

                await close(self._application)

    def pid(self) -> int | None:
        """Return the PID of the process that listens at the other end of a Unix socket; None if it cannot be known."""
        return None if self.dialler.peer is None else engine_pid(self.dialler.peer)

    async def _body(self, kind: str, path: str) -> tuple[bytes, Mapping[str, str]]:
        self._calls[kind] += 1
        async with self._client.get(kind, f"{self._prefix}{path}") as answer:
            body = await answer.read(MAX_DOCUMENT)
            if answer.status != HTTPStatus.OK:
                raise self._refused(kind, path, answer.status, body)
            return body, answer.headers

    def _listed(self, size: int) -> None:
        self.listed_bytes += size

    def _refused(self, kind: str, path: str, status: int, body: bytes) -> EngineError:
        """Return the error for an answer other than 200. It quotes what the engine says in JSON, never a page."""
        try:
            reason = printable(json.loads(body.decode("utf-8", "replace"))["message"]).strip()
        except (ValueError, RecursionError, LookupError, TypeError):
            reason = ""
        get = f"GET {self._endpoint.prefix}{self._prefix}{path.partition('?')[0]}"
        answer = f"{status}: {reason}" if reason else f"{status}"
        if status == HTTPStatus.NOT_FOUND and kind == "inspect" and reason:  # else it is not the engine's
            return _Missing(self.message(reason))
        if status == HTTPStatus.BAD_REQUEST and "client version" in reason:
            return UnsupportedEngine(self.message(f"{reason}: this library speaks other versions of the Engine API"))
        if status == HTTPStatus.BAD_REQUEST and b"HTTPS server" in body:
            return EngineUnavailable(self.message("it takes HTTPS only: use https://, or tls="))
        unknown = status in {301, 302, 307, 308, 404, 405}
        if status in {401, 403} or (unknown and self._prefix):  # once a version is agreed on, the engine knows the path
            remedy = "what is in front of the engine, such as a proxy, must allow it"
            return EngineUnavailable(self.message(f"access denied to {get} ({answer}): {remedy}"))
        if unknown:
            remedy = f"is this a {self._engine} engine, and does what is in front of it allow this path?"
            return ProtocolViolation(self.message(f"{get} is not known there ({answer}): {remedy}"))
        return EngineError(self.message(f"{get} failed ({answer})"))


class _Missing(EngineError):
    """The answer 404 for one container; it never leaves this module."""
