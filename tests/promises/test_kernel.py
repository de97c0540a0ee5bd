"""Exits that the kernel tells, of real processes: before every engine, and whatever the engine does."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Docker
from tests.promises.conftest import CONTAINERDS, CRIS, DOCKERS, Subject
from tests.support.checker import PATIENCE, checked
from tests.support.followed import eventually
from tests.support.processes import TELLS_CODES, ContainerProcesses
from tests.support.programs import Child, child
from whalewatch import ContainerEvent, Origin, moby
from whalewatch._core import kernel
from whalewatch.testing import FakeDocker

pytestmark = [pytest.mark.live, pytest.mark.promise(2), pytest.mark.promise(3)]

on_docker = pytest.mark.parametrize("docker", ["20.10", "26.1"], indirect=True)
CODE = 137 if TELLS_CODES else None


@pytest.fixture(autouse=TELLS_CODES)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a code until the process is reaped, which takes more than a second on a machine that is busy."""
    monkeypatch.setattr(kernel, "CODE_DELAY", PATIENCE)


def told(event: ContainerEvent) -> tuple[str, Origin, int | None]:
    return event.type.value, event.origin, event.exit_code


# ---- the engine is there, or not


@pytest.mark.parametrize("subject", [*DOCKERS, *CONTAINERDS, *CRIS], indirect=True)
async def test_exits_are_told_while_the_engine_is_frozen_and_amended_by_what_it_says_later(subject: Subject) -> None:
    ids = [await subject.run(name) for name in ("one", "other", "survivor")]
    async with subject.checked(heartbeat=60.0, call_timeout=30.0) as check:
        await check.settled()
        alive = dict(check.fold.alive)
        assert check.stats.kernel.watched == len(alive), check.stats.kernel
        engine = check.watcher.engine
        await asyncio.to_thread(subject.engine.freeze)
        for id in ids[:2]:
            pid = alive[id].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            (exited,) = await check.expect(id, "exited")
            assert told(exited) == ("exited", Origin.KERNEL, CODE)
        assert len(check.watcher.portfolio.snapshot()) == len(alive) - 2
        before = check.stats.signals
        subject.engine.thaw()
        if engine.source != "poll":
            await eventually(lambda: check.stats.signals > before)
        await check.settled()
        assert [check.types(id) for id in ids] == [["exited"], ["exited"], []]
        assert [event.exit_code for event in check.watcher.endings] == [137, 137]
        assert (check.stats.kernel.first, check.stats.drift) == (2, 0)


@on_docker
async def test_that_a_stop_was_asked_for_is_told_later(docker: Docker) -> None:
    async with checked(docker.address, docker.control) as check:
        asked, died = [await docker.run_command(name) for name in ("asked", "died")]
        await check.expect(died, "started")
        await check.expect(asked, "started")
        await docker.control.kill(asked)
        pid = check.fold.alive[died].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        for id in (asked, died):
            _, exited = await check.expect(id, "started", "exited")
            assert told(exited) == ("exited", Origin.KERNEL, CODE)
        requested = {asked: True, died: False}
        await eventually(lambda: {e.container.id: e.requested for e in check.watcher.endings} == requested)


@on_docker
async def test_container_that_the_engine_restarts_at_once_is_told_as_exit_and_start(docker: Docker) -> None:
    async with checked(docker.address, docker.control) as check:
        id = await docker.control.run("phoenix", restart="always")
        types = ["started"]
        await check.expect(id, *types)
        for _ in range(3):
            pid = check.fold.alive[id].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            types += ["exited", "started"]
            events = await check.expect(id, *types)
            assert told(events[-2]) == ("exited", Origin.KERNEL, CODE)
            assert events[-1].container.pid not in {None, pid}


@on_docker
async def test_processes_of_any_pid_namespace_are_watched_and_none_that_is_executed(docker: Docker) -> None:
    async with checked(docker.address, docker.control) as check:
        first = await docker.control.run("first")
        hosts = await docker.control.run("hosts", pid_mode="host")
        shared = await docker.control.run("shared", pid_mode=f"container:{first}")
        for id in (first, hosts, shared):
            await check.expect(id, "started")
        assert check.stats.kernel.watched == 3
        await docker.control.exec(first, ["/bin/true"])
        await docker.control.exec(hosts, ["/bin/true"])
        for id in (shared, hosts, first):
            pid = check.fold.alive[id].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            _, exited = await check.expect(id, "started", "exited")
            assert told(exited) == ("exited", Origin.KERNEL, CODE)
        assert check.stats.kernel.watched == 0


@on_docker
async def test_containers_that_die_at_once_are_told_each(docker: Docker) -> None:
    async with checked(docker.address, docker.control, audit=None) as check:
        ids = await asyncio.gather(*(docker.control.run() for _ in range(20)))
        await check.until(lambda: check.fold.alive.keys() == set(ids))
        for container in list(check.fold.alive.values()):
            assert container.pid is not None
            os.kill(container.pid, signal.SIGKILL)
        await check.until(lambda: not check.fold.alive)
        await check.settled()
        assert {tuple(check.types(id)) for id in ids} == {("started", "exited")}
        assert check.stats.kernel.first > 15, "the engine needs some time for all"


# ---- who watches


@asynccontextmanager
async def engine_of(
    processes: ContainerProcesses, count: int = 1, *command: str
) -> AsyncIterator[tuple[FakeDocker, dict[str, subprocess.Popen[bytes]]]]:
    """A Docker engine of which the containers have real processes, by id, and whose socket anybody may open."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # noqa: PTH101, S103 - the program of nobody is to find the socket
        async with FakeDocker(Path(folder) / "docker.sock") as fake:
            fake.path.chmod(0o666)
            ids = [fake.run() for _ in range(count)]
            started = processes.start_all(ids, *command)
            for id, process in zip(ids, started, strict=True):
                fake.containers[id].pid = process.pid
            yield fake, dict(zip(ids, started, strict=True))


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


async def lines(program: Child, count: int) -> Counter[str]:
    return Counter([(await program.line()).strip() for _ in range(count)])


KERNEL, ENGINE = f"kernel {CODE}", "engine 137"


@pytest.mark.parametrize(
    ("options", "count", "least", "most"),
    [
        ([], 20, 20, 20),
        (["user=65534"], 20, 20, 20),
        (["files=64"], 300, 15, 32),
        (["files=256"], 300, 100, 128),
        (["files=1024"], 300, 300, 300),
    ],
    ids=["root", "nobody", "64 files", "256 files", "1024 files"],
)
async def test_anybody_may_watch_processes_and_half_of_the_descriptors_is_left_alone(
    processes: ContainerProcesses, options: list[str], count: int, least: int, most: int
) -> None:
    async with (
        engine_of(processes, count) as (fake, started),
        child("-m", "tests.support.exits", fake.address, *options) as program,
    ):
        stats: dict[str, Any] = json.loads(await program.line())
        watched = stats["watched"]
        assert least <= watched <= most, stats
        assert stats["refused"] == ({"limit": count - watched} if watched < count else {})
        for process in started.values():
            process.kill()
        await asyncio.to_thread(lambda: [process.wait() for process in started.values()])
        assert await lines(program, watched) == {KERNEL: watched}
        for id in started:
            fake.exit(id, 137)
        assert await lines(program, count - watched) == ({ENGINE: count - watched} if watched < count else {})
        assert await program.ended() == (0, "", "")


@pytest.mark.parametrize("mounts", [(), ("--mount-proc",)], ids=["foreign /proc", "its /proc"])
async def test_watcher_in_another_pid_namespace_uses_nothing(
    processes: ContainerProcesses, mounts: tuple[str, ...]
) -> None:
    before = ("unshare", "--pid", "--fork", "--kill-child", *mounts)
    async with (
        engine_of(processes, 3) as (fake, started),
        child("-m", "tests.support.exits", fake.address, before=before) as program,
    ):
        stats = json.loads(await program.line())
        assert (stats["watched"], stats["refused"]) == (0, {"engine": 3})
        for id in started:
            fake.exit(id, 137)
        assert await lines(program, 3) == {ENGINE: 3}
        assert await program.ended() == (0, "", "")


async def test_process_in_namespaces_of_its_own_is_watched(processes: ContainerProcesses) -> None:
    command = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "sleep", "1000")
    async with engine_of(processes, 1, *command) as (fake, started), moby.watch(fake.address) as watcher:
        await watcher.ready(PATIENCE)
        assert watcher.stats.kernel.watched == 1
        for id, process in started.items():
            end(process)
            exited = await watcher.portfolio.wait_gone(id, PATIENCE)
            assert exited is not None
            assert told(exited) == ("exited", Origin.KERNEL, CODE)


async def test_pid_that_is_another_process_by_now_is_left_to_the_engine(processes: ContainerProcesses) -> None:
    """The engine still says that the container is alive, under a PID that belongs to somebody else."""
    async with engine_of(processes) as (fake, started):
        for process in started.values():
            end(process)
            other = processes.start_as(process.pid, None)
        async with moby.watch(fake.address) as watcher:
            await watcher.ready(PATIENCE)
            assert (watcher.stats.kernel.watched, dict(watcher.stats.kernel.refused)) == (0, {"foreign": 1})
            end(other)
            for id in started:
                fake.exit(id, 3)
                exited = await watcher.portfolio.wait_gone(id, PATIENCE)
                assert exited is not None
                assert told(exited) == ("exited", Origin.ENGINE, 3)
