"""Why a container has exited: memory ran out, or a stop was asked for, as far as the engine tells it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from tests.conftest import Docker
from tests.support.checker import checked
from tests.support.followed import AT_ONCE, Followed, eventually, followed
from tests.support.scripted import ScriptedEngine, box
from whalewatch import Container, ContainerEvent, Dead, EventType, Signal, SignalType, Watcher, containerd, moby
from whalewatch._core.endings import MAX_REMEMBERED, Ending, Endings
from whalewatch._core.state import ContainerState
from whalewatch.moby.reading import signal
from whalewatch.testing import FakeContainerd, FakeDocker
from whalewatch.testing.shared.protobuf import message

pytestmark = pytest.mark.promise(2)

UNTIL_TOLD = ["/bin/sh", "-c", "trap : HUP USR1; : > /ready; until [ -e /end ]; do sleep 0.02; done"]


async def ended_by_itself(docker: Docker, id: str) -> None:
    if docker.fake is None:
        await docker.control.exec(id, ["/bin/sh", "-c", ": > /end"])
    else:
        docker.fake.exit(id, 0)


async def ended_after_signals(docker: Docker, id: str) -> None:
    if docker.fake is None:  # a process of the fake ends at any signal
        await docker.control.kill(id, "SIGHUP")
        await docker.control.kill(id, "SIGUSR1")
    await ended_by_itself(docker, id)


async def killed(docker: Docker, id: str) -> None:
    await docker.control.kill(id)


async def stopped(docker: Docker, id: str) -> None:
    await docker.control.stop(id)


async def removed(docker: Docker, id: str) -> None:
    await docker.control.remove(id)


@pytest.mark.parametrize(
    ("end", "requested"),
    [(ended_by_itself, False), (ended_after_signals, False), (killed, True), (stopped, True), (removed, True)],
)
async def test_docker_tells_whether_a_stop_was_asked_for(
    docker: Docker, end: Callable[[Docker, str], Awaitable[None]], requested: bool
) -> None:
    ready = ["/bin/sh", "-c", "until [ -e /ready ]; do sleep 0.02; done"]
    async with checked(docker.address, docker.control, kernel=False) as check:
        for _ in range(3):
            id = await docker.control.run(cmd=UNTIL_TOLD)
            if docker.fake is None:
                await docker.control.exec(id, ready)
            await check.expect(id, "started")
            await end(docker, id)
            _, exited = await check.expect(id, "started", "exited")
            assert (exited.requested, exited.oom) == (requested, None)


@pytest.mark.parametrize(
    ("number", "stops"),
    [("9", True), ("15", True), ("3", True), ("28", True), ("1", False), ("10", False), ("18", False)],
)
def test_signals_that_ask_for_something_else_are_no_stops(number: str, stops: bool) -> None:
    actor = {"ID": "a", "Attributes": {"signal": number}}
    read = signal({"Type": "container", "Action": "kill", "Actor": actor, "timeNano": 10**18}, "")
    assert (read is not None and read.type is SignalType.STOPPING) is stops


async def test_docker_tells_that_memory_ran_out(docker: Docker) -> None:
    async with checked(docker.address, docker.control, kernel=False) as check:
        if docker.fake is None:
            greedy = ["/bin/sh", "-c", "until [ -e /end ]; do sleep 0.02; done; tail /dev/zero"]
            id = await docker.control.run(cmd=greedy, memory=16 << 20)
        else:
            id = docker.fake.run()
        await check.expect(id, "started")
        if docker.fake is None:
            await docker.control.exec(id, ["/bin/sh", "-c", ": > /end"])
        else:
            docker.fake.exit(id, 137, oom=True)
        _, exited = await check.expect(id, "started", "exited")
        assert (exited.exit_code, exited.oom, exited.requested) == (137, True, False)


def told(events: list[ContainerEvent]) -> list[tuple[bool | None, bool | None]]:
    return [(event.oom, event.requested) for event in events if event.type is EventType.EXITED]


def seen(follow: Followed, types: list[str]) -> bool:
    return follow.types("web") == types


@pytest.mark.live
@pytest.mark.parametrize("docker", ["20.10", "26.1"], indirect=True)
async def test_containerd_tells_that_memory_ran_out(docker: Docker) -> None:
    """Of Docker's own containers: containerd alone bounds no memory."""
    assert docker.dockerd is not None
    async with followed(containerd.watch(docker.dockerd.containerd.address, ignore=(), kernel=False)) as follow:
        id = await docker.control.run(cmd=["/bin/sh", "-c", "sleep 0.5; tail /dev/zero"], memory=16 << 20)
        await follow.until(lambda: follow.types(f"moby/{id}") == ["started", "exited"])
        exited = follow.news(f"moby/{id}")[-1]
        assert (exited.exit_code, exited.oom, exited.requested) == (137, True, None)


async def test_what_engines_do_not_tell_is_not_known() -> None:
    async with FakeContainerd() as fake, followed(containerd.watch(fake.address)) as follow:
        for number, oom in enumerate((None, True, None)):
            (fake.start if number else fake.run)("web")
            await follow.until(partial(seen, follow, ["started", "exited"] * number + ["started"]))
            if oom:
                fake.tell("/tasks/oom", "containerd.events.TaskOOM", message((1, "web")))
            fake.exit("web", 7)
            await follow.until(partial(seen, follow, ["started", "exited"] * (number + 1)))
        assert told(follow.news("web")) == [(None, None), (True, None), (None, None)]
        assert {event.exit_code for event in follow.news("web") if event.type is EventType.EXITED} == {7}


async def test_what_was_told_of_a_former_run_is_not_told_of_the_next() -> None:
    engine = ScriptedEngine(box("a", pid=1))
    async with followed(Watcher(engine)) as follow:
        engine.tell(SignalType.STOPPING, "a")
        engine.tell(SignalType.OOM, "unknown")
        engine.exit("a")
        engine.tell(SignalType.OOM, "a")  # too late
        engine.start(box("a", pid=2))
        await follow.until(lambda: follow.types("a")[-1:] == ["started"])
        engine.exit("a")
        await follow.until(lambda: follow.types("a").count("exited") == 2)
        assert told(follow.news("a")) == [(None, True), (None, None)]
        assert follow.types("unknown") == []


async def test_each_run_is_told_its_own_end_also_if_none_of_them_was_read() -> None:
    async with FakeDocker() as fake, followed(moby.watch(fake.address)) as follow:
        gate = fake.faults.pause_at("inspect")
        id = fake.run("web")
        fake.exit(id, 137, oom=True)
        fake.start(id)
        fake.exit(id, 0)
        fake.start(id)
        fake.kill(id)
        await follow.until_stats(lambda stats: stats.signals >= 9)
        gate.release()
        await follow.until(lambda: len(follow.news(id)) == 6)
        assert told(follow.news(id)) == [(True, False), (None, False), (False, True)]


async def test_that_no_stop_was_asked_for_is_not_known_of_a_run_that_was_not_observed_all_the_time() -> None:
    async with FakeDocker() as fake:
        before, asked = fake.run("before"), fake.run("asked")
        async with followed(moby.watch(fake.address, retry=AT_ONCE)) as follow:
            fake.exit(before, 1)
            await follow.until(lambda: follow.types(before) == ["exited"])
            assert told(follow.news(before)) == [(None, None)]
            fake.emit_raw(
                json.dumps(
                    {"Type": "container", "Action": "kill", "Actor": {"ID": asked, "Attributes": {"signal": "15"}}}
                    | {"time": 1, "timeNano": 10**9}
                ).encode()
                + b"\n"
            )
            await eventually(lambda: asked in follow.watcher._tracker._endings._told)
            fake.faults.refuse()
            await follow.until_stats(lambda stats: stats.outages)
            await fake.faults.accept()
            await follow.until(lambda: follow.snapshot.synced)
            fake.exit(asked, 143)
            await follow.until(lambda: follow.types(asked) == ["exited"])
            assert told(follow.news(asked)) == [(None, True)]


async def test_inspect_of_a_dead_container_tells_that_memory_ran_out() -> None:
    class Killed(ScriptedEngine):
        async def inspect(self, id: str, /) -> Container | Dead | None:  # type: ignore[override]
            return await super().inspect(id) or Dead(box("a", pid=1), 137, oom=True)

    engine = Killed(box("a", pid=1))
    async with followed(Watcher(engine)) as follow:
        engine.alive.clear()
        engine.tell(SignalType.CHANGED, "a")
        await follow.until(lambda: follow.types("a")[-1:] == ["exited"])
        assert told(follow.news("a")) == [(True, None)]


def test_what_is_told_and_never_happens_takes_bounded_memory() -> None:
    endings = Endings()
    for number in range(MAX_REMEMBERED + 1):
        endings.hear(ContainerState(), Signal(SignalType.STOPPING, str(number)))
    for _ in range(2):
        endings.hear(ContainerState(), Signal(SignalType.OOM, "1"))
    assert [endings.take(id) for id in ("0", "1", "1", "2")] == [
        *(Ending(), Ending(oom=True, requested=True), Ending(), Ending(requested=True))
    ]
