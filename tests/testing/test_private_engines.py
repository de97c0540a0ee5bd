"""The real engines that tests have for themselves: they hang, die, come back, and leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


@dataclass(frozen=True)
class Kind:
    """A kind of engine, and what to do with it in words that are the same for all.

    Attributes:
        options: how such an engine is started.
        control: its driver.
        ask: makes a call.
        run: runs something of a name, and returns its id.
        pids: the PIDs of what is alive, by id.
        ended: what is told of a container that has ended by SIGKILL while the engine was away; by version.
        end_of: asks for that.
    """

    options: dict[str, bool]
    control: Any
    ask: Callable[[Any], Awaitable[object]]
    run: Callable[[Any, str], Awaitable[str]]
    pids: Callable[[Any], Awaitable[dict[str, int]]]
    end_of: Callable[[Any, str], Awaitable[object]]
    ended: dict[str, object]


async def _docker_pids(control: DockerControl) -> dict[str, int]:
    return {id: inspection["State"]["Pid"] for id, inspection in (await control.truth()).items()}


async def _docker_end(control: DockerControl, id: str) -> object:
    return (await control.inspect(id))["State"]["Status"]


async def _run_task(control: ContainerdControl, id: str) -> str:
    namespace = "other" if id == "orphan" else "default"
    await control.run(id, namespace)
    if id == "orphan":
        await control.pause(id, namespace)  # what is frozen cannot be killed
    return id


async def _task_pids(control: ContainerdControl) -> dict[str, int]:
    return {id: found.pid for (_, id), found in (await control.truth()).items()}


async def _task_end(control: ContainerdControl, id: str) -> object:
    assert id in await control.containers()
    return (await control.tasks()).get(id, ("none", 0))[0]


async def _run_in_pod(control: CRIControl, name: str) -> str:
    return await control.run(await control.run_pod(name), name)


KINDS = {
    "Docker": Kind(
        options={"live_restore": True},
        control=DockerControl,
        ask=lambda control: control.info(),
        run=lambda control, name: control.run(name),
        pids=_docker_pids,
        end_of=_docker_end,
        ended=dict.fromkeys(VERSIONS, "exited"),
    ),
    "containerd": Kind(
        options={},
        control=ContainerdControl,
        ask=lambda control: control.namespaces(),
        run=_run_task,
        pids=_task_pids,
        end_of=_task_end,
        ended={"1.6": "STOPPED", "1.7": "none"},
    ),
    "CRI": Kind(
        options={"cri": True},
        control=CRIControl,
        ask=lambda control: control.version(),
        run=_run_in_pod,
        pids=lambda control: control.truth(),
        end_of=CRIControl.exited,
        ended={"1.6": 137, "1.7": 255},  # 1.7 finds that the process is gone, and does not know how it ended
    ),
}


@pytest.fixture
async def make(
    make_dockerd: Callable[..., Dockerd], make_containerd: Callable[..., Containerd]
) -> Callable[..., Awaitable[Any]]:
    """Start a real engine for one test alone: `make(version, **options)`."""

    async def start(version: str, **options: Any) -> Any:
        return await asyncio.to_thread(make_dockerd if version in VERSIONS else make_containerd, version, **options)

    return start


@live
@pytest.mark.parametrize(("kind", "version"), [(kind, version) for kind in KINDS for version in KINDS[kind].ended])
async def test_containers_outlive_an_engine_that_hangs_or_is_killed_and_closing_it_leaves_nothing_behind(
    make: Callable[..., Awaitable[Any]], kind: str, version: str
) -> None:
    does = KINDS[kind]
    engine = await make(version, **does.options)
    async with does.control(engine.socket) as control:
        survivor, victim = [await does.run(control, name) for name in ("survivor", "victim")]
        before = await does.pids(control)
        engine.freeze()
        waiting = asyncio.ensure_future(does.ask(control))  # it is connected, and not answered
        answered, _ = await asyncio.wait({waiting}, timeout=0.3)
        assert (answered, engine.running) == (set(), True)
        engine.thaw()
        await waiting
        if kind == "CRI":  # whose events have not been asked for
            await asyncio.to_thread(engine.kill)
        else:
            async with control.events() as events:
                await asyncio.to_thread(engine.kill)
                assert [told async for told in events] == []
        assert not engine.running
        with pytest.raises((aiohttp.ClientError, grpc.aio.AioRpcError), match=r"refused|Cannot connect"):
            await does.ask(control)
    os.kill(before[victim], signal.SIGKILL)
    await eventually(lambda: not alive(before[victim]))
    await asyncio.to_thread(engine.start)
    async with does.control(engine.socket) as control:
        assert await does.end_of(control, victim) == does.ended[version]
        assert await does.pids(control) == {id: pid for id, pid in before.items() if id != victim}
        orphan = await does.run(control, "orphan")
        pids = await does.pids(control)
    sockets = engine.shim_sockets() if kind != "Docker" else []
    if kind != "Docker":  # it shares these with no other engine
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
