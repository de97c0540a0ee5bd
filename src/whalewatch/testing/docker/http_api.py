"""HTTP requests to the fake Docker engine: their API versions, faults and answers, and the event streams."""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import TYPE_CHECKING, Any

from aiohttp import web

from whalewatch.testing.docker.events import Subscriber
from whalewatch.testing.docker.filters import EventFilter, parse_filters
from whalewatch.testing.docker.routes import Call, Routes, find_route, parse_body
from whalewatch.testing.docker.state import FakeDockerError

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Mapping

    from whalewatch.testing.docker.engine import EngineState
    from whalewatch.testing.docker.routes import Identity
    from whalewatch.testing.docker.state import FakeDockerContainer
    from whalewatch.testing.shared.calls import CallFaults

_VERSIONED = re.compile(r"/v(\d+\.\d+)(/.*)")
_WITHOUT_LEGACY_FIELDS = (1, 52)
_WITHOUT_BODY = frozenset({204, 304})


class Handlers:
    """Answers requests."""

    def __init__(
        self,
        state: EngineState,
        calls: CallFaults,
        identity: Identity,
        requests: Counter[str],
        changed: Callable[[], None],
    ) -> None:
        """Answer from a state; ``changed`` is called when something changes that a test may wait for."""
        self._requests = requests
        self._state = state
        self._calls = calls
        self._identity = identity
        self._routes = Routes(state, identity)
        self._changed = changed
        self._dead = False
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._headers = {
            "Api-Version": identity.api,
            "Docker-Experimental": "false",
            "Ostype": "linux",
            "Server": f"Docker/{identity.version} (linux)",
        }

    @property
    def stale(self) -> list[FakeDockerContainer] | None:
        """The containers in listings instead of the true ones; None for the true ones."""
        return self._routes.stale

    @stale.setter
    def stale(self, containers: list[FakeDockerContainer] | None) -> None:
        self._routes.stale = containers

    # ---- the engine's process

    def freeze(self) -> None:
        """Stop answering, unless the engine was killed."""
        if not self._dead:
            self._thawed.clear()
            self._state.hold()
            self._state.events.frozen = True

    def thaw(self) -> None:
        """Continue after `freeze`."""
        self._thawed.set()
        self._state.events.frozen = False
        if not self._dead:
            self._state.resume()

    def stop(self) -> None:
        """Act as a killed engine: forget all events, and send none."""
        if not self._dead:
            self._dead = True
            self.thaw()
            self._state.hold()
            self._state.events.silent += 1
            self._state.events.forget()

    def resume(self) -> None:
        """Act as a running engine again after `stop`."""
        if self._dead:
            self._dead = False
            self._state.events.silent -= 1
            self._state.resume()

    # ---- requests

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        path = request.path
        api = self._identity.api
        if match := _VERSIONED.fullmatch(path):
            api, path = match[1], match[2]
        kind, target = find_route(request.method, path)
        self._requests[kind] += 1
        self._changed()
        await self._thawed.wait()
        try:
            self._check_version(api)
            body = parse_body(await request.read()) if request.method == "POST" else {}
            call = Call(kind, target, request.query, _version(api), body)
            return await self._answer(request, call)
        except FakeDockerError as error:
            return self._json(error.status, {"message": error.message})

    async def _answer(self, request: web.BaseRequest, call: Call) -> web.StreamResponse:
        targets = self._targets(call.target)
        answer = await self._calls.before(call.kind, targets)
        await self._thawed.wait()
        if answer is not None and not answer.half:
            if answer.body is None:
                return self._json(answer.status, {"message": answer.message})
            return web.Response(body=answer.body, status=answer.status, headers=self._headers, content_type=_JSON)
        if call.kind == "events":
            return await self._stream(request, call)
        status, body = await self._wait(call) if call.kind == "wait" else self._routes.answer(call)
        response = self._pong(head=request.method == "HEAD") if call.kind == "ping" else self._json(status, body)
        await self._calls.after(call.kind, targets)
        await self._thawed.wait()
        return response if answer is None else await self._halved(request, response)

    async def _halved(self, request: web.BaseRequest, whole: web.Response) -> web.StreamResponse:
        body = whole.body if isinstance(whole.body, bytes) else b""
        response = web.StreamResponse(status=whole.status, headers=self._headers)
        response.content_type = _JSON
        response.content_length = len(body)
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
        _abort(request)
        return response

    def _targets(self, target: str) -> frozenset[str]:
        try:
            container = self._state.container(target)
        except FakeDockerError:
            return frozenset({target})
        return frozenset({target, container.id, container.name})

    def _check_version(self, api: str) -> None:
        if _version(api) > _version(self._identity.api):
            newest = self._identity.api
            raise FakeDockerError(400, f"client version {api} is too new. Maximum supported API version is {newest}")
        if _version(api) < _version(self._identity.minimum):
            oldest = self._identity.minimum
            raise FakeDockerError(
                400,
                f"client version {api} is too old. Minimum supported API version is {oldest}, "
                "please upgrade your client to a newer version",
            )

    def _json(self, status: int, body: Any) -> web.Response:
        if body is None:
            return web.Response(status=status, headers=self._headers)
        text = json.dumps(body, separators=(",", ":")).encode("utf-8", "surrogatepass") + b"\n"
        return web.Response(body=text, status=status, headers=self._headers, content_type=_JSON)

    def _pong(self, *, head: bool) -> web.Response:
        headers = {
            **self._headers,
            "Builder-Version": "2",
            "Cache-Control": "no-cache, no-store, must-revalidate",
            "Pragma": "no-cache",
            "Swarm": "inactive",
        }
        return web.Response(text="" if head else "OK", headers=headers)

    async def _wait(self, call: Call) -> tuple[int, Any]:
        container = self._state.container(call.target)
        condition = call.query.get("condition") or "not-running"
        if condition == "not-running" and not container.alive and container.status != "restarting":
            return 200, {"StatusCode": container.exit_code}
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        (container.removal_waiters if condition == "removed" else container.exit_waiters).append(future)
        return 200, {"StatusCode": await future}

    # ---- the event stream

    async def _stream(self, request: web.BaseRequest, call: Call) -> web.StreamResponse:
        since = _moment(call.query, "since")
        until = _moment(call.query, "until")
        if until is not None and since is not None and until < since:
            raise FakeDockerError(
                400, f"`since` time ({call.query['since']}) cannot be after `until` time ({call.query['until']})"
            )
        wanted = EventFilter(parse_filters(call.query.get("filters", "")))
        legacy = call.api < _WITHOUT_LEGACY_FIELDS
        response = web.StreamResponse(headers=self._headers)
        response.content_type = _JSON if legacy else "application/x-ndjson"
        response.enable_chunked_encoding()
        # As in the engine, the header is sent before the subscription exists.
        try:
            await response.prepare(request)
        except ConnectionResetError:
            return response  # the client has gone
        await self._calls.before("subscribe", frozenset())
        await self._thawed.wait()
        subscriber = Subscriber(
            self._state.events, wanted, legacy=legacy, until=until or 0, abort=lambda: _abort(request)
        )
        self._state.events.subscribe(subscriber, since)
        timer: asyncio.TimerHandle | None = None
        if until is not None:
            delay = until / 1e9 - time.time()
            timer = asyncio.get_running_loop().call_later(max(delay, 0.0), subscriber.end)
        try:
            await self._calls.after("events", frozenset())
            await self._pump(subscriber, response)
            await response.write_eof()
        except ConnectionError:
            pass  # the client has gone
        finally:
            if timer is not None:
                timer.cancel()
            self._state.events.unsubscribe(subscriber)
        return response

    async def _pump(self, subscriber: Subscriber, response: web.StreamResponse) -> None:
        while True:
            await self._thawed.wait()
            if chunk := subscriber.take():
                await response.write(chunk)
            elif subscriber.ended:
                return
            else:
                self._changed()
                await subscriber.wait()


_JSON = "application/json"


def _abort(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.abort()


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def _moment(query: Mapping[str, str], key: str) -> int | None:
    """Read a time given as ``SECONDS`` or ``SECONDS.NANOSECONDS``, in nanoseconds; None if it is missing."""
    text = query.get(key, "")
    if not text:
        return None
    seconds, _, fraction = text.partition(".")
    try:
        return int(seconds) * 1_000_000_000 + int(fraction.ljust(9, "0")[:9])
    except ValueError:
        raise FakeDockerError(500, f'strconv.ParseInt: parsing "{text}": invalid syntax') from None
