"""Docker: watch a Docker engine through its Engine API (20.10 and later, API 1.41 and later)."""

from __future__ import annotations

import json
import logging
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Unpack
from urllib.parse import quote

import aiodocker

from whalewatch._adapter.events import EventDeduplicator, LostEvents
from whalewatch._adapter.rucksack import Packer
from whalewatch._core.engine import Dead, ListedContainer, Listing, Signal, SignalType
from whalewatch._core.errors import EngineUnavailable, ProtocolViolation, UnsupportedEngine
from whalewatch._core.model import Container
from whalewatch._core.text import printable
from whalewatch._core.watcher import Watcher, WatcherOptions
from whalewatch.moby.address import default_endpoint, endpoint
from whalewatch.moby.connection import Connection
from whalewatch.moby.reading import container, listed, moment, signal, text

__all__ = ["MobyEngine", "watch"]

log: logging.Logger = logging.getLogger("whalewatch.moby")

OLDEST_API, NEWEST_API = (1, 41), (1, 54)
"""The versions of the Engine API whose answers are known here."""

MARGIN = timedelta(seconds=3)
"""How far before the moment of connecting the event stream begins: what has been read already is told apart by its
time."""

FILTERS = {
    "type": ["container", "network"],
    "event": [
        *("start", "die", "destroy", "pause", "unpause", "rename", "connect", "disconnect"),
        # Without its value, health_status would turn the whole filter into a prefix match.
        *(f"health_status: {value}" for value in ("starting", "healthy", "unhealthy")),
    ],
}
"""The events that are asked for; the engine's own filter comes before its buffer."""

Pack = Callable[[Container, Mapping[str, Any]], Any]
"""Makes the rucksack of a container, from the container and the JSON of the Engine API."""


class MobyEngine:
    """Adapter to a Docker engine.

    The event stream is asked for from a moment *before* the listing, by the engine's own clock: replay and
    registration are one step within the engine, so that nothing falls between the two, however late the registration
    is.

    Args:
        address: URL (``unix://``, ``tcp://``, ``http://``, ``https://``, ``ssh://``) or path of a socket; None finds
            the engine as Docker's own client does: DOCKER_HOST (with DOCKER_TLS_VERIFY and DOCKER_CERT_PATH),
            DOCKER_CONTEXT or the current context (of DOCKER_CONFIG or ~/.docker), then the well-known sockets.
        tls: for ``tcp://`` and ``https://``: with it, tcp is TLS.
        pack: makes the ``rucksack`` of a container from the engine's inspection data (the JSON of the Engine API);
            called on the watcher's loop whenever it is read, must not block.

    Raises:
        AddressError: the address cannot be used.
    """

    type = "docker"
    source = "events"

    def __init__(
        self, address: str | None = None, *, tls: ssl.SSLContext | None = None, pack: Pack | None = None
    ) -> None:
        self._endpoint = default_endpoint() if address is None else endpoint(address, tls)
        self._packer = Packer(pack, log)
        self._connection: Connection | None = None
        self._calls: Counter[str] = Counter()
        self._info: Mapping[str, Any] | None = None
        self._pid: int | None = None
        self._clock: datetime | None = None
        self._forget()

    def _forget(self) -> None:
        self._newest: datetime | None = None
        self._seen, self._lost = EventDeduplicator(), LostEvents(log)
        # Containers with a label of that name, which the engine lets overwrite the exit code of its events.
        self._masked: set[str] = set()

    @property
    def address(self) -> str:
        """URL of the engine, without a password."""
        return self._endpoint.address

    @property
    def pid(self) -> int | None:
        """Process that listens on the engine's Unix socket; None for other transports, and before the first connection.

        Under systemd's socket activation it is None too, because systemd listens there.
        """
        return self._pid

    @property
    def client(self) -> aiodocker.Docker | None:
        """The client of the current connection, for calls of the application's own; None before the first."""
        return self._connection.client if self._connection else None

    @property
    def calls(self) -> Mapping[str, int]:
        """Requests made so far: "info", "list", "inspect", "events", "ping"."""
        return self._calls

    @property
    def progress(self) -> int:
        """Bytes of listings that have arrived over the current connection."""
        return self._connection.listed_bytes if self._connection else 0

    async def id(self) -> str:
        """The engine's own identifier; not unique with Docker 20.10, where two engines of one host share it."""
        return str((await self._known())["ID"])

    async def version(self) -> str:
        """The engine's version, such as "26.1.5"."""
        return str((await self._known())["ServerVersion"])

    async def _known(self) -> Mapping[str, Any]:
        if self._info is None:  # by a connection of its own: a watcher may be connecting, or never will
            connection = self._new()
            try:
                self._info, _ = await self._introduced(connection)
            finally:
                await connection.close()
        return self._info

    def _new(self) -> Connection:
        return Connection(
            self._endpoint,
            engine="Docker",
            remedy="add the user to group docker, or run as root",
            calls=self._calls,
        )

    async def connect(self) -> None:
        """Make a new connection; learn the engine's identity, clock and version of the API."""
        await self.close()
        self._forget()
        connection = self._connection = self._new()
        self._info, self._clock = await self._introduced(connection)
        self._pid = connection.pid()

    async def _introduced(self, connection: Connection) -> tuple[Mapping[str, Any], datetime | None]:
        """Learn the engine's identity and clock, and settle the version of the API."""
        try:
            info, api = await connection.get("info", "/info")
            if not api:
                raise UnsupportedEngine(connection.message("it tells no version of its API: is this a Docker engine?"))
            connection.use_version(self._negotiated(connection, api))
            text(info["ID"]), text(info["ServerVersion"])
            return info, moment(info["SystemTime"])
        except (ProtocolViolation, KeyError, TypeError, ValueError, OverflowError) as error:
            raise UnsupportedEngine(
                connection.message(f"the answer to info is none of a Docker engine's ({printable(error)})")
            ) from error

    def _negotiated(self, connection: Connection, api: str) -> str:
        """The newest version of the API that both sides know."""
        try:
            major, minor = (int(part) for part in api.split("."))
        except ValueError as error:
            raise UnsupportedEngine(connection.message(f"its API version {printable(api)!r} makes no sense")) from error
        if (major, minor) < OLDEST_API:
            raise UnsupportedEngine(
                connection.message(f"its API version {major}.{minor} is too old: 1.41 is needed, Docker 20.10 or later")
            )
        return ".".join(str(part) for part in min((major, minor), NEWEST_API))

    async def ping(self) -> None:
        """Ask ``/_ping``: it touches no container."""
        await self._connected.ping()

    async def signals(self) -> AsyncIterator[Signal]:
        """Follow ``/events``, filtered by the engine itself: its buffer for each reader is bounded."""
        connection = self._connected
        since = max((m for m in (self._clock, self._newest) if m is not None), default=None)
        path = f"/events?filters={quote(json.dumps(FILTERS))}"
        if since is not None:
            path += f"&since={(since - MARGIN).timestamp():.6f}000"
        async with connection.lines("events", path) as lines:
            yield Signal(SignalType.SUBSCRIBED, timestamp=self._clock)
            async for line in lines:
                told = self._read(connection, line)
                if told is not None:
                    yield told

    def _read(self, connection: Connection, line: bytes | None) -> Signal | None:
        """Understand a line of the stream; LOST for what cannot be understood."""
        if line is None:
            return self._lost.report(connection.message("an event is too long to be read"))
        try:
            event = json.loads(line.decode("utf-8", "replace"))
            told = signal(event)
            if told is None:
                return None
            key = (event.get("timeNano", event.get("time")), told.id, event["Action"])
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError, OverflowError) as error:
            why = f"an event makes no sense ({printable(repr(error))}): {printable(line[:200])}"
            return self._lost.report(connection.message(why))
        if self._seen.seen_before(key):
            return None
        if told.timestamp is not None and (self._newest is None or told.timestamp > self._newest):
            self._newest = told.timestamp
        if told.type is SignalType.EXITED and told.id in self._masked:
            told = Signal(told.type, told.id, told.timestamp)
        return told

    async def listing(self) -> Listing:
        """List what runs. Docker's own default leaves out what is created or exited, and nothing else."""
        connection = self._connected
        items, _ = await connection.get("list", "/containers/json")
        if not isinstance(items, list):
            raise ProtocolViolation(connection.message(f"its listing is no list: {printable(items)}"))
        seen, unreadable = {}, 0
        for item in items:
            try:
                id, seen_as = listed(item)
            except (KeyError, TypeError, ValueError, AttributeError):
                unreadable += 1
                named = item.get("Id") if isinstance(item, dict) else None
                if not isinstance(named, str):
                    continue
                id, seen_as = named, ListedContainer()  # its inspect decides
            if seen_as is not None:
                seen[id] = seen_as
        if unreadable:
            log.warning("%s", connection.message(f"{unreadable} of {len(items)} listed containers cannot be read"))
        return Listing(containers=seen, absence_is_death=not unreadable)

    async def inspect(self, id: str, /) -> Container | Dead | None:
        """Read one container; `Dead` if it has no process, None if it is gone or has never run."""
        connection = self._connected
        inspection = await connection.find("inspect", f"/containers/{quote(id, safe='')}/json")
        if inspection is None:
            return None
        try:
            found = container(inspection, self.address)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ProtocolViolation(
                connection.message(f"its answer about {printable(id)} makes no sense ({printable(repr(error))})")
            ) from error
        if not isinstance(found, Container):
            return found
        if "exitCode" in found.labels:
            self._masked.add(id)
        return self._packer.pack(found, inspection)

    @property
    def _connected(self) -> Connection:
        if self._connection is None:
            raise EngineUnavailable(f"Docker engine at {self.address}: not connected")
        return self._connection

    async def close(self) -> None:
        """Let go of all connections; closing twice is fine."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


def watch(
    address: str | None = None,
    *,
    tls: ssl.SSLContext | None = None,
    pack: Pack | None = None,
    **options: Unpack[WatcherOptions],
) -> Watcher[MobyEngine]:
    """Make a watcher for a Docker engine.

    Args:
        address: URL or path of a socket; None finds the engine as Docker's own client does. See `MobyEngine`.
        tls: for ``tcp://`` and ``https://``.
        pack: makes the ``rucksack`` of a container. See `MobyEngine`.
        retry: how to try again after a failure. By default for ever, jittered, with growing pauses; None never tries
            again: the first failure ends the watch.
        heartbeat: seconds between checks that the engine still answers; 10 by default.
        audit: seconds between audits, which compare a listing with the picture and renew the event stream; 300 by
            default, None for none but the one that confirms a synchronisation.
        call_timeout: seconds that the engine has to answer a call; 5 by default. A listing has `heartbeat` more.
        concurrency: containers that are inspected at a time; 8 by default.
        clock: gives the time of what the engine does not date, in aware UTC.
        random: for jitter (`random.Random`).

    Raises:
        AddressError: the address cannot be used.
        ValueError: an option makes no sense.
    """
    return Watcher(MobyEngine(address, tls=tls, pack=pack), **options)
