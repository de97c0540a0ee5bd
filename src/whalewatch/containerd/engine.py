"""containerd: watch it through its own API (1.6 and later)."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from typing import Any, Unpack

import grpc.aio
from google.protobuf.message import DecodeError

from whalewatch._adapter.events import EventDeduplicator, LostEvents
from whalewatch._adapter.rucksack import Packer
from whalewatch._core.engine import Dead, ListedContainer, Listing, Signal, SignalType
from whalewatch._core.errors import EngineError, EngineTimeout, EngineUnavailable
from whalewatch._core.model import Container
from whalewatch._core.slots import release_when_slow
from whalewatch._core.text import printable
from whalewatch._core.watcher import Watcher, WatcherOptions
from whalewatch._grpc.address import endpoint
from whalewatch._grpc.connection import Connection
from whalewatch._wire import containerd_pb2 as wire
from whalewatch.containerd.calls import Calls
from whalewatch.containerd.reading import (
    Inspection,
    alive,
    container,
    filters,
    inspection,
    namespace_of,
    signal,
    split,
    text,
    within,
)

__all__ = ["ContainerdEngine", "Inspection", "watch"]

log: logging.Logger = logging.getLogger("whalewatch.containerd")

DEFAULT_ADDRESS = "unix:///run/containerd/containerd.sock"

IGNORED = ("moby", "k8s.io")
"""Namespaces of Docker and of the CRI: both engines know more of their containers than containerd does."""

BREADTH = 8
"""Namespaces that are listed at the same time, without those that are slow."""

PATIENCE = 10.0
"""Seconds that the listing of namespaces may take: less than the watcher gives to the whole by default, so that those
that hang do not hide the others."""

Pack = Callable[[Container, Inspection], Any]
"""Makes the rucksack of a container, from the container and an `Inspection`."""


class ContainerdEngine:
    """Adapter to containerd.

    The containers of all namespaces but the ignored ones are seen; namespaces may come and go. In namespace "default"
    a container has its own id and name, elsewhere both are prefixed, as in "namespace/id". The name is that of nerdctl
    (label ``nerdctl/name``), else the id. Nothing is ever written to containerd.

    Events are live only, and containerd does not tell when a subscription exists. So the subscription is sent first,
    then a call on the same connection is answered, and only then the listing begins: a server takes up calls in the
    order in which they come. As that is no proof, the watcher lists once more after its synchronisation.

    Args:
        address: URL ``unix:///path``, or path of a socket; None is `/run/containerd/containerd.sock`.
        ignore: namespaces to leave out.
        pack: makes the ``rucksack`` of a container from an `Inspection`; called on the watcher's loop whenever one is
            read, from a listing too; must not block.

    Raises:
        AddressError: the address cannot be used.
        ValueError: `ignore` is text instead of a collection of names.
    """

    type = "containerd"
    source = "native"

    def __init__(
        self, address: str | None = None, *, ignore: Collection[str] = IGNORED, pack: Pack | None = None
    ) -> None:
        if isinstance(ignore, str):
            msg = f"ignore takes a collection of namespaces, such as {(ignore,)!r}"
            raise ValueError(msg)  # noqa: TRY004 - as all options that make no sense
        given = DEFAULT_ADDRESS if address is None else address
        self._endpoint = endpoint(given, engine="containerd", example=DEFAULT_ADDRESS)
        self._ignored = frozenset(ignore)
        self._packer = Packer(pack, log)
        self._calls: Counter[str] = Counter()
        self._connected_by: Calls | None = None
        self._id: str | None = None
        self._version: str | None = None
        self._pid: int | None = None
        self._progress = 0
        self._seen, self._lost = EventDeduplicator(), LostEvents(log)

    @property
    def address(self) -> str:
        """URL of the engine."""
        return self._endpoint.address

    @property
    def pid(self) -> int | None:
        """Process of containerd, as it tells itself (1.7 and later) or as the kernel does.

        None before the first connection.
        """
        return self._pid

    @property
    def client(self) -> grpc.aio.Channel | None:
        """The channel of the current connection, for calls of the application's own; None before the first."""
        return self._connected_by.connection.client if self._connected_by else None

    @property
    def calls(self) -> Mapping[str, int]:
        """Calls made so far.

        "version" and "introspection" for each connection, "events" and "ping" for each subscription, "namespaces" for
        each listing with "tasks" and "containers" for each namespace, "task" and "container" for each inspect.
        """
        return self._calls

    @property
    def progress(self) -> int:
        """Containers and namespaces listed so far."""
        return self._progress

    async def id(self) -> str:
        """The engine's own identifier, which it keeps over restarts."""
        if self._id is None:
            await self._introduce_apart()
        assert self._id is not None
        return self._id

    async def version(self) -> str:
        """The engine's version, such as "1.7.24"."""
        if self._version is None:
            await self._introduce_apart()
        assert self._version is not None
        return self._version

    async def _introduce_apart(self) -> None:
        """Learn who it is by a connection of its own: a watcher may be connecting, or never will."""
        calls = self._new()
        try:
            await self._introduce(calls)
        finally:
            await calls.connection.close()

    def _new(self) -> Calls:
        remedy = "run as root, or let the user's group have the socket (gid under [grpc] in containerd's configuration)"
        return Calls(Connection(self._endpoint, engine="containerd", remedy=remedy, calls=self._calls))

    async def connect(self) -> None:
        """Make a new connection; learn the engine's identity."""
        await self.close()
        self._seen, self._lost = EventDeduplicator(), LostEvents(log)
        calls = self._connected_by = self._new()
        await self._introduce(calls)

    async def _introduce(self, calls: Calls) -> None:
        version = await calls.version()
        server = await calls.server()
        self._version, self._id = version, text(server.uuid)
        self._pid = server.pid or calls.connection.pid()

    async def ping(self) -> None:
        """Ask for the version: that touches no container."""
        await self._connected.version("ping")

    async def signals(self) -> AsyncIterator[Signal]:
        """Follow the events of all namespaces, filtered by the engine itself."""
        calls = self._connected
        async with calls.events(filters(self._ignored)) as envelopes:
            await calls.version("ping")
            yield Signal(SignalType.SUBSCRIBED)
            async for message in envelopes:
                told = self._read(calls.connection, message)
                if told is not None:
                    yield told

    def _read(self, connection: Connection, message: bytes) -> Signal | None:
        """Understand an event; LOST for what cannot be understood."""
        if self._seen.seen_before(message):
            return None
        try:
            envelope = wire.Envelope.FromString(message)
            # The engine leaves these out already, unless the name of one is beyond its filters.
            return None if text(envelope.namespace) in self._ignored else signal(envelope)
        except (DecodeError, ValueError) as error:
            return self._lost.report(connection.message(f"an event makes no sense: {printable(error)}"))

    async def listing(self) -> Listing:
        """List what is alive, namespace by namespace.

        That a container is missing is no proof of its death: containerd leaves out tasks whose shim does not answer.
        """
        calls = self._connected
        namespaces = [name for name in await calls.namespaces() if name not in self._ignored]
        seen: dict[str, ListedContainer] = {}
        failed: dict[str, EngineError] = {}
        free = asyncio.Semaphore(BREADTH)
        until = asyncio.get_running_loop().time() + PATIENCE

        async def look_at(namespace: str) -> None:
            try:
                async with asyncio.timeout_at(until):
                    await free.acquire()
                    with release_when_slow(free, PATIENCE):
                        seen.update(await self._seen_in(namespace, calls))
            except EngineError as error:
                failed[namespace] = error
            except TimeoutError:
                failed[namespace] = EngineTimeout(calls.connection.message(f"namespace {namespace!r} does not answer"))

        async with asyncio.TaskGroup() as tasks:
            for namespace in namespaces:
                tasks.create_task(look_at(namespace), name=f"whalewatch listing of {namespace}")
        if failed and len(failed) == len(namespaces):
            raise next(iter(failed.values()))
        return Listing(containers=seen, absence_is_death=False, failed=failed, scope=namespace_of)

    async def _seen_in(self, namespace: str, calls: Calls) -> dict[str, ListedContainer]:
        """What is alive in one namespace.

        The tasks are asked for first: a container that is made meanwhile has no task yet, and its start is told.
        """
        listed = await calls.tasks(namespace)
        tasks = {task.id: task for task in listed or () if alive(task) is not False}
        self._progress += 1
        seen: dict[str, ListedContainer] = {}

        def take(found: wire.Container) -> None:
            self._progress += 1
            if listed is None:  # shims hang: each container is left to an inspect
                seen[within(namespace, text(found.id))] = ListedContainer()
                return
            task = tasks.get(found.id)
            if task is None:
                return
            read = container(namespace, found, task, self.address)
            # A task of which nothing is known is left to an inspect.
            seen[read.id] = ListedContainer(self._packed(namespace, read, found, task) if alive(task) else None)

        await calls.containers(namespace, take)
        return seen

    async def inspect(self, id: str, /) -> Container | Dead | None:
        """Read one container; `Dead` if its task has stopped.

        None if it is gone, has no task, or belongs to a namespace that is ignored.
        """
        calls = self._connected
        namespace, own = split(id)
        if namespace in self._ignored:
            return None
        task = await calls.task(namespace, own)
        if task is None or task.status == wire.CREATED:
            return None
        if alive(task) is None:
            raise EngineTimeout(calls.connection.message(f"the shim of {printable(id)} does not answer"))
        found = await calls.container(namespace, own)
        if found is None:
            return None
        read = container(namespace, found, task, self.address)
        if not alive(task):
            return Dead(read, task.exit_status)
        return self._packed(namespace, read, found, task)

    def _packed(self, namespace: str, read: Container, found: wire.Container, task: wire.Task) -> Container:
        return self._packer.pack(read, inspection(namespace, found, task)) if self._packer else read

    @property
    def _connected(self) -> Calls:
        if self._connected_by is None:
            raise EngineUnavailable(f"containerd engine at {self.address}: not connected")
        return self._connected_by

    async def close(self) -> None:
        """Let go of the connection; closing twice is fine."""
        calls, self._connected_by = self._connected_by, None
        if calls is not None:
            await calls.connection.close()


def watch(
    address: str | None = None,
    *,
    ignore: Collection[str] = IGNORED,
    pack: Pack | None = None,
    **options: Unpack[WatcherOptions],
) -> Watcher[ContainerdEngine]:
    """Make a watcher for containerd.

    Args:
        address: URL ``unix:///path``, or path of a socket; None is `/run/containerd/containerd.sock`.
        ignore: namespaces to leave out. See `ContainerdEngine`.
        pack: makes the ``rucksack`` of a container. See `ContainerdEngine`.
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
        AddressError: the address cannot be used.
        ValueError: an option has a value that is not allowed.
    """
    return Watcher(ContainerdEngine(address, ignore=ignore, pack=pack), **options)
