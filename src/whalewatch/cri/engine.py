"""Kubernetes' CRI: watch any engine that speaks it, such as containerd and CRI-O."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import Any, Literal, Unpack, get_args

import attrs
import grpc.aio

from whalewatch._adapter.events import EventDeduplicator, LostEvents
from whalewatch._adapter.rucksack import Packer
from whalewatch._core.engine import Listing, Signal, SignalType
from whalewatch._core.errors import AddressError, EngineError, EngineUnavailable, UnsupportedEngine
from whalewatch._core.model import Container
from whalewatch._core.text import printable
from whalewatch._core.watcher import Watcher, WatcherOptions
from whalewatch._grpc.address import endpoint
from whalewatch._grpc.connection import Connection, denied
from whalewatch.containerd import calls as containerd
from whalewatch.containerd.reading import text
from whalewatch.cri.calls import Calls
from whalewatch.cri.native import Native
from whalewatch.cri.pod_events import PodEvents, refused
from whalewatch.cri.polling import Polling
from whalewatch.cri.reading import Inspection
from whalewatch.cri.records import Records
from whalewatch.cri.source import Link, Source

__all__ = ["CRIEngine", "Inspection", "watch"]

log: logging.Logger = logging.getLogger("whalewatch.cri")

EXAMPLE = "unix:///run/containerd/containerd.sock"

USUAL = (EXAMPLE, "unix:///run/crio/crio.sock", "unix:///run/cri-dockerd.sock")
"""Where CRI engines usually are. There is no default: a host may well have several."""

REMEDY = "run as root: the sockets of CRI engines belong to it"

CONTAINERD = "containerd"
"""What containerd calls itself."""

BARREN = 2
"""Connections in a row whose pod events may end by themselves, or be refused late, without an event, before polling
takes their place."""

LASTING = 60.0
"""Seconds of a connection after which that speaks against them no longer: nothing happened, and the engine ended."""

Pack = Callable[[Container, Inspection], Any]
"""Makes the rucksack of a container, from the container and an `Inspection`."""

SourceName = Literal["native", "pod-events", "poll"]
"""Where changes come from."""


@attrs.frozen
class _Identity:
    runtime: str
    version: str
    id: str
    pid: int | None
    native: UnsupportedEngine | None
    """Why containerd's own API is not there, None if it is."""


class CRIEngine:
    """Adapter to an engine that speaks Kubernetes' CRI (runtime.v1).

    Containers that run and sandboxes that are ready are alive. A container bears its own name, which other pods may use
    too, and a sandbox that of its pod: of several, ``portfolio.container(name)`` gives the earliest started (with
    source "native", which tells no starts, the one whose id comes first), and ``portfolio.pod(uid)`` all of one pod.
    Nothing is ever changed in the engine.

    Where changes come from is chosen anew with each connection:

    * "native": containerd's own events and tasks, where the socket is containerd's.
    * "pod-events": the CRI's own events. containerd 1.7 gives each event to one reader only, so that a reader takes it
      from the kubelet; therefore never chosen for containerd.
    * "poll": listings every `poll` seconds, for engines with neither. What lives shorter may never be seen.

    Args:
        address: URL ``unix:///path``, or path of a socket. There is no default.
        source: "native", "pod-events" or "poll", to force one; None to have it chosen.
        poll: seconds between two listings, jittered by a tenth; of source "poll" only.
        pack: makes the ``rucksack`` of a container from an `Inspection`; called on the watcher's loop whenever one is
            read, from a listing too; must not block.

    Raises:
        AddressError: the address is missing, or cannot be used.
        ValueError: `source` is none of the three, or `poll` is not positive.
    """

    type = "cri"

    def __init__(
        self,
        address: str | None = None,
        *,
        source: SourceName | None = None,
        poll: float = 2.0,
        pack: Pack | None = None,
    ) -> None:
        if not address:
            msg = f"a CRI engine has no default address: give that of its socket, usually one of {', '.join(USUAL)}"
            raise AddressError(msg)
        if source is not None and source not in get_args(SourceName):
            msg = f"source must be one of {', '.join(get_args(SourceName))}, or None, not {printable(source)!r}"
            raise ValueError(msg)
        if not poll > 0:
            msg = f"poll must be positive, not {poll}"
            raise ValueError(msg)
        self._endpoint = endpoint(address, engine="CRI", example=EXAMPLE)
        self._wanted = source
        self._poll = poll
        self._packer = Packer(pack, log)
        self._calls: Counter[str] = Counter()
        self._connection: Connection | None = None
        self._closing = AsyncExitStack()
        self._source: Source | None = None
        self._shown: str = source or ""
        self._identity: _Identity | None = None
        self._without_pid = 0
        self._barren = 0
        self._counted = False
        self._connected_at = 0.0
        self._said: set[str] = set()

    @property
    def address(self) -> str:
        """URL of the engine."""
        return self._endpoint.address

    @property
    def source(self) -> str:
        """Where changes come from: "native", "pod-events" or "poll"; "" before it was chosen."""
        return self._shown

    @property
    def runtime(self) -> str | None:
        """What the engine calls itself, such as "containerd" or "cri-o"; None before the first connection."""
        return self._identity.runtime if self._identity else None

    @property
    def pid(self) -> int | None:
        """Process of the engine, as it tells itself (containerd 1.7 and later) or as the kernel does.

        None before the first connection.
        """
        return self._identity.pid if self._identity else None

    @property
    def client(self) -> grpc.aio.Channel | None:
        """The channel of the current connection, for calls of the application's own; None before the first."""
        return self._connection.client if self._connection else None

    @property
    def calls(self) -> Mapping[str, int]:
        """Calls made so far.

        "version" for each connection, to containerd "introspection" too; "events" and "ping" for each subscription;
        "containers" and "sandboxes" for each listing, with source "native" "tasks" too. For each inspect "container" or
        "sandbox" (its entry in a listing, if it is not known), and its PID by "container-status" or "sandbox-status",
        with source "native" by "task", which for those that are not known counts "container" once more.
        """
        return self._calls

    @property
    def without_pid(self) -> int:
        """How often a container that runs was read, and the engine told no PID of it."""
        return self._without_pid

    async def id(self) -> str:
        """The identifier of containerd, which it keeps over restarts; of others what they call themselves."""
        return (await self._introduced()).id

    async def version(self) -> str:
        """The engine's version, such as "1.7.24"."""
        return (await self._introduced()).version

    async def _introduced(self) -> _Identity:
        """Who it is; learnt by a connection of its own, for a watcher may be connecting, or never will."""
        if self._identity is None:
            connection = self._new()
            try:
                self._identity = await _introduce(connection)
            finally:
                await connection.close()
        return self._identity

    def _new(self) -> Connection:
        return Connection(self._endpoint, engine="CRI", remedy=REMEDY, calls=self._calls)

    async def connect(self) -> None:
        """Make a new connection; learn the engine's identity, and choose where changes come from."""
        await self.close()
        connection = self._connection = self._new()
        self._closing.push_async_callback(connection.close)
        self._counted, self._connected_at = False, time.monotonic()
        identity = self._identity = await _introduce(connection)
        calls = Calls(connection)
        link = Link(
            calls,
            Records(calls),
            EventDeduplicator(),
            LostEvents(log),
            self.address,
            self._packer,
            self._closing,
            self._tell_missing_pid,
        )
        source = self._source = await self._chosen(link, identity)
        self._shown = source.name

    async def _chosen(self, link: Link, identity: _Identity) -> Source:
        wanted = self._wanted
        of_containerd = identity.runtime == CONTAINERD
        if wanted == "native" and identity.native is not None:
            raise identity.native
        if wanted == "native" or (wanted is None and of_containerd and identity.native is None):
            return Native(link)
        if wanted == "pod-events" and of_containerd:
            competing = identity.version.startswith("1.7.")
            if competing:
                self._say_once(
                    "competing",
                    logging.WARNING,
                    "containerd 1.7 gives each pod event to one reader only: this watcher takes events from a kubelet, "
                    "and a kubelet from it; better leave the choice of the source to the library",
                )
            return PodEvents(link, competing=competing)  # not tried out: a stream that ends takes an event along
        if wanted == "pod-events" or (wanted is None and not of_containerd):
            events = PodEvents(link)
            given_up = wanted is None and self._barren >= BARREN
            why = "their streams keep ending without an event" if given_up else await events.missing()
            if not why:
                return events
            if wanted is not None:
                raise UnsupportedEngine(why)
            # Why may be in words of the engine's that differ each time.
            self._say_once("polling", logging.INFO, f"no pod events, listing every {self._poll:g} s instead ({why})")
        elif wanted is None:
            why = "its own events are not to be had, and its pod events are a kubelet's"
            self._say_once("polling", logging.INFO, f"listing every {self._poll:g} s: {why}")
        self._barren = 0
        return Polling(link, self._poll)

    def _say_once(self, matter: str, level: int, message: str) -> None:
        if matter not in self._said:
            self._said.add(matter)
            log.log(level, "CRI engine at %s: %s", self.address, message)

    def _tell_missing_pid(self, container: Container) -> None:
        self._without_pid += 1
        if self._without_pid == 1:
            log.warning(
                "CRI engine at %s: it tells no PID of container %s, which is kept without one; "
                "further ones are only counted",
                self.address,
                printable(container.id),
            )

    async def ping(self) -> None:
        """Ask for the version: that touches no container."""
        await Calls(self._connected).version("ping")

    async def signals(self) -> AsyncIterator[Signal]:
        """Follow the engine by whatever source was chosen."""
        told = False
        try:
            async with aclosing(self._following.signals()) as signals:
                async for signal in signals:
                    told = told or signal.type is not SignalType.SUBSCRIBED
                    yield signal
        except EngineError as error:
            if refused(error):
                self._stream_ended(told=told)
            raise
        self._stream_ended(told=told)

    def _stream_ended(self, *, told: bool) -> None:
        """Take note of a stream that the engine has ended or refused, and of whether it told anything."""
        if self._shown != PodEvents.name:
            return
        if told or time.monotonic() - self._connected_at > LASTING:
            self._barren = 0
        elif not self._counted:  # of two that overlap one
            self._barren += 1
            self._counted = True

    async def listing(self) -> Listing:
        """List what runs."""
        return await self._following.listing()

    async def inspect(self, id: str, /) -> Container | None:
        """Read one container or sandbox; None if it does not run."""
        return await self._following.inspect(id)

    @property
    def _connected(self) -> Connection:
        if self._connection is None:
            raise EngineUnavailable(f"CRI engine at {self.address}: not connected")
        return self._connection

    @property
    def _following(self) -> Source:
        if self._source is None:
            raise EngineUnavailable(f"CRI engine at {self.address}: not connected")
        return self._source

    async def close(self) -> None:
        """Let go of the connection; closing twice is fine."""
        self._connection = self._source = None
        await self._closing.aclose()


async def _introduce(connection: Connection) -> _Identity:
    answer = await Calls(connection).version()
    runtime, version = text(answer.runtime_name), text(answer.runtime_version).removeprefix("v")
    missing = UnsupportedEngine(connection.message("source native needs containerd's own API, which is not there"))
    if runtime == CONTAINERD:
        try:
            server = await containerd.Calls(connection).server()
        except EngineError as error:
            if not isinstance(error, UnsupportedEngine) and not denied(error):
                raise
            missing.__cause__ = error
        else:
            return _Identity(runtime, version, text(server.uuid), server.pid or connection.pid(), None)
    return _Identity(runtime, version, runtime, connection.pid(), missing)


def watch(
    address: str | None = None,
    *,
    source: SourceName | None = None,
    poll: float = 2.0,
    pack: Pack | None = None,
    **options: Unpack[WatcherOptions],
) -> Watcher[CRIEngine]:
    """Make a watcher for an engine that speaks Kubernetes' CRI.

    Args:
        address: URL ``unix:///path``, or path of a socket. There is no default.
        source: where changes come from: "native", "pod-events" or "poll"; None to have it chosen. See `CRIEngine`.
        poll: seconds between two listings, of source "poll" only.
        pack: makes the ``rucksack`` of a container. See `CRIEngine`.
        retry: how to retry after a failure. By default the watcher retries for ever, after growing delays with jitter.
            None never retries: the first failure ends the watch.
        heartbeat: seconds between checks that the engine still answers; 10 by default.
        audit: seconds between audits, which compare a listing with the picture and renew the event stream; 300 by
            default. None makes only the audit that confirms each synchronisation.
        call_timeout: seconds that the engine has to answer a call; 5 by default. A listing has `heartbeat` seconds
            more.
        concurrency: number of containers that are inspected at the same time; 8 by default.
        clock: returns the time, in aware UTC, for changes that the engine does not date.
        random: for jitter (`random.Random`).

    Raises:
        AddressError: the address is missing, or cannot be used.
        ValueError: an option has a value that is not allowed.
    """
    return Watcher(CRIEngine(address, source=source, poll=poll, pack=pack), **options)
