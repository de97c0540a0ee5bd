"""Chaos in the CRI of a real containerd, whatever source its watchers follow."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Literal

from tests.chaos.connection import connection_faults
from tests.chaos.private import PrivateWorld
from tests.chaos.shims import REFUSALS, engine_faults, hear, kill
from tests.chaos.witness import Told
from tests.chaos.world import Fault, Operation
from tests.support import cri_checker
from tests.support.engines.containerd import Containerd, Version
from tests.support.engines.containerd_control import ContainerdControl
from tests.support.engines.cri_control import SLEEP, CRIControl, Listed, Pod
from whalewatch import Container, Watcher, cri

Source = Literal["native", "pod-events", "poll"]

PODS, CONTAINERS = 4, 10
"""At most: each costs processes, and each look at the truth some calls."""

FEW = 2
"""Pods that none is taken from: what there is to be done is mostly in pods."""

DEAD = {"CREATED", "STOPPED"}
"""States of a task without a process that does what it is meant to."""


class CRIWorld(PrivateWorld):
    """A containerd with the CRI that survives what is done to it.

    A watcher that polls is not told what came and went between two looks, and it need not be: every picture is held
    against the engine's in peace only, and an audit of its is a look like any other, that leaves nothing to be found.
    """

    refusals = REFUSALS
    watching: ClassVar[dict[str, Any]] = {"poll": 0.5, **PrivateWorld.watching}

    def __init__(self, version: Version, source: Source, dice: Random) -> None:
        self.proves_subscriptions = source == "poll"  # which begins with a listing
        self.sole = source == "pod-events"  # of containerd 1.7, which has one queue of them for all
        self._source: Source = source
        self._engine = Containerd(version, cri=True)
        self._control = CRIControl(self._engine.socket)
        self._native = ContainerdControl(self._engine.socket)
        self._pods: dict[str, Pod] = {}
        self._disputed: set[int] = set()
        super().__init__(f"CRI of containerd {version}, {source}", self._engine, dice, self._control, self._native)

    @property
    def told(self) -> Told | None:
        return self._heard_of if self._source == "native" else None

    async def _hear(self) -> None:
        await hear(self._engine, self.heard, self._heard_of, self._exits, _shown)

    def watcher(self, *, proxied: bool) -> Watcher:
        address = (self._proxy if proxied else self._engine).address
        return cri.watch(address, source=self._source, **self.options(proxied=proxied))

    async def truth(self) -> dict[str, dict[str, Any]]:
        """Everything that is alive, by id, once containerd and its CRI agree about it.

        They may disagree for good: stopped while a container is starting and its shim is frozen, containerd comes
        back with a task that runs, of a container whose state the CRI does not know ever after.
        """
        told = await cri_checker.truth(self._control)
        states = {id: each.state for id, each in (await self._control.containers()).items()}
        # With source "native" it is the task that decides.
        self.unknown = 0 if self._source == "native" else list(states.values()).count("UNKNOWN")
        tasks = {id: pid for id, (status, pid) in (await self._native.tasks("k8s.io")).items() if status not in DEAD}
        disputed = tasks.items() ^ {id: one["pid"] for id, one in told.items()}.items()
        self._disputed = {pid for _, pid in disputed if self._owns(pid)}
        if disputed:
            raise LookupError(*(f"{id} {states.get(id)} {tasks.get(id)}" for id, _ in sorted(disputed)))
        return told

    def seen(self, container: Container) -> dict[str, Any]:
        return cri_checker.seen(container)

    async def revive(self) -> None:
        """Kill the engine and start it again; what containerd and its CRI could not agree about is ended."""
        await asyncio.to_thread(self._engine.kill)
        for pid in self._disputed:
            kill(pid)
        await asyncio.to_thread(self._engine.start)

    # -- operations --------------------------------------------------------------------------------------------------

    @property
    def operations(self) -> Mapping[str, Operation]:
        return {
            "run a pod": self._run_pod,
            "stop a pod": self._stop_pod,
            "remove a pod": self._remove_pod,
            "run a pod's successor": self._replace_pod,
            "create": self._create,
            "run": self._run,
            "run two": self._run_two,
            "run for a moment": lambda: self._run(("/bin/true",)),
            "stop": self._stop,
            "run the next attempt": self._run_next,
            "remove, though it runs": self._remove,
            "exec under the container's own id": self._exec,
            "kill the process": self._kill_process,
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

    async def _stop_pod(self) -> None:
        await self._control.stop_pod((await self._any_pod(FEW)).id)

    async def _remove_pod(self) -> None:
        id = (await self._any_pod(FEW)).id
        await self._control.stop_pod(id)
        await self._control.remove_pod(id)
        self._pods.pop(id, None)

    async def _replace_pod(self) -> None:
        """As a kubelet does when a sandbox has died: another one for the same pod."""
        former = await self._any_pod()
        known = self._pods[former.id]
        await self._control.stop_pod(former.id)
        pod = await self._control.run_pod(known.name, uid=known.uid, attempt=former.attempt + 1)
        self._pods[pod.id] = pod
        await self._control.remove_pod(former.id)
        self._pods.pop(former.id, None)

    async def _create(self) -> None:
        await self._created()

    async def _created(self, cmd: tuple[str, ...] = SLEEP) -> str:
        if len(await self._control.containers()) >= CONTAINERS:
            await self._remove()
        pod = self._pods[(await self._any_pod()).id]
        self._number += 1
        return await self._control.create(pod, f"chaos-{self._number}", annotations={"mood": "bad"}, cmd=cmd)

    async def _run(self, cmd: tuple[str, ...] = SLEEP) -> None:
        await self._control.start(await self._created(cmd))

    async def _run_two(self) -> None:
        await self._run()
        await self._run()

    async def _stop(self) -> None:
        await self._control.stop((await self._any()).id)

    async def _run_next(self) -> None:
        former = await self._any()
        await self._control.stop(former.id)
        await self._control.run(self._pods[former.sandbox], former.name, attempt=former.attempt + 1)
        await self._control.remove(former.id)

    async def _remove(self) -> None:
        await self._control.remove((await self._any()).id)

    async def _exec(self) -> None:
        id = (await self._any()).id
        await self._native.exec(id, id, namespace="k8s.io")

    async def _kill_process(self) -> None:
        """Of a container, or of a pod itself."""
        kill(self._dice.choice(await self._pids()))

    async def _pids(self) -> list[int]:
        """Processes that may be killed: while a shim is frozen, the CRI tells of some that are long gone."""
        return [pid for pid in (await self._control.truth()).values() if self._owns(pid)]

    def _owns(self, pid: int) -> bool:
        try:
            return self._engine.root.name in Path(f"/proc/{pid}/cgroup").read_text()
        except OSError:
            return False

    # -- faults ------------------------------------------------------------------------------------------------------

    @property
    def faults(self) -> Mapping[str, Mapping[str, Fault]]:
        return {**engine_faults(self._engine, self._dice, self._pids), "connection": connection_faults(self._proxy)}


def _shown(_namespace: str, id: str) -> str:
    return id
