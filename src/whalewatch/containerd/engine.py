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
from whalewatch._core.engine import Dead, ListedContainer, Listing, Signal, SignalType
from whalewatch._core.errors import EngineError, EngineTimeout, EngineUnavailable, UnsupportedEngine
from whalewatch._core.model import Container
from whalewatch._core.slots import release_when_slow
from whalewatch._core.text import printable
from whalewatch._core.watcher import Watcher, WatcherOptions
from whalewatch._grpc.address import endpoint
from whalewatch._grpc.connection import Connection
from whalewatch._wire import containerd_pb2 as wire
from whalewatch.containerd.calls import USUAL_SOCKETS, Calls
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
from whalewatch.containerd.recognition import recognising

__all__ = ["ContainerdEngine", "Inspection", "watch"]

log: logging.Logger = logging.getLogger("whalewatch.containerd")

OLDEST = (1, 6)
"""The oldest version of containerd that this adapter knows."""

DEFAULT_ADDRESS = "unix:///run/containerd/containerd.sock"

IGNORED = ("moby", "k8s.io")
"""Namespaces of Docker and of the CRI: these engines know more about their containers than containerd does."""

LISTED_AT_ONCE = 8
"""Number of namespaces that are listed at the same time; slow ones do not count."""

LISTING_TIMEOUT = 10.0
"""Seconds that the listing of a namespace may take until it makes progress. This is less than the watcher allows by
default, so that namespaces that hang do not hide the others."""

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
        self._sandboxes: dict[str, str] = {}  # by container that was read: the sandbox that it belongs to
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
        remedy = (
            "run as root, or give the socket to a group of the user (gid under [grpc] in containerd's configuration)"
        )
        return Calls(
            Connection(self._endpoint, engine="containerd", remedy=remedy, usual=USUAL_SOCKETS, calls=self._calls)
        )

    async def connect(self) -> None:
        """Make a new connection, and read the engine's identity."""
        await self.close()
        self._seen, self._lost = EventDeduplicator(), LostEvents(log)
        self._sandboxes.clear()
        calls = self._current_calls = self._new()
        self._identity = await self._identify(calls)

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
        self._pid = server.pid or calls.connection.pid()
        return self._id, server.pid, calls.connection.listener()

    async def is_same_engine(self) -> bool:
        """Ask over the connection, which outlives no restart, and look at who listens on the socket.

        containerd does not replay events: what happens between two streams is found by the listing that follows.

        Raises:
            EngineError: the engine cannot be asked.
        """
        return await self._identify(self._connected) == self._identity

    async def ping(self) -> None:
        """Ask for the version, which reads no container."""
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
                    self._sandboxes.pop(received.id, None)
                    # When the shim of a sandbox is killed, containerd 2.1 does not report the exits of its containers.
                    for id in [id for id, sandbox in self._sandboxes.items() if sandbox == received.id]:
                        yield Signal(SignalType.CHANGED, id, likely_exiting=True)

    def _read(self, connection: Connection, message: bytes) -> Signal | None:
        """Read an event; return LOST if it cannot be understood, None if it is of no interest."""
        if self._seen.seen_before(message):
            return None
        try:
            envelope = wire.Envelope.FromString(message)
            # The engine leaves these namespaces out already, unless its filters cannot express the name.
            return None if text(envelope.namespace) in self._ignored else signal(envelope)
        except (DecodeError, ValueError) as error:
            return self._lost.report(connection.message(f"an event makes no sense: {printable(error)}"))

    async def listing(self) -> Listing:
        """List the containers that are alive, in all namespaces.

        A container that is missing in the listing may be alive: containerd leaves out tasks whose shim does not answer.

        Raises:
            EngineError: no namespace could be listed.
        """
        calls = self._connected
        namespaces = [name for name in await calls.namespaces() if name not in self._ignored]
        containers: dict[str, ListedContainer] = {}
        failed: dict[str, EngineError] = {}
        slots = asyncio.Semaphore(LISTED_AT_ONCE)
        deadline = asyncio.get_running_loop().time() + LISTING_TIMEOUT

        async def list_namespace(namespace: str) -> None:
            try:
                async with asyncio.timeout_at(deadline) as limit:
                    await slots.acquire()
                    with release_when_slow(slots, LISTING_TIMEOUT):
                        containers.update(await self._list_namespace(namespace, calls, limit))
            except EngineError as error:
                failed[namespace] = error
            except TimeoutError:
                failed[namespace] = EngineTimeout(calls.connection.message(f"namespace {namespace!r} does not answer"))

        async with asyncio.TaskGroup() as tasks:
            for namespace in namespaces:
                tasks.create_task(list_namespace(namespace), name=f"whalewatch listing of {namespace}")
        if failed and len(failed) == len(namespaces):
            raise next(iter(failed.values()))
        return Listing(containers=containers, absence_is_death=False, failed=failed, scope=namespace_of)

    async def _list_namespace(self, namespace: str, calls: Calls, limit: asyncio.Timeout) -> dict[str, ListedContainer]:
        """List the containers of one namespace that are alive; each that arrives extends the time limit.

        List the tasks first: a container that is created after that is not among them, but its start is reported.
        """
        loop = asyncio.get_running_loop()
        listed = await calls.tasks(namespace)
        tasks = {task.id: task for task in listed or () if alive(task) is not False}
        self._progress += 1
        containers: dict[str, ListedContainer] = {}

        def receive(found: wire.Container) -> None:
            self._progress += 1
            if not limit.expired():
                limit.reschedule(loop.time() + LISTING_TIMEOUT)
            if listed is None:  # shims hang: an inspect has to read each container
                containers[within(namespace, text(found.id))] = ListedContainer()
                return
            task = tasks.get(found.id)
            if task is None:
                return
            read = container(namespace, found, task, self.address)
            # If the shim did not answer, an inspect has to read the container.
            containers[read.id] = ListedContainer(self._keep(namespace, read, found, task) if alive(task) else None)

        await calls.containers(namespace, receive)
        return containers

    async def inspect(self, id: str, /) -> Container | Dead | None:
        """Read one container; return `Dead` if its task has stopped.

        Return None if it was removed, has no task, or belongs to an ignored namespace.

        Raises:
            EngineError: the engine or the container's shim cannot be asked.
        """
        calls = self._connected
        namespace, name = split(id)
        if namespace in self._ignored:
            return None
        task = await calls.task(namespace, name)
        if task is None or task.status == wire.CREATED:
            return None
        if alive(task) is None:
            raise EngineTimeout(calls.connection.message(f"the shim of {printable(id)} does not answer"))
        try:
            found = await calls.container(namespace, name)
        except EngineError:
            if alive(task):
                raise
            found = None  # that the task has stopped is certain all the same
        if found is None:
            return None
        read = container(namespace, found, task, self.address)
        if not alive(task):
            return Dead(read, task.exit_status)
        return self._keep(namespace, read, found, task)

    def _keep(self, namespace: str, read: Container, found: wire.Container, task: wire.Task) -> Container:
        """Remember the sandbox of a container that is alive, and fill its rucksack."""
        if found.sandbox:
            self._sandboxes[read.id] = within(namespace, text(found.sandbox))
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
