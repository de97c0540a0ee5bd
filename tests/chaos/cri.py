"""Chaos in the CRI of a real containerd, whatever source its watchers follow."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from random import Random
from typing import Any, ClassVar, Literal

from tests.chaos.containerd import ShimWorld
from tests.chaos.world import Operation, World
from tests.support import cri_checker
from tests.support.engines.containerd import Containerd, Version
from tests.support.engines.control import SLEEP
from tests.support.engines.cri_control import CRIControl, Listed, Pod
from whalewatch import Container, cri

Source = Literal["native", "pod-events", "poll"]
PODS, CONTAINERS = 4, 10  # at most: each costs processes, and each look at the truth some calls
FEW = 2  # pods that none is taken from: what there is to be done is mostly in pods
DEAD = {"CREATED", "STOPPED"}  # states of a task without a process that does what it is meant to


class CRIWorld(ShimWorld):
    """A containerd with the CRI that survives what is done to it.

    A watcher that polls is not told what came and went between two looks, and it need not be: every picture is held
    against the engine's in peace only, and an audit of its is a look like any other, that leaves nothing to be found.
    """

    watching: ClassVar[dict[str, Any]] = {"poll": 0.5, **World.watching}

    def __init__(self, version: Version, source: Source, dice: Random) -> None:
        engine = Containerd(version, cri=True)
        self._control = CRIControl(engine.socket)
        super().__init__(engine, dice, self._control)
        self.watch = partial(cri.watch, source=source)
        self.proves_subscriptions = source == "poll"  # which begins with a listing
        self.sole = source == "pod-events"  # of containerd 1.7, which has one queue of them for all
        self._by_tasks = source == "native"
        if not self._by_tasks:
            self.told = None
        self._pods: dict[str, Pod] = {}
        self._disputed: list[tuple[str, int]] = []

    async def truth(self) -> dict[str, dict[str, Any]]:
        """Everything that is alive, by id, once containerd and its CRI agree about it.

        They may disagree for good: stopped while a container is starting and its shim is frozen, containerd comes
        back with a task that runs, of a container whose state the CRI does not know ever after.
        """
        told = await cri_checker.truth(self._control)
        states = {id: each.state for id, each in (await self._control.containers()).items()}
        # With source "native" it is the task that decides.
        self.unknown = () if self._by_tasks else {id for id, state in states.items() if state == "UNKNOWN"}
        tasks = {id: pid for id, (status, pid) in (await self._native.tasks("k8s.io")).items() if status not in DEAD}
        self._disputed = sorted(tasks.items() ^ {id: one["pid"] for id, one in told.items()}.items())
        if self._disputed:
            raise LookupError(*(f"{id} {states.get(id)} {tasks.get(id)}" for id, _ in self._disputed))
        return told

    def seen(self, container: Container) -> dict[str, Any]:
        return cri_checker.seen(container)

    async def revive(self) -> None:
        """Kill the engine and start it again; what containerd and its CRI could not agree about is ended."""
        await asyncio.to_thread(self._engine.kill)
        self._kill(self._disputed, len(self._disputed))
        await self._start()

    @property
    def operations(self) -> Mapping[str, Operation]:
        return {
            "run a pod": self._run_pod,
            "stop a pod": lambda: self._do_pod(self._control.stop_pod),
            "remove a pod": self._remove_pod,
            "run a pod's successor": self._replace_pod,
            "create": self._create,
            "run": self._run,
            "run two": lambda: self._run(SLEEP, SLEEP),
            "run for a moment": lambda: self._run(("/bin/true",)),
            "stop": lambda: self._do(self._control.stop),
            "run the next attempt": self._run_next,
            "remove, though it runs": lambda: self._do(self._control.remove),
            "exec under the container's own id": lambda: self._do(
                lambda one: self._native.exec(one, one, namespace="k8s.io")
            ),
            "kill the process": self._kill_process,
            "kill a pod's shim, and leave the pod": self._kill_shim,
        }

    async def _any(self) -> Listed:
        """Any container: mostly one that runs, also one of whose creation nobody was told."""
        return self._chosen(await self._control.containers(), "RUNNING")

    async def _any_pod(self, enough: int = 0) -> Listed:
        """Any pod, mostly one that is ready, if there are more than enough of them."""
        pods = await self._control.sandboxes()
        if len(pods) <= enough:
            raise LookupError("so few are needed")
        return self._chosen(pods, "READY")

    def _chosen(self, listed: Mapping[str, Listed], state: str) -> Listed:
        ids = [id for id, each in sorted(listed.items()) if each.state == state]
        if not ids or self._dice.random() < 0.2:
            ids = sorted(listed)
        if not ids:
            raise LookupError("none yet")
        return listed[self._dice.choice(ids)]

    async def _run_pod(self) -> None:
        if len(await self._control.sandboxes()) >= PODS:
            await self._remove_pod()
        self._number += 1
        pod = await self._control.run_pod(f"pod-{self._number}", labels={"number": str(self._number)})
        self._pods[pod.id] = pod

    async def _do_pod(self, *operations: Callable[[str], Awaitable[None]]) -> None:
        id = (await self._any_pod(FEW)).id
        for operate in operations:
            await operate(id)

    async def _remove_pod(self) -> None:
        await self._do_pod(self._control.stop_pod, self._control.remove_pod)

    async def _replace_pod(self) -> None:
        """As a kubelet does when a sandbox has died: another one for the same pod."""
        former = await self._any_pod()
        known = self._pods[former.id]
        await self._control.stop_pod(former.id)
        pod = await self._control.run_pod(known.name, uid=known.uid, attempt=former.attempt + 1)
        self._pods[pod.id] = pod
        await self._control.remove_pod(former.id)

    async def _create(self, cmd: tuple[str, ...] = SLEEP) -> str:
        if len(await self._control.containers()) >= CONTAINERS:
            await self._do(self._control.remove)
        pod = self._pods[(await self._any_pod()).id]
        self._number += 1
        return await self._control.create(pod, f"chaos-{self._number}", annotations={"mood": "bad"}, cmd=cmd)

    async def _run(self, *commands: tuple[str, ...]) -> None:
        for cmd in commands or (SLEEP,):
            await self._control.start(await self._create(cmd))

    async def _do(self, operate: Callable[[str], Awaitable[object]]) -> None:
        await operate((await self._any()).id)

    async def _run_next(self) -> None:
        former = await self._any()
        await self._control.stop(former.id)
        await self._control.run(self._pods[former.sandbox], former.name, attempt=former.attempt + 1)
        await self._control.remove(former.id)

    async def _kill_process(self) -> None:
        """Of a container, or of a pod itself."""
        self._kill(await self._pids(), 1)

    async def _kill_shim(self) -> None:
        """Nobody stops the pod afterwards: that its containers are gone, only the events of the engine can tell."""
        shims = self._engine.shims((await self._any_pod()).id)
        if not shims:
            raise LookupError("it has none")
        os.kill(shims[0], signal.SIGKILL)

    async def _pids(self) -> Collection[tuple[str, int]]:
        """Containers and sandboxes with their processes: while a shim is frozen, the CRI tells of some long gone."""
        return (await self._control.truth()).items()
