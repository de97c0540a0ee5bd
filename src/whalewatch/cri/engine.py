"""Kubernetes' CRI: watch any engine that speaks it, such as containerd and CRI-O."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import Any, Literal, Unpack, get_args

import grpc.aio

from whalewatch._adapter.events import EventDeduplicator, LostEvents
from whalewatch._adapter.rucksack import Packer
from whalewatch._core.engine import MAX_CONTAINERS, Dead, Listing, Signal, SignalType
from whalewatch._core.errors import AddressError, EngineError, EngineUnavailable, UnsupportedEngine
from whalewatch._core.model import Container
from whalewatch._core.text import logger, printable
from whalewatch._core.watcher import Watcher, WatcherOptions
from whalewatch._grpc.address import endpoint
from whalewatch._grpc.connection import Connection
from whalewatch._grpc.door import Door
from whalewatch.containerd import calls as containerd
from whalewatch.cri.calls import Calls
from whalewatch.cri.identity import Identity, identify
from whalewatch.cri.native import Native
from whalewatch.cri.pod_events import CONTAINERD, PodEvents, danger, refused
from whalewatch.cri.polling import Polling
from whalewatch.cri.reading import Inspection
from whalewatch.cri.records import Records
from whalewatch.cri.source import Link, Source

__all__ = ["CRIEngine", "Inspection", "watch"]

log: logging.Logger = logger("whalewatch.cri")

EXAMPLE = "unix:///run/containerd/containerd.sock"

USUAL_ADDRESSES = (EXAMPLE, "unix:///run/crio/crio.sock", "unix:///run/cri-dockerd.sock")
"""The usual addresses of CRI engines. There is no default, because a host may have several engines."""

USUAL_SOCKETS = (*containerd.USUAL_SOCKETS, "/run/crio/crio.sock", "/run/cri-dockerd.sock")

REMEDY = "run as root: the sockets of CRI engines belong to root"

MAX_EMPTY_STREAMS = 2
"""After this many connections in a row whose stream of pod events ended or was refused without an event, the adapter
polls instead."""

STABLE_AFTER = 60.0
"""A silent stream on a connection that lasted this many seconds does not count as empty: nothing happened, and then the
engine ended."""

Pack = Callable[[Container, Inspection], Any]
"""A function that returns the rucksack of a container, from the container and its `Inspection`."""

SourceName = Literal["native", "pod-events", "poll"]
"""The name of a source of changes; see `CRIEngine`."""


class CRIEngine:
    """Adapter to an engine that speaks Kubernetes' CRI (runtime.v1).

    Containers that run and sandboxes that are ready are alive. The name of a container is unique only within its pod;
    the name of a sandbox is that of its pod. If several have the same name, ``portfolio.container(name)`` returns the
    earliest started. With source "native", which has no start times, it returns the one whose id comes first. All
    containers of one pod are in ``portfolio.pod(uid)``. The adapter never changes anything in the engine.

    For each connection it chooses the source of changes:

    * "native": the events and tasks of containerd's own API, if the socket belongs to containerd.
    * "pod-events": the events of the CRI. The adapter never chooses this source for containerd, because containerd 1.7
      gives each event to one reader only: the watcher would take events from the kubelet. Nor does it for CRI-O before
      1.33: versions 1.26 and 1.27 do the same, and 1.28 to 1.32 can crash when a reader leaves.
    * "poll": a listing every `poll` seconds, for all others. It may not see a container that lives shorter than this.

    Args:
        address: URL ``unix:///path``, or path of a socket. There is no default.
        source: "native", "pod-events" or "poll" to force a source; None to choose one automatically.
        poll: seconds between two listings, with a jitter of a tenth; only for source "poll".
        pack: returns the ``rucksack`` of a container, from the container and its `Inspection`. It is called in the
            watcher's event loop each time the container is read, also from a listing, and must not block.
        max_containers: most containers, most sandboxes, and most tasks, that a listing may have; with more it is
            refused.

    Attributes:
        max_containers: that option.

    Raises:
        AddressError: the address is missing, or cannot be used.
        ValueError: `source` is not one of the three, `poll` is not positive, or `max_containers` is less than 1.
    """

    type: str = "cri"
    title: str = "CRI"

    def __init__(
        self,
        address: str | None = None,
        *,
        source: SourceName | None = None,
        poll: float = 2.0,
        pack: Pack | None = None,
        max_containers: int = MAX_CONTAINERS,
    ) -> None:
        if not address:
            usual = ", ".join(USUAL_ADDRESSES)
            msg = f"a CRI engine has no default address: give the address of its socket, usually one of {usual}"
            raise AddressError(msg)
        if source is not None and source not in get_args(SourceName):
            msg = f"source must be one of {', '.join(get_args(SourceName))}, or None, not {printable(source)!r}"
            raise ValueError(msg)
        if not poll > 0:
            msg = f"poll must be positive, not {poll}"
            raise ValueError(msg)
        self._endpoint = endpoint(address, engine="CRI", example=EXAMPLE)
        self._forced_source = source
        self._poll = poll
        self._packer = Packer(pack, log)
        self._calls: Counter[str] = Counter()
        self.max_containers = max_containers
        self._door = Door(log, f"CRI engine at {self.address}", max_containers)
        self._connection: Connection | None = None
        self._closing = AsyncExitStack()
        self._source: Source | None = None
        self._source_name: str = source or ""
        self._identity: Identity | None = None
        self._without_pid = 0
        self._empty_streams = 0
        self._counted = False  # whether this connection is counted in `_empty_streams`
        self._connected_at = 0.0
        self._logged: set[str] = set()

    @property
    def address(self) -> str:
        """URL of the engine."""
        return self._endpoint.address

    @property
    def source(self) -> str:
        """Where changes come from: "native", "pod-events" or "poll"; "" before it was chosen."""
        return self._source_name

    @property
    def runtime(self) -> str | None:
        """The name that the engine reports, such as "containerd" or "cri-o"; None before the first connection."""
        return self._identity.runtime if self._identity else None

    @property
    def pid(self) -> int | None:
        """PID of the engine, reported by itself (containerd 1.7 and later) or by the kernel.

        None before the first connection.
        """
        return self._identity.pid if self._identity else None

    @property
    def client(self) -> grpc.aio.Channel | None:
        """Channel of the current connection, for the application's own calls; None before the first connection."""
        return self._connection.client if self._connection else None

    @property
    def calls(self) -> Mapping[str, int]:
        """Number of calls so far, by kind.

        Each connection, each audit and each subscription after a cut one makes the call "version", and to containerd
        also "introspection". Each subscription makes "events" and "ping". Each listing makes "containers" twice,
        "sandboxes", and with source "native" "tasks". Each inspect makes "container-status" or "sandbox-status" to read
        the PID, with source "native" "task" instead. If the container is not known yet, it also makes "container" or
        "sandbox", which lists one item; with source "native" it then makes "container" once more.
        """
        return self._calls

    @property
    def items_left_out(self) -> int:
        """Number of listed containers, sandboxes and tasks left out as they have no valid id; each counts once."""
        return self._door.left_out

    @property
    def without_pid(self) -> int:
        """How often a running container was read for which the engine still reported no PID some seconds later."""
        return self._without_pid

    async def id(self) -> str:
        """Return the identifier of containerd, which stays the same when it restarts; for others, their name.

        Raises:
            EngineError: the engine cannot be asked.
        """
        return (await self._identify_separately()).id

    async def version(self) -> str:
        """Return the engine's version, such as "1.7.24".

        Raises:
            EngineError: the engine cannot be asked.
        """
        return (await self._identify_separately()).version

    async def _identify_separately(self) -> Identity:
        """Return the engine's identity; if it is not known, read it over another connection.

        A watcher may be connecting with the connection of this object, or may never connect.
        """
        if self._identity is None:
            connection = self._new()
            try:
                self._identity = await identify(connection)
            finally:
                await connection.close()
        return self._identity

    async def is_same_engine(self) -> bool:
        """Ask over the connection, which outlives no restart, and look at who listens on the socket."""
        return await identify(self._connected) == self._identity

    def _new(self) -> Connection:
        return Connection(
            self._endpoint, engine=self.title, remedy=REMEDY, usual=USUAL_SOCKETS, calls=self._calls, door=self._door
        )

    async def connect(self) -> None:
        """Make a new connection, read the engine's identity, and choose the source of changes."""
        await self.close()
        connection = self._connection = self._new()
        self._closing.push_async_callback(connection.close)
        self._counted, self._connected_at = False, time.monotonic()
        identity = self._identity = await identify(connection)
        connection.check_place()
        calls = Calls(connection)
        link = Link(
            calls,
            Records(calls, keep=bool(self._packer)),
            EventDeduplicator(),
            LostEvents(log),
            self.address,
            self._packer,
            self._closing,
            self._report_missing_pid,
        )
        source = self._source = await self._choose_source(link, identity)
        self._source_name = source.name

    async def _choose_source(self, link: Link, identity: Identity) -> Source:
        forced = self._forced_source
        is_containerd = identity.runtime == CONTAINERD
        if forced == "native" and identity.native is not None:
            raise identity.native
        if forced == "native" or (forced is None and is_containerd and identity.native is None):
            return Native(link)
        harm = danger(identity.runtime, identity.version)
        if forced == "pod-events" or (forced is None and not is_containerd and not harm):
            if harm:
                better = "better leave the choice of the source to the library"
                self._log_once("danger", logging.WARNING, f"{harm}; {better}")
            events = PodEvents(link, sole=harm != "")
            unsupported = forced is None and self._empty_streams >= MAX_EMPTY_STREAMS
            why = "their streams keep ending without an event" if unsupported else await events.missing()
            if not why:
                return events
            if forced is not None:
                raise UnsupportedEngine(why)
            # Logged once by topic, not by text: the engine may word its reason differently each time.
            self._log_once("polling", logging.INFO, f"no pod events, listing every {self._poll:g} s instead ({why})")
        elif forced is None:
            why = "its own events are not available, and its pod events belong to a kubelet" if is_containerd else harm
            self._log_once("polling", logging.INFO, f"listing every {self._poll:g} s: {why}")
        self._empty_streams = 0
        return Polling(link, self._poll)

    def _log_once(self, topic: str, level: int, message: str) -> None:
        if topic not in self._logged:
            self._logged.add(topic)
            log.log(level, "CRI engine at %s: %s", self.address, printable(message, 1000))

    def _report_missing_pid(self, container: Container) -> None:
        self._without_pid += 1
        if self._without_pid == 1:
            log.warning(
                "CRI engine at %s: it reports no PID of container %s, which is kept without one; "
                "further ones are only counted",
                self.address,
                printable(container.id),
            )

    async def ping(self) -> None:
        """Ask for the version, which reads no container, and look whether the socket is still in its place."""
        self._connected.check_place()
        await Calls(self._connected).version("ping")

    async def signals(self) -> AsyncIterator[Signal]:
        """Follow the engine through the chosen source."""
        empty = True
        try:
            async with aclosing(self._current_source.signals()) as signals:
                async for signal in signals:
                    empty = empty and signal.type is SignalType.SUBSCRIBED
                    yield signal
        except EngineError as error:
            if refused(error):
                self._stream_ended(empty=empty)
            raise
        self._stream_ended(empty=empty)

    def _stream_ended(self, *, empty: bool) -> None:
        """Count a stream that the engine has ended or refused, if it reported nothing."""
        if self._source_name != PodEvents.name:
            return
        if not empty or time.monotonic() - self._connected_at > STABLE_AFTER:
            self._empty_streams = 0
        elif not self._counted:  # two streams that overlap count once
            self._empty_streams += 1
            self._counted = True

    async def listing(self) -> Listing:
        """List the containers and sandboxes that are alive.

        Raises:
            EngineError: the engine cannot be asked.
        """
        return await self._current_source.listing()

    async def inspect(self, id: str, /) -> Container | Dead | None:
        """Read one container or sandbox; return `Dead` or None if it does not run.

        Raises:
            EngineError: the engine cannot be asked, or does not know whether it runs.
        """
        return await self._current_source.inspect(id)

    @property
    def _connected(self) -> Connection:
        if self._connection is None:
            raise EngineUnavailable(f"CRI engine at {self.address}: not connected")
        return self._connection

    @property
    def _current_source(self) -> Source:
        if self._source is None:
            raise EngineUnavailable(f"CRI engine at {self.address}: not connected")
        return self._source

    async def close(self) -> None:
        """Close the connection; closing twice is fine."""
        self._connection = self._source = None
        await self._closing.aclose()


def watch(
    address: str | None = None,
    *,
    source: SourceName | None = None,
    poll: float = 2.0,
    pack: Pack | None = None,
    max_containers: int = MAX_CONTAINERS,
    **options: Unpack[WatcherOptions],
) -> Watcher[CRIEngine]:
    """Make a watcher for an engine that speaks Kubernetes' CRI.

    Example::

        async with cri.watch("unix:///run/crio/crio.sock") as watcher:
            for pod in await watcher.portfolio.pods():
                print(pod.namespace, pod.name, pod.container_names)

    Args:
        address: URL ``unix:///path``, or path of a socket. There is no default.
        source: where changes come from: "native", "pod-events" or "poll"; None to choose one automatically. See
            `CRIEngine`.
        poll: seconds between two listings, with a jitter of a tenth; only for source "poll".
        pack: returns the ``rucksack`` of a container. See `CRIEngine`.
        max_containers: most containers, most sandboxes, and most tasks, that a listing may have; with more it is
            refused. 100,000 by default.
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
        AddressError: the address is missing, or cannot be used.
        ValueError: an option has a value that is not allowed.
    """
    engine = CRIEngine(address, source=source, poll=poll, pack=pack, max_containers=max_containers)
    return Watcher(engine, **options)
