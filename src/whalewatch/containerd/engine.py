"""containerd: watch it through its own API (1.6 and later)."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Hashable, Mapping
from re import match
from typing import Any, Unpack

import grpc.aio
from google.protobuf.message import DecodeError

from whalewatch._adapter.events import EventDeduplicator, LostEvents
from whalewatch._adapter.rucksack import Packer
from whalewatch._core.engine import MAX_CONTAINERS, Dead, ListedContainer, Listing, Signal, SignalType
from whalewatch._core.errors import EngineError, EngineTimeout, EngineUnavailable, UnsupportedEngine
from whalewatch._core.model import Container
from whalewatch._core.text import logger, printable
from whalewatch._core.watcher import Watcher, WatcherOptions
from whalewatch._grpc.address import endpoint
from whalewatch._grpc.connection import Connection
from whalewatch._grpc.door import Door
from whalewatch._grpc.listings import Items
from whalewatch._wire import containerd_pb2 as wire
from whalewatch.containerd.calls import USUAL_SOCKETS, Calls
from whalewatch.containerd.members import Members
from whalewatch.containerd.namespaces import LISTING_TIMEOUT, list_each
from whalewatch.containerd.reading import (
    Inspection,
    alive,
    container,
    filters,
    inspection,
    namespace_of,
    process_id,
    signal,
    split,
    text,
    within,
)
from whalewatch.containerd.recognition import recognising

__all__ = ["ContainerdEngine", "Inspection", "watch"]

log: logging.Logger = logger("whalewatch.containerd")

OLDEST = (1, 6)
"""The oldest version of containerd that this adapter knows."""

DEFAULT_ADDRESS = "unix:///run/containerd/containerd.sock"

IGNORED = ("moby", "k8s.io")
"""Namespaces of Docker and of the CRI: these engines know more about their containers than containerd does."""

REMEDY = "run as root, or give the socket to a group of the user (gid under [grpc] in containerd's configuration)"

Listed = tuple[Items[wire.Task], Items[wire.Container]]

Pack = Callable[[Container, Inspection], Any]
"""A function that returns the rucksack of a container, from the container and its `Inspection`."""


class ContainerdEngine:
    """Adapter to containerd.

    It sees the containers of all namespaces except the ignored ones; namespaces may appear and disappear. A container
    of the namespace "default" has its own id and name; in other namespaces both have a prefix, as in "namespace/id".
    The name is the one that nerdctl gave (label ``nerdctl/name``); without that label, it is the id. The adapter never
    writes to containerd.

    containerd does not replay events, and does not report when a subscription exists. So the adapter sends the
    subscription first, then waits for the answer to another call on the same connection, and only then lists: a server
    begins calls in the order in which they come. As this is no proof, the watcher lists once more after its
    synchronisation.

    Args:
        address: URL ``unix:///path``, or path of a socket; None is `/run/containerd/containerd.sock`.
        ignore: namespaces to ignore.
        pack: returns the ``rucksack`` of a container, from the container and its `Inspection`. It is called in the
            watcher's event loop each time the container is read, also from a listing, and must not block.
        max_containers: most containers, and most tasks, that a listing may have; with more it is refused.

    Attributes:
        max_containers: that option.

    Raises:
        AddressError: the address cannot be used.
        ValueError: `ignore` is text instead of a collection of names, or `max_containers` is less than 1.
    """

    type: str = "containerd"
    source: str = "native"

    def __init__(
        self,
        address: str | None = None,
        *,
        ignore: Collection[str] = IGNORED,
        pack: Pack | None = None,
        max_containers: int = MAX_CONTAINERS,
    ) -> None:
        if isinstance(ignore, str):
            msg = f"ignore takes a collection of namespaces, such as {(ignore,)!r}"
            raise ValueError(msg)  # noqa: TRY004 - as for all options with a value that is not allowed
        address = DEFAULT_ADDRESS if address is None else address
        self._endpoint = endpoint(address, engine="containerd", example=DEFAULT_ADDRESS)
        self._ignored = frozenset(ignore)
        self._packer = Packer(pack, log)
        self._calls: Counter[str] = Counter()
        self._current_calls: Calls | None = None
        self._id: str | None = None
        self._version: str | None = None
        self._pid: int | None = None
        self._identity: Hashable = None
        self._progress = 0
        self._members = Members()
        self.max_containers = max_containers
        self._door = Door(log, f"containerd engine at {self.address}", max_containers)
        self._seen, self._lost = EventDeduplicator(), LostEvents(log)

    @property
    def address(self) -> str:
        """URL of the engine."""
        return self._endpoint.address

    @property
    def pid(self) -> int | None:
        """PID of containerd, reported by itself (1.7 and later) or by the kernel; None before the first connection."""
        return self._pid

    @property
    def client(self) -> grpc.aio.Channel | None:
        """Channel of the current connection, for the application's own calls; None before the first connection."""
        return self._current_calls.connection.client if self._current_calls else None

    @property
    def calls(self) -> Mapping[str, int]:
        """Number of calls so far, by kind.

        Each connection, each audit and each subscription after a cut one makes the calls "version" and "introspection";
        each subscription "events" and "ping"; each listing "namespaces", and for each namespace "tasks" and
        "containers"; each inspect "task" and "container".
        """
        return self._calls

    @property
    def items_left_out(self) -> int:
        """Number of listed containers, tasks and namespaces left out as they have no valid id; each counts once."""
        return self._door.left_out

    @property
    def progress(self) -> int:
        """Number of containers and namespaces listed so far."""
        return self._progress

    async def id(self) -> str:
        """Return the engine's own identifier, which stays the same when it restarts.

        Raises:
            EngineError: the engine cannot be asked.
        """
        if self._id is None:
            await self._identify_separately()
        assert self._id is not None
        return self._id

    async def version(self) -> str:
        """Return the engine's version, such as "1.7.24".

        Raises:
            EngineError: the engine cannot be asked.
        """
        if self._version is None:
            await self._identify_separately()
        assert self._version is not None
        return self._version

    async def _identify_separately(self) -> None:
        """Read the engine's identity over another connection: a watcher may be connecting, or may never connect."""
        calls = self._new()
        try:
            await self._identify(calls)
        finally:
            await calls.connection.close()

    def _new(self) -> Calls:
        connection = Connection(
            self._endpoint, engine="containerd", remedy=REMEDY, usual=USUAL_SOCKETS, calls=self._calls, door=self._door
        )
        return Calls(connection)

    async def connect(self) -> None:
        """Make a new connection, and read the engine's identity."""
        await self.close()
        self._seen, self._lost = EventDeduplicator(), LostEvents(log)
        self._members = Members()
        calls = self._current_calls = self._new()
        self._identity = await self._identify(calls)
        calls.connection.check_place()

    async def _identify(self, calls: Calls) -> Hashable:
        """Read the engine's identity, and return what is another value once it was restarted."""
        async with recognising(calls.connection):
            version = await calls.version()
        if (number := match(r"v?(\d+)\.(\d+)", version)) and tuple(map(int, number.groups())) < OLDEST:
            raise UnsupportedEngine(
                calls.connection.message(f"containerd {printable(version)} is too old: 1.6 or later is needed")
            )
        server = await calls.server()
        self._version, self._id = version, text(server.uuid)
        self._pid = process_id(server.pid) or calls.connection.pid()
        return self._id, server.pid, calls.connection.listener()

    async def is_same_engine(self) -> bool:
        """Ask over the connection, which outlives no restart, and look at who listens on the socket.

        containerd does not replay events: what happens between two streams is found by the listing that follows.

        Raises:
            EngineError: the engine cannot be asked.
        """
        return await self._identify(self._connected) == self._identity

    async def ping(self) -> None:
        """Ask for the version, which reads no container, and look whether the socket is still in its place."""
        self._connected.connection.check_place()
        await self._connected.version("ping")

    async def signals(self) -> AsyncIterator[Signal]:
        """Follow the events of all namespaces; the engine filters them itself."""
        calls = self._connected
        async with calls.events(filters(self._ignored)) as envelopes:
            await calls.version("ping")
            yield Signal(SignalType.SUBSCRIBED)
            async for message in envelopes:
                received = self._read(calls.connection, message)
                if received is None:
                    continue
                yield received
                if received.type is SignalType.EXITED:
                    self._members.remove(received.id)
                    # When the shim of a sandbox is killed, containerd 2.1 does not report the exits of its containers.
                    for id in self._members.of(received.id):
                        yield Signal(SignalType.CHANGED, id, likely_exiting=True)

    def _read(self, connection: Connection, message: bytes) -> Signal | None:
        """Read an event; return LOST if it cannot be understood, None if it is of no interest."""
        if self._seen.seen_before(message):
            return None
        try:
            received = signal(message, self.address)
        except (DecodeError, ValueError) as error:
            return self._lost.report(connection.message(f"an event makes no sense: {printable(error)}"))
        # The engine leaves these namespaces out already, unless its filters cannot express the name.
        return None if received is not None and namespace_of(received.id) in self._ignored else received

    async def listing(self) -> Listing:
        """List the containers that are alive, in all namespaces.

        A container that is missing in the listing may be alive: containerd leaves out tasks whose shim does not answer.

        Raises:
            EngineError: no namespace could be listed, or there are too many namespaces, tasks or containers.
        """
        calls = self._connected
        namespaces = [name for name in await calls.namespaces() if name not in self._ignored]
        containers: dict[str, ListedContainer] = {}
        listed = Items(calls.connection, "tasks", wire.Task), Items(calls.connection, "containers", wire.Container)

        async def list_one(namespace: str, limit: asyncio.Timeout) -> None:
            if not any(items.refusal for items in listed):
                containers.update(await self._list_namespace(namespace, calls, limit, listed))

        failed = await list_each(namespaces, list_one, calls.connection.message)
        refusals = [items.refusal for items in listed if items.refusal is not None]
        if refusals or (failed and len(failed) == len(namespaces)):
            raise next(iter([*refusals, *failed.values()]))
        return Listing(containers=containers, absence_is_death=False, failed=failed, scope=namespace_of)

    async def _list_namespace(
        self, namespace: str, calls: Calls, limit: asyncio.Timeout, listed: Listed
    ) -> dict[str, ListedContainer]:
        """List the containers of one namespace that are alive; each that arrives extends the time limit.

        Tasks come first: a container that is created after that is not among them, but its start is reported.
        """
        tasks = await calls.tasks(namespace, listed[0])
        self._progress += 1
        containers: dict[str, ListedContainer] = {}

        def receive(id: str, found: wire.Container) -> None:
            self._progress += 1
            if not limit.expired():
                limit.reschedule(asyncio.get_running_loop().time() + LISTING_TIMEOUT)
            if tasks is None:  # shims hang: an inspect has to read each container
                containers[within(namespace, id)] = ListedContainer()
                return
            task = tasks.get(id)
            if task is None or alive(task) is False:
                return
            read = container(namespace, found, task, self.address)
            fits = listed[1].fits(found.ByteSize() - found.spec.ByteSize(), len(found.labels))
            # If the shim did not answer, or too much is kept already, an inspect has to read the container.
            kept = self._keep(namespace, read, found, task) if fits and alive(task) else None
            containers[read.id] = ListedContainer(kept)

        await calls.containers(namespace, receive, listed[1])
        return containers

    async def inspect(self, id: str, /) -> Container | Dead | None:
        """Read one container; return `Dead` if its task has stopped, or was deleted.

        Return None if it was removed, its task has not started, or it belongs to an ignored namespace.

        Raises:
            EngineError: the engine or the container's shim cannot be asked.
        """
        calls = self._connected
        namespace, name = split(id)
        if namespace in self._ignored:
            return None
        task = await calls.task(namespace, name)
        if task is not None and task.status == wire.CREATED:
            return None
        lives = task is not None and alive(task)
        if lives is None:
            raise EngineTimeout(calls.connection.message(f"the shim of {printable(id)} does not answer"))
        try:
            found = await calls.container(namespace, name)
        except EngineError:
            if lives:
                raise
            found = None  # that nothing runs is certain all the same
        if found is None:
            return None
        read = container(namespace, found, task, self.address)
        if task is None:
            return Dead(read)
        if not lives:
            return Dead(read, task.exit_status)
        return self._keep(namespace, read, found, task)

    def _keep(self, namespace: str, read: Container, found: wire.Container, task: wire.Task) -> Container:
        """Remember the sandbox of a container that is alive, and fill its rucksack."""
        if found.sandbox:
            self._members.add(read.id, within(namespace, text(found.sandbox)))
        return self._packer.pack(read, inspection(namespace, found, task)) if self._packer else read

    @property
    def _connected(self) -> Calls:
        if self._current_calls is None:
            raise EngineUnavailable(f"containerd engine at {self.address}: not connected")
        return self._current_calls

    async def close(self) -> None:
        """Close the connection; closing twice is fine."""
        calls, self._current_calls = self._current_calls, None
        if calls is not None:
            await calls.connection.close()


def watch(
    address: str | None = None,
    *,
    ignore: Collection[str] = IGNORED,
    pack: Pack | None = None,
    max_containers: int = MAX_CONTAINERS,
    **options: Unpack[WatcherOptions],
) -> Watcher[ContainerdEngine]:
    """Make a watcher for containerd.

    Example::

        async with containerd.watch(ignore=()) as watcher:
            print(await watcher.portfolio.containers())

    Args:
        address: URL ``unix:///path``, or path of a socket; None is `/run/containerd/containerd.sock`.
        ignore: namespaces to ignore; by default those of Docker and of the CRI, "moby" and "k8s.io".
        pack: returns the ``rucksack`` of a container. See `ContainerdEngine`.
        max_containers: most containers, and most tasks, that a listing may have; with more it is refused. 100,000 by
            default.
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
    return Watcher(ContainerdEngine(address, ignore=ignore, pack=pack, max_containers=max_containers), **options)
