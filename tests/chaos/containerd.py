"""Chaos in a real containerd."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from datetime import UTC, datetime
from functools import partial
from random import Random
from typing import Any

import grpc.aio

from tests.chaos.world import Fault, Operation, World, during
from tests.support.checker import facts
from tests.support.engines.containerd import Containerd, Version
from tests.support.engines.containerd_control import ContainerdControl
from whalewatch import Container, containerd

CROWD = 12  # containers at most: each costs a shim

NAMESPACES = ("default", "red", "blue")


class ShimWorld(World):
    """A containerd with its shims, whose own events are heard whatever API its watchers use."""

    refusals = (grpc.aio.AioRpcError, OSError, LookupError)

    def __init__(self, engine: Containerd, dice: Random, *drivers: AbstractAsyncContextManager[object]) -> None:
        self._engine = engine
        self._native = ContainerdControl(engine.socket)
        self._exits: set[tuple[str, int | None]] = set()
        super().__init__(engine, dice, self._native, *drivers)

    def _events(self) -> AbstractAsyncContextManager[Any]:
        return self._native.events('topic~="^/tasks/"', 'topic=="/containers/update"')

    def _take_down(self, event: Any) -> None:
        moment = datetime.fromtimestamp(event.timestamp / 1e9, UTC)
        what = str(event.event).replace("\n", " ")
        self.heard.append(f"{moment:%H:%M:%S.%f} {event.namespace} {event.topic} {what}")
        about = event.event.container_id if event.topic.startswith("/tasks/") else event.event.id
        id = self._shown(event.namespace, about)
        self._heard_of.note(id, event.timestamp, getattr(event.event, "exit_status", None))
        if event.topic == "/tasks/exit":
            self._exits.add((id, event.event.pid))

    def _shown(self, _namespace: str, id: str) -> str:
        """The id that watchers know."""
        return id

    def told_of_exit(self, container: Container) -> bool:
        return (container.id, container.pid) in self._exits

    @property
    def faults(self) -> dict[str, dict[str, Fault]]:
        return super().faults | {"shim": {"shim frozen": self._shims_frozen, "shim killed": self._shim_killed}}

    def _shims_frozen(self) -> AbstractAsyncContextManager[None]:
        chosen = self._some_shims(2)
        return during(partial(_signal, chosen, signal.SIGSTOP), partial(_signal, chosen, signal.SIGCONT))

    def _shim_killed(self) -> AbstractAsyncContextManager[None]:
        return during(partial(_signal, self._some_shims(1), signal.SIGKILL))

    def _some_shims(self, most: int) -> list[int]:
        shims = sorted(self._engine.shims())
        return self._dice.sample(shims, k=min(len(shims), most))


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


class ContainerdWorld(ShimWorld):
    """A containerd that survives what is done to it."""

    watch = staticmethod(containerd.watch)

    def __init__(self, version: Version, dice: Random) -> None:
        super().__init__(Containerd(version), dice)
        self._places: list[tuple[str, str]] = []  # namespaces, and ids there

    async def truth(self) -> dict[str, dict[str, Any]]:
        return {
            self._shown(*place): facts(one, "pid", "labels", "image") | {"paused": one.status == "PAUSED"}
            for place, one in (await self._native.truth()).items()
        }

    def seen(self, container: Container) -> dict[str, Any]:
        return facts(container, "pid", "paused", "labels", "image")

    def _shown(self, namespace: str, id: str) -> str:
        return id if namespace == "default" else f"{namespace}/{id}"

    @property
    def operations(self) -> Mapping[str, Operation]:
        control = self._native
        return {
            "run": self._run,
            "run for a moment": lambda: self._run(("/bin/true",)),
            "kill": lambda: self._do(control.kill),
            "run again": lambda: self._do(control.rerun),
            "kill and run again": lambda: self._do(control.kill_and_wait, control.rerun),
            "pause": lambda: self._do(control.pause),
            "resume": lambda: self._do(control.resume),
            "pause and resume": lambda: self._do(control.pause, control.resume),
            "update": lambda: self._do(self._update),
            "remove": self._remove,
            "exec": lambda: self._do(lambda one, space: control.exec(one, "other", namespace=space)),
            "exec under the container's own id": lambda: self._do(
                lambda one, space: control.exec(one, one, namespace=space)
            ),
            "kill the process": lambda: self._do(self._kill_process),
            "delete a namespace": lambda: control.namespace_delete(self._dice.choice(NAMESPACES)),
        }

    async def _do(self, *operations: Callable[[str, str], Any]) -> tuple[str, str]:
        namespace, id = self._dice.choice(self._places)  # it is a LookupError that there is none yet
        for operate in operations:
            await operate(id, namespace)
        return namespace, id

    async def _run(self, cmd: tuple[str, ...] = ("/bin/sleep", "1000000")) -> None:
        if len(self._places) >= CROWD:
            await self._remove()
        self._number += 1
        namespace, id = self._dice.choice(NAMESPACES), f"chaos-{self._number}"
        self._places.append((namespace, id))
        await self._native.run(id, namespace, cmd=cmd, labels={"com.docker.compose.project": "chaos"})

    async def _update(self, id: str, namespace: str) -> None:
        await self._native.update_labels(id, {"mood": str(self._dice.random())}, namespace)

    async def _kill_process(self, id: str, namespace: str) -> None:
        self._kill([(id, (await self._native.truth())[namespace, id].pid)], 1)

    async def _remove(self) -> None:
        namespace, id = await self._do()
        with suppress(grpc.aio.AioRpcError):
            await self._native.resume(id, namespace)  # what is frozen cannot be killed
        await self._native.remove(id, namespace)
        with suppress(ValueError):
            self._places.remove((namespace, id))
