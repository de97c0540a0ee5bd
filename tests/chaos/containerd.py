"""Chaos in a real containerd."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from random import Random
from types import TracebackType
from typing import Any, Self

import grpc.aio

from tests.chaos.connection import connection_faults
from tests.chaos.shims import REFUSALS, engine_faults, hear, kill
from tests.chaos.witness import Told
from tests.chaos.world import Fault, Operation
from tests.support.engines.containerd import Containerd, Version
from tests.support.engines.containerd_control import ContainerdControl
from tests.support.engines.proxy import Proxy
from whalewatch import Container, Retry, Watcher, containerd

CROWD = 12
"""Containers at most: each costs a shim."""

HEARD = 200
"""Events of the engine that are kept, to be told if something was wrong."""

NAMESPACES = ("default", "red", "blue")

WATCHER: dict[str, Any] = {"heartbeat": 1.0, "call_timeout": 3.0, "retry": Retry(stable_after=1.0)}

OPTIONS: dict[bool, dict[str, Any]] = {
    False: WATCHER | {"audit": 30.0},  # nothing is hidden from it, so that the audit should have nothing to find
    True: WATCHER | {"audit": 8.0},
}
"""Options of watchers, by whether they are behind the proxy."""

Place = tuple[str, str]
"""Namespace of a container, and its id there."""


class ContainerdWorld:
    """A containerd that survives what is done to it; see `tests.chaos.world.World`."""

    refusals = REFUSALS
    sole = False
    proves_subscriptions = False
    patience: float = WATCHER["heartbeat"] + WATCHER["call_timeout"]
    dated = False
    unknown = 0

    def __init__(self, version: Version, dice: Random) -> None:
        """Prepare; nothing runs yet."""
        self.name = f"containerd {version}"
        self._dice = dice
        self._engine = Containerd(version)
        self._control = ContainerdControl(self._engine.socket)
        self._proxy = Proxy(self._engine.socket)
        self._stack = AsyncExitStack()
        self._number = 0
        self._places: list[Place] = []
        self._exits: set[tuple[str, int]] = set()
        self.told = Told()
        self.heard: deque[str] = deque(maxlen=HEARD)

    async def __aenter__(self) -> Self:
        """Start the engine and the proxy."""
        self._stack.push_async_callback(asyncio.to_thread, self._engine.close)
        await asyncio.to_thread(self._engine.start)
        await self._stack.enter_async_context(self._control)
        await self._stack.enter_async_context(self._proxy)
        self.name = f"containerd {self._engine.version}"
        hearing = asyncio.create_task(hear(self._engine, self.heard, self.told, self._exits, _shown))
        self._stack.push_async_callback(asyncio.wait, {hearing})
        self._stack.callback(hearing.cancel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End them."""
        await self._stack.aclose()

    def watcher(self, *, proxied: bool) -> Watcher:
        """Make a watcher of the engine, through the proxy or not."""
        return containerd.watch(self._proxy.address if proxied else self._engine.address, **OPTIONS[proxied])

    async def truth(self) -> dict[str, dict[str, Any]]:
        """Everything that is alive, by id."""
        told = {}
        for (namespace, id), one in (await self._control.truth()).items():
            about = {"pid": one.pid, "paused": one.status == "PAUSED", "labels": one.labels, "image": one.image}
            told[_shown(namespace, id)] = about
        return told

    def seen(self, container: Container) -> dict[str, Any]:
        """What a watcher says of a container."""
        return {
            "pid": container.pid,
            "paused": container.paused,
            "labels": dict(container.labels),
            "image": container.image,
        }

    def told_of_exit(self, container: Container) -> bool:
        """Whether the engine itself said that this run had exited."""
        return (container.id, container.pid) in self._exits

    async def revive(self) -> None:
        """Kill the engine and start it again."""
        await asyncio.to_thread(self._engine.kill)
        await asyncio.to_thread(self._engine.start)

    # -- operations --------------------------------------------------------------------------------------------------

    @property
    def operations(self) -> Mapping[str, Operation]:
        """By name."""
        return {
            "run": self._run,
            "run for a moment": lambda: self._run(("/bin/true",)),
            "kill": lambda: self._do(self._control.kill),
            "run again": lambda: self._do(self._control.rerun),
            "kill and run again": self._restart,
            "pause": lambda: self._do(self._control.pause),
            "resume": lambda: self._do(self._control.resume),
            "pause and resume": self._blink,
            "update": self._update,
            "remove": self._remove,
            "exec": lambda: self._exec("other"),
            "exec under the container's own id": lambda: self._exec(None),
            "kill the process": self._kill_process,
            "delete a namespace": self._delete_namespace,
        }

    def _any(self) -> Place:
        if not self._places:
            raise LookupError("no container yet")
        return self._dice.choice(self._places)

    async def _do(self, operate: Callable[[str, str], Any]) -> None:
        namespace, id = self._any()
        await operate(id, namespace)

    async def _run(self, cmd: tuple[str, ...] = ("/bin/sleep", "1000000")) -> None:
        if len(self._places) >= CROWD:
            await self._remove()
        self._number += 1
        namespace, id = self._dice.choice(NAMESPACES), f"chaos-{self._number}"
        self._places.append((namespace, id))
        await self._control.run(id, namespace, cmd=cmd, labels={"com.docker.compose.project": "chaos"})

    async def _restart(self) -> None:
        namespace, id = self._any()
        await self._control.kill_and_wait(id, namespace)
        await self._control.rerun(id, namespace)

    async def _blink(self) -> None:
        namespace, id = self._any()
        await self._control.pause(id, namespace)
        await self._control.resume(id, namespace)

    async def _update(self) -> None:
        namespace, id = self._any()
        await self._control.update_labels(id, {"mood": str(self._dice.random())}, namespace)

    async def _remove(self) -> None:
        namespace, id = self._any()
        with suppress(grpc.aio.AioRpcError):
            await self._control.resume(id, namespace)  # what is frozen cannot be killed
        await self._control.remove(id, namespace)
        with suppress(ValueError):
            self._places.remove((namespace, id))

    async def _exec(self, exec_id: str | None) -> None:
        namespace, id = self._any()
        await self._control.exec(id, exec_id or id, namespace=namespace)

    async def _kill_process(self) -> None:
        namespace, id = self._any()
        kill((await self._control.truth())[namespace, id].pid)

    async def _delete_namespace(self) -> None:
        await self._control.namespace_delete(self._dice.choice(NAMESPACES))

    # -- faults ------------------------------------------------------------------------------------------------------

    @property
    def faults(self) -> Mapping[str, Mapping[str, Fault]]:
        """By place and name."""
        return {**engine_faults(self._engine, self._dice, self._pids), "connection": connection_faults(self._proxy)}

    async def _pids(self) -> list[int]:
        return [one.pid for one in (await self._control.truth()).values()]


def _shown(namespace: str, id: str) -> str:
    return id if namespace == "default" else f"{namespace}/{id}"
