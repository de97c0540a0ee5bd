"""The real engines that tests have for themselves leave nothing behind, and tell why they cannot start."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import CONTAINERD_VERSIONS, VERSIONS
from tests.support.engines.containerd import Containerd
from tests.support.engines.containerd_control import ContainerdControl
from tests.support.engines.control import DockerControl
from tests.support.engines.cri_control import CRIControl
from tests.support.engines.dockerd import Dockerd
from tests.support.engines.process import EngineFailedError, alive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

live = pytest.mark.live


async def _docker_pids(dockerd: Any) -> list[int]:
    async with DockerControl(dockerd.socket) as control:
        await control.run("orphan")
        return [inspection["State"]["Pid"] for inspection in (await control.truth()).values()]


async def _containerd_pids(containerd: Any) -> list[int]:
    async with ContainerdControl(containerd.socket) as control:
        pids = [await control.run("orphan"), await control.run("frozen", "other")]
        await control.pause("frozen", "other")  # what is frozen cannot be killed
    assert len(_cgroups(containerd)) >= len(containerd.shim_sockets()) == len(pids)
    return pids


async def _cri_pids(containerd: Any) -> list[int]:
    async with CRIControl(containerd.socket) as control:
        orphan = await control.run(await control.run_pod("web"), "orphan")
        pids = list((await control.truth()).values())
    assert (containerd.root / "runc/k8s.io" / orphan).exists()  # it shares this folder with no other engine
    assert any(path.name == orphan for path in _cgroups(containerd))
    return pids


@live
@pytest.mark.parametrize("options", [{}, {"live_restore": True}, {"cri": False}, {"cri": True}], ids=str)
@pytest.mark.parametrize("age", ["old", "new"])
async def test_closing_leaves_nothing_behind_even_of_a_killed_engine(
    make_dockerd: Callable[..., Any], make_containerd: Callable[..., Any], options: dict[str, bool], age: str
) -> None:
    docker = "cri" not in options
    version = (VERSIONS if docker else CONTAINERD_VERSIONS)[age == "new"]
    engine = await asyncio.to_thread(make_dockerd if docker else make_containerd, version, **options)
    run = _docker_pids if docker else _cri_pids if options["cri"] else _containerd_pids
    pids = await run(engine)
    sockets = [] if docker else engine.shim_sockets()
    assert docker or sockets
    await asyncio.to_thread(engine.kill)
    assert all(alive(pid) for pid in pids)
    await asyncio.to_thread(engine.close)
    assert _traces(engine, pids, sockets) == []


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


@pytest.mark.parametrize(("make", "version", "length"), [(Dockerd, "20.10", 80), (Containerd, "1.7", 100)])
def test_folder_too_deep_for_a_socket_is_refused(make: Callable[..., object], version: str, length: int) -> None:
    with pytest.raises(ValueError, match="too long"):
        make(version, Path("/tmp") / ("x" * length))  # noqa: S108 - nothing is written there


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
