"""Docker: watch a Docker engine through its Engine API (20.10 and later, API 1.41 and later)."""

from __future__ import annotations

import json
import logging
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack
from urllib.parse import quote

import attrs

from whalewatch._adapter.events import EventDeduplicator, LostEvents
from whalewatch._adapter.ids import is_id
from whalewatch._adapter.once import Once
from whalewatch._adapter.recognition import http_engine
from whalewatch._adapter.rucksack import Packer
from whalewatch._core.engine import MAX_CONTAINERS, Dead, ListedContainer, Listing, Signal, SignalType, display_name
from whalewatch._core.errors import EngineUnavailable, ProtocolViolation, UnsupportedEngine
from whalewatch._core.inspections import MAX_WARNED
from whalewatch._core.model import Container
from whalewatch._core.text import logger, printable
from whalewatch._core.watcher import Watcher, WatcherOptions
from whalewatch._http.dial import Dialler
from whalewatch.moby.address import default_endpoint, endpoint
from whalewatch.moby.connection import Connection
from whalewatch.moby.reading import FILTERS, MAX_LABELS, MAX_TEXT, UNREADABLE, listed, moment, signal, text, weight
from whalewatch.moby.reading import container as read_container

if TYPE_CHECKING:
    import aiodocker

__all__ = ["MobyEngine", "watch"]

log: logging.Logger = logger("whalewatch.moby")

OLDEST_API, NEWEST_API = (1, 41), (1, 54)
"""The oldest and the newest version of the Engine API that this adapter knows."""

MARGIN = timedelta(seconds=3)
"""How long before the moment of connecting, or before the newest event, the event stream begins. Events of changes that
were read already are recognised by their times."""

REMEDY = "add the user to group docker, or run as root"

IDENTITY = ("ID", "Name", "DockerRootDir")
"""What tells one engine from another, of the answer to info."""

Pack = Callable[[Container, Mapping[str, Any]], Any]
"""A function that returns the rucksack of a container, from the container and the inspect JSON of the Engine API."""


class MobyEngine:
    """Adapter to a Docker engine.

    The adapter subscribes to events from a moment *before* the listing, by the engine's own clock. In the engine,
    replaying old events and registering the subscriber are one step. So no event is lost between the two, however late
    the registration is. Likewise a stream that follows one that was cut begins before the last event of that one.

    Args:
        address: URL (``unix://``, ``tcp://``, ``http://``, ``https://``, ``ssh://``) or path of a socket; None finds
            the engine as Docker's own client does: DOCKER_HOST (with DOCKER_TLS_VERIFY and DOCKER_CERT_PATH),
            DOCKER_CONTEXT or the current context (of DOCKER_CONFIG or ~/.docker), then the well-known sockets.
        tls: TLS context for ``tcp://`` and ``https://``; with it, ``tcp://`` uses TLS.
        pack: returns the ``rucksack`` of a container, from the container and its inspect JSON (Engine API). It is
            called in the watcher's event loop each time the container is read, and must not block.
        max_containers: most containers that a listing may have; with more it is refused. Also an attribute.

    Raises:
        AddressError: the address cannot be used.
        ValueError: `max_containers` is less than 1.
    """

    type: str = "docker"
    title: str = "Docker"
    source: str = "events"

    def __init__(
        self,
        address: str | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        pack: Pack | None = None,
        max_containers: int = MAX_CONTAINERS,
    ) -> None:
        if max_containers < 1:
            raise ValueError(f"max_containers must be 1 or more, not {max_containers!r}")
        self.max_containers: int = max_containers
        self._endpoint = default_endpoint() if address is None else endpoint(address, tls)
        self._packer = Packer(pack, log)
        self._warned = Once()
        self._fields_left_out = 0
        self._connection: Connection | None = None
        self._calls: Counter[str] = Counter()
        self._info: Mapping[str, Any] | None = None
        self._pid: int | None = None
        self._clock: datetime | None = None
        self._forget()

    def _forget(self) -> None:
        self._newest: datetime | None = None
        self._seen, self._lost = EventDeduplicator(), LostEvents(log)
        # Containers with a label "exitCode": in events, the engine lets it overwrite the real exit code.
        self._masked: set[str] = set()

    @property
    def address(self) -> str:
        """URL of the engine, without a password."""
        return self._endpoint.address

    @property
    def pid(self) -> int | None:
        """PID of the process that listens on the engine's Unix socket.

        None for other transports, before the first connection, and with systemd's socket activation, because then
        systemd is the process that listens.
        """
        return self._pid

    @property
    def client(self) -> aiodocker.Docker | None:
        """Client of the current connection, for the application's own calls; None before the first connection."""
        return self._connection.client if self._connection else None

    @property
    def calls(self) -> Mapping[str, int]:
        """Number of requests so far, by kind: "info", "list", "inspect", "events", "ping"."""
        return self._calls

    @property
    def fields_left_out(self) -> int:
        """Number of fields of containers that made no sense and were left out; each counts once, and is logged once."""
        return self._fields_left_out

    @property
    def progress(self) -> int:
        """Number of bytes of listings that have arrived over the current connection."""
        return self._connection.listed_bytes if self._connection else 0

    async def id(self) -> str:
        """Return the engine's own identifier. With Docker 20.10, two engines of one host have the same one.

        Raises:
            EngineError: the engine cannot be asked.
        """
        return str((await self._engine_info())["ID"])

    async def version(self) -> str:
        """Return the engine's version, such as "26.1.5".

        Raises:
            EngineError: the engine cannot be asked.
        """
        return str((await self._engine_info())["ServerVersion"])

    async def _engine_info(self) -> Mapping[str, Any]:
        if self._info is None:  # use another connection: a watcher may be connecting, or may never connect
            self._info = await self._identify_separately()
        return self._info

    async def _identify_separately(self, dialler: Dialler | None = None) -> Mapping[str, Any]:
        connection = self._new(dialler)
        try:
            return await self._identify(connection)
        finally:
            await connection.close()

    async def is_same_engine(self) -> bool:
        """Ask over two new connections who answers. Over a Unix socket, nobody but who has listened there may do so.

        There are two because a balancer that takes turns gives them to two engines. On Docker 20.10, two engines of one
        host have the same ID, so the name and the data folder count too. That the same dockerd *process* answers is
        proven only by the listener of a Unix socket: of a dockerd that was restarted behind systemd's socket or a proxy
        all this is the same, and its ring of events is empty.

        Raises:
            EngineError: the engine cannot be asked.
        """
        dialler, known = self._connected.dialler, self._info or {}
        for _ in range(2):
            try:
                info = await self._identify_separately(dialler)
            except EngineUnavailable:
                if not dialler.estranged:
                    raise
                return False
            if any(info.get(key) != known.get(key) for key in IDENTITY):
                return False
            clock = moment(info["SystemTime"])
            if clock is not None and self._newest is not None:
                self._newest = min(self._newest, clock)  # by a clock that was set back, new events are older
        return True

    def _new(self, dialler: Dialler | None = None) -> Connection:
        return Connection(dialler or Dialler(self._endpoint), engine=self.title, remedy=REMEDY, calls=self._calls)

    async def connect(self) -> None:
        """Make a new connection; read the engine's identity and clock, agree on a version of the API, and ping once.

        A proxy that refuses the ping is found here, and not by the first heartbeat of each connection.
        """
        await self.close()
        self._forget()
        connection = self._connection = self._new()
        self._info = await self._identify(connection)
        self._clock = self._newest = moment(self._info["SystemTime"])
        self._pid = connection.pid()

    async def _identify(self, connection: Connection) -> Mapping[str, Any]:
        """Check that it is Docker, set the version of the API, and read the engine's identity and clock."""
        headers = await connection.ping()
        if other := http_engine(headers, module="moby"):
            raise UnsupportedEngine(connection.message(other))
        connection.use_version(self._negotiated(connection, headers.get("api-version", "")))
        info: Mapping[str, Any] = await connection.get("info", "/info")
        try:
            text(info["ID"]), text(info["ServerVersion"]), moment(info["SystemTime"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ProtocolViolation(
                connection.message(f"the answer to info is not that of a Docker engine ({printable(error)})")
            ) from error
        return info

    def _negotiated(self, connection: Connection, api: str) -> str:
        """Return the newest version of the API that both sides know."""
        try:
            major, minor = (int(part) for part in api.split("."))
        except ValueError as error:
            raise ProtocolViolation(
                connection.message(f"it reports no API version ({printable(api, 40)!r}): is this a Docker engine?")
            ) from error
        if (major, minor) < OLDEST_API:
            too_old = f"its API version {printable(api, 40)} is too old"
            raise UnsupportedEngine(connection.message(f"{too_old}: 1.41 is needed, Docker 20.10 or later"))
        return ".".join(str(part) for part in min((major, minor), NEWEST_API))

    async def ping(self) -> None:
        """Request ``/_ping``, which reads no container."""
        await self._connected.ping()

    async def signals(self) -> AsyncIterator[Signal]:
        """Follow ``/events``. The engine filters them itself, because its buffer for each reader is bounded."""
        connection = self._connected
        path = f"/events?filters={quote(json.dumps(FILTERS))}"
        if self._newest is not None:
            path += f"&since={(self._newest - MARGIN).timestamp():.6f}000"
        async with connection.lines("events", path) as lines:
            yield Signal(SignalType.SUBSCRIBED, timestamp=self._clock)
            async for line in lines:
                received = self._read(connection, line)
                if received is not None:
                    yield received

    def _read(self, connection: Connection, line: bytes | None) -> Signal | None:
        """Read a line of the stream; return LOST if it cannot be understood, None if it is of no interest."""
        if line is None:
            return self._lost.report(connection.message("an event is too long to be read"))
        try:
            event = json.loads(line.decode("utf-8", "replace"))
            received = signal(event, self.address)
            if received is None:
                return None
            key = (event.get("timeNano", event.get("time")), received.id, event["Action"])
        except (*UNREADABLE, RecursionError) as error:
            why = f"an event makes no sense ({printable(repr(error))}): {printable(line[:200])}"
            return self._lost.report(connection.message(why))
        if self._seen.seen_before(key):
            return None
        if received.timestamp is not None and (self._newest is None or received.timestamp > self._newest):
            self._newest = received.timestamp
        if received.facts is not None and "exitCode" in received.facts.labels:
            self._mask(received.id)
        if received.type is SignalType.EXITED and received.id in self._masked:
            received = attrs.evolve(received, exit_code=None)
            if event["Action"] == "destroy":
                self._masked.discard(received.id)
        return received

    async def listing(self) -> Listing:
        """List the containers that are alive. By default Docker leaves out those that are created or exited, no others.

        Raises:
            EngineError: the engine cannot be asked, or its answer cannot be understood.
        """
        connection = self._connected
        containers: dict[str, ListedContainer] = {}
        count = unreadable = labels = characters = 0

        def take(item: Any) -> None:
            nonlocal count, unreadable, labels, characters
            count += 1
            if count > self.max_containers:
                why = f"its listing has more than {self.max_containers:,} containers: max_containers= allows more"
                raise ProtocolViolation(connection.message(why))
            try:
                id, container = listed(item)
            except UNREADABLE:
                unreadable += 1
                if not isinstance(item, dict) or not is_id(item.get("Id")):
                    return
                id, container = item["Id"], ListedContainer()  # its inspect decides
            if container is not None:
                more, longer = weight(container)
                labels, characters = labels + more, characters + longer
                containers[id] = container if labels <= MAX_LABELS and characters <= MAX_TEXT else ListedContainer()

        await connection.each("list", "/containers/json", take)
        if unreadable:
            log.warning("%s", connection.message(f"{unreadable} of {count} listed containers cannot be read"))
        return Listing(containers=containers, absence_is_death=not unreadable)

    async def inspect(self, id: str, /) -> Container | Dead | None:
        """Read one container; return `Dead` if it has no process, None if it was removed or has never run.

        Raises:
            EngineError: the engine cannot be asked, or its answer cannot be understood.
        """
        connection = self._connected
        # No engine has a container without a valid id, and as a part of a path it could lead elsewhere.
        inspection = await connection.find("inspect", f"/containers/{id}/json") if is_id(id) else None
        if inspection is None:
            return None
        try:
            found = read_container(inspection, self.address, partial(self._leave_out, connection, id))
        except UNREADABLE as error:
            raise ProtocolViolation(
                connection.message(f"its answer about {printable(id)} makes no sense ({printable(repr(error))})")
            ) from error
        if not isinstance(found, Container):
            return found
        if "exitCode" in found.labels:
            self._mask(id)
        return self._packer.pack(found, inspection)

    def _mask(self, id: str) -> None:
        self._masked.add(id)
        if len(self._masked) > self.max_containers:
            self._masked.pop()

    def _leave_out(self, connection: Connection, id: str, field: str, error: Exception) -> None:
        """Count and log, once, that a field of a container cannot be read."""
        if self._warned.first((id, field)):
            self._fields_left_out += 1
            why = f"{field} of container {printable(id)} makes no sense ({printable(repr(error))}): left out"
            level = logging.WARNING if self._fields_left_out <= MAX_WARNED else logging.DEBUG
            log.log(level, "%s", connection.message(why))

    @property
    def _connected(self) -> Connection:
        if self._connection is None:
            raise EngineUnavailable(f"{display_name(self)}: not connected")
        return self._connection

    async def close(self) -> None:
        """Close all connections; closing twice is fine."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


def watch(
    address: str | None = None,
    *,
    tls: ssl.SSLContext | None = None,
    pack: Pack | None = None,
    max_containers: int = MAX_CONTAINERS,
    **options: Unpack[WatcherOptions],
) -> Watcher[MobyEngine]:
    """Make a watcher for a Docker engine.

    Example::

        async with moby.watch() as watcher:
            print(await watcher.portfolio.containers())

    Args:
        address: URL or path of a socket; None finds the engine as Docker's own client does. See `MobyEngine`.
        tls: TLS context for ``tcp://`` and ``https://``; None uses TLS for ``https://`` only. See `MobyEngine`.
        pack: returns the ``rucksack`` of a container. See `MobyEngine`.
        max_containers: most containers that a listing may have; with more it is refused. 100,000 by default.
        retry: how to retry after a failure. By default the watcher retries for ever, after growing delays with jitter.
            None never retries: the first failure ends the watch.
        heartbeat: seconds between checks that the engine still answers; 10 by default.
        audit: seconds between audits, which compare a listing with the picture and renew the event stream; 300 by
            default. None makes only the audit that confirms each synchronisation.
        call_timeout: seconds that the engine has to answer a call, and `heartbeat` more for a listing; 5 by default.
        concurrency: number of containers that are inspected at the same time; 8 by default.
        kernel: whether the kernel tells exits of processes of this machine, before the engine; by default it does.
        clock: returns the time, in aware UTC, for changes that the engine does not date.
        random: for jitter (`random.Random`).

    Raises:
        AddressError: the address cannot be used.
        ValueError: an option has a value that is not allowed.
    """
    return Watcher(MobyEngine(address, tls=tls, pack=pack, max_containers=max_containers), **options)
