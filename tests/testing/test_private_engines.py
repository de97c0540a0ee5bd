"""The real engines that tests have for themselves: they hang, die, come back, and leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import aiohttp
import grpc.aio
import pytest

from tests.conftest import CONTAINERD_VERSIONS, VERSIONS
from tests.support.engines.containerd import Containerd
from tests.support.engines.containerd_control import ContainerdControl
from tests.support.engines.control import DockerControl
from tests.support.engines.cri_control import CRIControl
from tests.support.engines.dockerd import Dockerd
from tests.support.engines.process import EngineFailedError, alive
from tests.support.followed import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

live = pytest.mark.live


class Docker(DockerControl):
    """The driver of an engine, in words that are the same for all.

    Attributes:
        options: how such an engine is started.
        ended: what is told by version of a container that has ended by SIGKILL while the engine was away.
    """

    options: ClassVar = {"live_restore": True}
    ended: ClassVar = dict.fromkeys(VERSIONS, "exited")
    ask = DockerControl.info

    async def pids(self) -> dict[str, int]:
        """Return the PIDs of what is alive, by id."""
        return {id: inspection["State"]["Pid"] for id, inspection in (await self.truth()).items()}

    async def end_of(self, id: str) -> object:
        return (await self.inspect(id))["State"]["Status"]


class Tasks(ContainerdControl):
    """As `Docker`."""

    options: ClassVar[dict[str, bool]] = {}
    ended: ClassVar = {"1.6": "STOPPED", "1.7": None}
    ask = ContainerdControl.namespaces

    async def run(self, id: str) -> str:  # type: ignore[override]
        namespace = "other" if id == "orphan" else "default"
        await super().run(id, namespace)
        if id == "orphan":
            await self.pause(id, namespace)  # what is frozen cannot be killed
        return id

    async def pids(self) -> dict[str, int]:
        return {id: found.pid for (_, id), found in (await self.truth()).items()}

    async def end_of(self, id: str) -> object:
        assert id in await self.containers()
        return (await self.tasks()).get(id, [None])[0]


class Pods(CRIControl):
    """As `Docker`."""

    options: ClassVar = {"cri": True}
    ended: ClassVar = {"1.6": 137, "1.7": 255}  # 1.7 finds that the process is gone, and does not know how it ended
    ask, pids, end_of = CRIControl.version, CRIControl.truth, CRIControl.exited

    async def run(self, name: str) -> str:  # type: ignore[override]
        return await super().run(await self.run_pod(name), name)


@pytest.fixture
async def make(
    make_dockerd: Callable[..., Dockerd], make_containerd: Callable[..., Containerd]
) -> Callable[..., Awaitable[Any]]:
    """Start a real engine for one test alone: `make(version, **options)`."""

    async def start(version: str, **options: Any) -> Any:
        return await asyncio.to_thread(make_dockerd if version in VERSIONS else make_containerd, version, **options)

    return start


@live
@pytest.mark.parametrize(("kind", "version"), [(kind, v) for kind in (Docker, Tasks, Pods) for v in kind.ended])
async def test_containers_outlive_an_engine_that_hangs_or_is_killed_and_closing_it_leaves_nothing_behind(
    make: Callable[..., Awaitable[Any]], kind: Any, version: str
) -> None:
    engine = await make(version, **kind.options)
    async with kind(engine.socket) as control:
        survivor, victim = [await control.run(name) for name in ("survivor", "victim")]
        before = await control.pids()
        engine.freeze()
        waiting = asyncio.ensure_future(control.ask())  # it is connected, and not answered
        answered, _ = await asyncio.wait({waiting}, timeout=0.3)
        assert (answered, engine.running) == (set(), True)
        engine.thaw()
        await waiting
        if kind is Pods:  # whose events have not been asked for
            await asyncio.to_thread(engine.kill)
        else:
            async with control.events() as events:
                await asyncio.to_thread(engine.kill)
                assert [told async for told in events] == []
        assert not engine.running
        with pytest.raises((aiohttp.ClientError, grpc.aio.AioRpcError), match=r"refused|Cannot connect"):
            await control.ask()
    os.kill(before[victim], signal.SIGKILL)
    await eventually(lambda: not alive(before[victim]))
    await asyncio.to_thread(engine.start)
    async with kind(engine.socket) as control:
        assert await control.end_of(victim) == kind.ended[version]
        assert await control.pids() == {id: pid for id, pid in before.items() if id != victim}
        orphan = await control.run("orphan")
        pids = await control.pids()
    sockets = []
    if kind is not Docker:  # it shares these with no other engine
        sockets = engine.shim_sockets()
        for names in (_cgroups(engine), list(engine.root.glob("runc/*/*"))):
            assert all(any(path.name.endswith(id) for path in names) for id in (survivor, orphan))
        assert len(sockets) >= 2
    await asyncio.to_thread(engine.kill)
    assert all(alive(pid) for pid in pids.values())
    await asyncio.to_thread(engine.close)
    assert _traces(engine, pids.values(), sockets) == []


@live
@pytest.mark.parametrize("version", VERSIONS)
async def test_containers_die_with_a_restarted_engine_without_live_restore(
    make: Callable[..., Awaitable[Any]], version: str
) -> None:
    engine = await make(version)
    async with DockerControl(engine.socket) as control:
        container = await control.run("victim", stop_signal="SIGKILL")
        await asyncio.to_thread(engine.restart)
        assert await control.truth() == {}
        assert [listed["Id"] for listed in await control.list(all=True)] == [container]


@live
@pytest.mark.parametrize("version", VERSIONS)
async def test_engine_with_tls_talks_to_those_with_its_certificate(
    make: Callable[..., Awaitable[Any]], version: str
) -> None:
    engine = await make(version, tls=True)
    tls = ssl.create_default_context(cafile=str(engine.certificates / "ca.pem"))
    async with aiohttp.ClientSession(engine.tcp_address.replace("tcp://", "https://")) as session:
        with pytest.raises(aiohttp.ClientError):
            await (await session.get("/_ping", ssl=tls)).text()
        tls.load_cert_chain(engine.certificates / "cert.pem", engine.certificates / "key.pem")
        async with session.get("/_ping", ssl=tls) as response:
            assert await response.text() == "OK"


@live
@pytest.mark.parametrize("version", CONTAINERD_VERSIONS)
async def test_clients_can_run_containers_from_an_image(make: Callable[..., Awaitable[Any]], version: str) -> None:
    engine = await make(version)
    image = "registry.local/tiny:1"
    for namespace in ("default", "other"):
        await asyncio.to_thread(engine.import_image, namespace, image)
        run = ["run", "--detach", "--net-host", "--runc-root", f"{engine.root}/runc", image, "web"]
        await asyncio.to_thread(engine.ctr, *run, namespace=namespace)
    async with ContainerdControl(engine.socket) as control:
        truth = await control.truth()
        assert {key: (found.status, found.image) for key, found in truth.items()} == {
            (namespace, "web"): ("RUNNING", image) for namespace in ("default", "other")
        }


@live
@pytest.mark.parametrize(
    ("fixture", "version", "why"),
    [("make_dockerd", "20.10", "points to a file"), ("make_containerd", "1.7", "not a directory")],
)
def test_engine_that_cannot_start_tells_why(
    request: pytest.FixtureRequest, need: Callable[[str, str], None], fixture: str, version: str, why: str
) -> None:
    need("an engine", version)
    root = Path(tempfile.mkdtemp(prefix="ww-"))  # pytest's own folders are too deep for sockets
    (root / ("data" if fixture == "make_dockerd" else "containerd")).write_text("not a folder")
    with pytest.raises(EngineFailedError, match=why):
        request.getfixturevalue(fixture)(version, root=root)
    assert not root.exists()


@pytest.mark.parametrize(("make_engine", "version"), [(Dockerd, "20.10"), (Containerd, "1.7")])
def test_folder_too_deep_for_a_socket_is_refused(make_engine: Callable[..., object], version: str) -> None:
    with pytest.raises(ValueError, match="too long"):
        make_engine(version, Path("/tmp") / ("x" * 100))  # noqa: S108 - nothing is written there


# -- helpers -----------------------------------------------------------------------------------------------------------


def _cgroups(engine: Dockerd | Containerd) -> list[Path]:
    return [path for depth in ("", "*/") for path in Path("/sys/fs/cgroup").glob(f"{depth}{engine.root.name}-*/**/")]


def _traces(engine: Dockerd | Containerd, pids: Iterable[int], paths: Iterable[Path]) -> list[str]:
    """Return what is still there of an engine, its processes, and the folders and sockets of its containers."""
    root = str(engine.root)
    traces = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if root in line]
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):  # it has just ended
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if root in line:
                    traces.append(f"{folder.name} {line}")
    left = [path for path in (engine.root, *paths, *_cgroups(engine)) if path.exists()]
    return traces + [f"process {pid}" for pid in pids if alive(pid)] + [str(path) for path in left]
