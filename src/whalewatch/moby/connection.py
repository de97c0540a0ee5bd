"""The requests to a Docker engine: the size of every answer is bounded, and every failure is an `EngineError`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from whalewatch._adapter.unix import listener
from whalewatch._core.errors import EngineError, EngineUnavailable, ProtocolViolation, UnsupportedEngine
from whalewatch._core.text import printable
from whalewatch._http.client import Client
from whalewatch._http.dial import Endpoint

if TYPE_CHECKING:
    import aiodocker

__all__ = ["Connection"]

MAX_BODY = 64 * 1024 * 1024
"""Most bytes that are read of one answer. A listing of 10,000 containers has some 15 MB."""

MAX_LINE = 4 * 1024 * 1024
"""Most bytes of one event. An event contains all labels of a container."""


class Connection:
    """A client to one engine.

    Args:
        endpoint: where to connect.
        engine: kind of engine, for messages.
        remedy: what to do if the permission to connect is missing, for messages.
        calls: counts the requests, by kind.

    Attributes:
        listed_bytes: number of bytes of listings that have arrived.
    """

    def __init__(self, endpoint: Endpoint, *, engine: str, remedy: str, calls: Counter[str]) -> None:
        self._endpoint = endpoint
        self._engine = engine
        self._calls = calls
        self._prefix = ""
        self._client = Client(endpoint, message=self.message, remedy=remedy)
        self._application: aiodocker.Docker | None = None
        self.listed_bytes: int = 0

    @property
    def client(self) -> aiodocker.Docker | None:
        """A client of aiodocker for the application's own calls; None until a version of the API is agreed on."""
        if self._application is None and self._prefix:
            from whalewatch.moby.client import make  # noqa: PLC0415 - it loads aiohttp, which few applications need

            self._application = make(self._endpoint, self._prefix.removeprefix("/"))
        return self._application

    def use_version(self, version: str) -> None:
        """Use this version of the Engine API from now on, such as "1.45"."""
        self._prefix = f"/v{version}"

    def message(self, text: str) -> str:
        """Name the engine and its address in front of a message."""
        return f"{self._engine} engine at {self._endpoint.address}: {text}"

    async def get(self, kind: str, path: str) -> tuple[Any, str]:
        """Get a JSON document, and the API version that the engine reports; "" if it reports none.

        Raises:
            EngineError: the request failed; see `_refused`.
        """
        body, version = await self._body(kind, path)
        try:
            return json.loads(body.decode("utf-8", "replace")), version
        except (ValueError, RecursionError) as error:
            shown = printable(body[:80])
            raise ProtocolViolation(self.message(f"the answer to {kind} is not JSON: {shown}")) from error

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
        await self._body("ping", "/_ping")

    @asynccontextmanager
    async def lines(self, kind: str, path: str) -> AsyncIterator[AsyncIterator[bytes | None]]:
        """Open an endless answer and read its lines; None for a line that is longer than `MAX_LINE`."""
        self._calls[kind] += 1
        async with self._client.get(kind, f"{self._prefix}{path}") as answer:
            if answer.status != HTTPStatus.OK:
                raise self._refused(kind, answer.status, await answer.read(MAX_BODY))
            yield answer.lines(MAX_LINE)

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
        return None if self._endpoint.path is None else listener(self._endpoint.path)

    async def _body(self, kind: str, path: str) -> tuple[bytes, str]:
        self._calls[kind] += 1
        async with self._client.get(kind, f"{self._prefix}{path}") as answer:
            body = await answer.read(MAX_BODY, self._listed if kind == "list" else bool)
            if answer.status != HTTPStatus.OK:
                raise self._refused(kind, answer.status, body)
            return body, answer.headers.get("api-version", "")

    def _listed(self, size: int) -> None:
        self.listed_bytes += size

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


class _Missing(EngineError):
    """The answer 404 for one container; it never leaves this module."""
