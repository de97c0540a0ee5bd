"""Chaos in a real containerd."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from random import Random
from typing import Any

import grpc.aio

from tests.chaos.connection import connection_faults
from tests.chaos.private import PrivateWorld
from tests.chaos.shims import REFUSALS, engine_faults, hear, kill
from tests.chaos.world import Fault, Operation
from tests.support.checker import facts
from tests.support.engines.containerd import Containerd, Version
from tests.support.engines.containerd_control import ContainerdControl
from whalewatch import Container, Watcher, containerd

CROWD = 12
"""Containers at most: each costs a shim."""

NAMESPACES = ("default", "red", "blue")

Place = tuple[str, str]
"""Namespace of a container, and its id there."""


class ContainerdWorld(PrivateWorld):
    """A containerd that survives what is done to it."""

    refusals = REFUSALS
    proves_subscriptions = False

    def __init__(self, version: Version, dice: Random) -> None:
        self._engine = Containerd(version)
        self._control = ContainerdControl(self._engine.socket)
        self._places: list[Place] = []
        super().__init__(f"containerd {version}", self._engine, dice, self._control)

    async def _hear(self) -> None:
        await hear(self._engine, self.heard, self._heard_of, self._exits, _shown)

    def watcher(self, *, proxied: bool) -> Watcher:
        return containerd.watch((self._proxy if proxied else self._engine).address, **self.options(proxied=proxied))

    async def truth(self) -> dict[str, dict[str, Any]]:
        told = {}
        for (namespace, id), one in (await self._control.truth()).items():
            about = {"pid": one.pid, "paused": one.status == "PAUSED", "labels": one.labels, "image": one.image}
            told[_shown(namespace, id)] = about
        return told

    def seen(self, container: Container) -> dict[str, Any]:
        return facts(container, "pid", "paused", "labels", "image")

    # -- operations --------------------------------------------------------------------------------------------------

    @property
    def operations(self) -> Mapping[str, Operation]:
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
        return {**engine_faults(self._engine, self._dice, self._pids), "connection": connection_faults(self._proxy)}

    async def _pids(self) -> list[int]:
        return [one.pid for one in (await self._control.truth()).values()]


def _shown(namespace: str, id: str) -> str:
    return id if namespace == "default" else f"{namespace}/{id}"
