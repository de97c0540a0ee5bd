"""Real engines of every kind, each for one test alone, driven and watched in the same terms."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from tenacity import wait_fixed

from tests.support.checker import Checked, supervised
from tests.support.containerd_checker import CheckedContainerd
from tests.support.cri_checker import CheckedCRI
from tests.support.engines.containerd import Containerd
from tests.support.engines.containerd_control import ContainerdControl
from tests.support.engines.control import TIMEOUT, DockerControl
from tests.support.engines.cri_control import CRIControl, Pod
from tests.support.engines.dockerd import Dockerd
from whalewatch import Origin, Retry, Watcher, containerd, cri, moby

DOCKERS = ("docker 20.10", "docker 26.1")
CONTAINERDS = ("containerd 1.6", "containerd 1.7")
CRIS = ("cri 1.6 native", "cri 1.6 poll", "cri 1.7 native", "cri 1.7 pod-events", "cri 1.7 poll")


def noticing(heartbeat: float, call_timeout: float) -> dict[str, Any]:
    """Options with which it is soon noticed that an engine is lost, and that it is back."""
    return {"heartbeat": heartbeat, "call_timeout": call_timeout, "retry": Retry(wait_fixed(0.1), stable_after=0)}


class Subject(ABC):
    """A real engine, its driver, and what watches and checks it.

    Attributes:
        quick: options of watchers for outages, and `hasty` for hangs.
        connecting: the calls that a new connection makes, in their order, where a test has to know.
        inspecting: the calls that the start of a container causes, likewise.
        elsewhere: what the names of containers in another namespace begin with.
        pauses: whether it can pause containers.
        kernel: whether the kernel tells exits, and not the engine alone.
        keeps_codes: whether the engine knows the exit code of a container that was killed while it was away.
        more: types and names of the events by which `change_more` is told.
    """

    kind: str
    source: Any = None
    quick = noticing(1.0, 2.0)
    hasty = quick
    connecting: tuple[str, ...] = ()
    inspecting: tuple[str, ...] = ()
    elsewhere = ""
    pauses = True
    kernel = True
    keeps_codes = False
    more: tuple[tuple[str, str], ...] = ()

    def __init__(self, engine: Dockerd | Containerd, control: Any) -> None:
        self.engine = engine
        self.control = control

    @abstractmethod
    def watch(self, address: str, **options: Any) -> Watcher: ...
    @abstractmethod
    def check(self, watcher: Watcher) -> Checked: ...

    def checked(self, address: str | None = None, **options: Any) -> AbstractAsyncContextManager[Checked]:
        """Watch the engine under supervision, at its address or another; with `quick` unless options are given."""
        return supervised(self.check(self.watch(address or self.engine.address, **(options or self.quick))))

    @property
    def exit_origin(self) -> Origin:
        """Who tells an exit first."""
        return Origin.KERNEL if self.kernel else Origin.ENGINE

    @property
    def told_code(self) -> int | None:
        """The exit code that is told of a container that is killed."""
        return 137 if self.kernel or self.source != "poll" else None

    @property
    def kept_code(self) -> int | None:
        """The same of one that was killed while the engine was away."""
        return 137 if self.kernel or self.keeps_codes else None

    async def create(self, name: str) -> str:
        """Create a container, and return what `start` needs to know of it."""
        return str(await self.control.create(name))

    async def start(self, created: str) -> str:
        """Start what was created, and return its id."""
        await self.control.start(created)
        return created

    async def run(self, name: str) -> str:
        return await self.start(await self.create(name))

    @abstractmethod
    async def run_mortals(self) -> dict[str, int]:
        """Run all that is to be killed while the engine is away, and return the PIDs by name."""

    async def kill(self, id: str) -> None:
        """Kill a container, and wait for its end."""
        await self.control.kill(id)
        await self.control.wait(id)

    async def pause(self, id: str) -> None:
        await self.control.pause(id)

    async def unpause(self, id: str) -> None:
        await self.control.unpause(id)

    async def restart(self, id: str) -> None:
        """Let a container exit, and start it again under the same id."""
        await self.control.restart(id)

    async def remove(self, id: str) -> None:
        await self.control.remove(id)

    async def change(self, id: str) -> None:
        """Change what an update tells."""
        await self.control.rename(id, f"{id}-anew")

    async def run_more(self) -> None:
        """Run containers for `change_more`."""
        raise NotImplementedError

    async def change_more(self) -> None:
        """Do what only this engine can do."""
        raise NotImplementedError


class DockerSubject(Subject):
    """Docker, whose restart policies start what was killed meanwhile."""

    kind = "docker"
    # So short a heartbeat meets 26.1 while it shuts down: it refuses calls, and then reports its containers' exits.
    quick = noticing(0.05, 2.0)
    hasty = noticing(0.5, 1.0)
    connecting = ("ping", "info", "events", "list", "inspect")
    inspecting = ("inspect",)
    more = (("updated", "healthy"), ("updated", "left"), ("updated", "right"))

    def watch(self, address: str, **options: Any) -> Watcher:
        return moby.watch(address, **{"kernel": self.kernel, **options})

    def check(self, watcher: Watcher) -> Checked:
        return Checked(watcher, self.control)

    async def run_mortals(self) -> dict[str, int]:
        await self.control.run("victim")
        await self.control.run("phoenix", restart="always")
        return {name: (await self.control.inspect(name))["State"]["Pid"] for name in ("victim", "phoenix")}

    async def run_more(self) -> None:
        await asyncio.gather(self.run("left"), self.run("right"))
        await self.control.run("healthy", health="test ! -e /sick")

    async def change_more(self) -> None:
        for former, name in (("left", "between"), ("right", "left"), ("between", "right")):
            await self.control.rename(former, name)
        await self.control.exec("healthy", ["touch", "/sick"])
        async with asyncio.timeout(TIMEOUT):
            while (await self.control.inspect("healthy"))["State"]["Health"]["Status"] != "unhealthy":  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.01)


class ContainerdSubject(Subject):
    """containerd, of which the shims of some versions keep exits for it."""

    kind = "containerd"
    hasty = noticing(0.2, 0.4)
    connecting = ("version", "introspection", "events", "ping", "namespaces", "tasks", "containers")
    inspecting = ("task", "container")
    elsewhere = "other/"
    more = (("exited", "old/doomed"), ("started", "kept/new"), ("started", "young/new"))

    def __init__(self, engine: Containerd, control: ContainerdControl) -> None:
        super().__init__(engine, control)
        self.keeps_codes = engine.expected == "1.6"

    def watch(self, address: str, **options: Any) -> Watcher:
        return containerd.watch(address, **{"kernel": self.kernel, **options})

    def check(self, watcher: Watcher) -> Checked:
        return CheckedContainerd(watcher, self.control, ())

    async def create(self, name: str) -> str:
        await self.control.create(*place(name))
        await self.control.task_create(*place(name))
        return name

    async def start(self, created: str) -> str:
        await self.control.start(*place(created))
        return created

    async def run_mortals(self) -> dict[str, int]:
        return {name: await self.control.run(*place(name)) for name in ("victim", "other/victim")}

    async def kill(self, id: str) -> None:
        await self.control.kill_and_wait(*place(id))

    async def pause(self, id: str) -> None:
        await self.control.pause(*place(id))

    async def unpause(self, id: str) -> None:
        await self.control.resume(*place(id))

    async def restart(self, id: str) -> None:
        await self.kill(id)
        await self.control.rerun(*place(id))

    async def remove(self, id: str) -> None:
        await self.control.remove(*place(id))

    async def change(self, id: str) -> None:
        await self.control.update_labels(id, {"a": "1"})

    async def run_more(self) -> None:
        await asyncio.gather(self.run("old/doomed"), self.run("kept/survivor"))

    async def change_more(self) -> None:
        await self.control.namespace_create("young")
        await asyncio.gather(self.run("young/new"), self.run("kept/new"))
        await self.remove("old/doomed")
        await self.control.namespace_delete("old")
        await self.pause("survivor")  # which nobody is to know
        await self.unpause("survivor")


def place(id: str) -> tuple[str, str]:
    """An id of containerd's within its namespace, and that namespace."""
    namespace, _, own = id.rpartition("/")
    return own, namespace or "default"


class CRISubject(Subject):
    """An engine that speaks the CRI; what has a name such as "pod-1" is a pod, and all else is in a pod "home"."""

    kind = "cri"
    pauses = False

    def __init__(self, engine: Containerd, control: CRIControl, source: str) -> None:
        super().__init__(engine, control)
        self.source = source
        self._home: Pod | None = None
        self._pods: set[str] = set()

    def watch(self, address: str, **options: Any) -> Watcher:
        return cri.watch(address, source=self.source, poll=0.1, **{"kernel": self.kernel, **options})

    def check(self, watcher: Watcher) -> Checked:
        return CheckedCRI(watcher, self.control)

    async def create(self, name: str) -> str:
        if name.startswith("pod-"):
            return name
        self._home = self._home or await self.control.run_pod("home")
        return str(await self.control.create(self._home, name))

    async def start(self, created: str) -> str:
        if not created.startswith("pod-"):
            return await super().start(created)
        pod = await self.control.run_pod(created)
        self._pods.add(pod.id)
        return str(pod.id)

    async def run_mortals(self) -> dict[str, int]:
        doomed = await self.control.run_pod("doomed")
        await self.control.run(doomed, "widow")
        ids = {"victim": await self.run("victim"), "doomed": doomed.id}
        return {name: await self.control.pid(id) for name, id in ids.items()}

    async def kill(self, id: str) -> None:
        await (self.control.stop_pod(id) if id in self._pods else self.control.stop(id))


@pytest.fixture
async def subject(
    request: pytest.FixtureRequest, make_dockerd: Callable[..., Dockerd], make_containerd: Callable[..., Containerd]
) -> AsyncIterator[Subject]:
    """A real engine for one test alone, such as "docker 26.1 live-restore" or "cri 1.7 poll"."""
    async with subject_of(request.param, make_dockerd, make_containerd) as made:
        yield made


@asynccontextmanager
async def subject_of(
    name: str, make_dockerd: Callable[..., Dockerd], make_containerd: Callable[..., Containerd]
) -> AsyncIterator[Subject]:
    """A real engine of this name, with its driver."""
    kind, version, *how = name.split()
    if kind == "docker":
        dockerd = await asyncio.to_thread(make_dockerd, version, live_restore=how == ["live-restore"])
        async with DockerControl(dockerd.socket) as docker:
            yield DockerSubject(dockerd, docker)
        return
    engine = await asyncio.to_thread(make_containerd, version, cri=kind == "cri")
    if kind == "containerd":
        async with ContainerdControl(engine.socket) as control:
            yield ContainerdSubject(engine, control)
        return
    async with CRIControl(engine.socket) as kubelet:
        yield CRISubject(engine, kubelet, *how)
        await kubelet.clean()


@pytest.fixture(params=[True, False], ids=["kernel", "engine"])
def either_tells_exits(request: pytest.FixtureRequest, subject: Subject) -> None:
    """Run a test twice: the kernel tells exits first, or the engine alone tells them."""
    subject.kernel = request.param
