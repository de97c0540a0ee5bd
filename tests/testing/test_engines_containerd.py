"""The containerd engines that other tests rely on: real ones do as they are told, and the fake does as they do."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from tests.conftest import PATIENCE
from tests.support.engines.containerd_control import IMAGE, MARK, Alive, ContainerdControl
from tests.support.engines.process import descendants, thread_states
from tests.support.followed import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tests.conftest import ContainerdUnderTest
    from tests.support.engines.containerd import Containerd
    from tests.support.engines.containerd_control import Told

    Step = Callable[[ContainerdControl], Awaitable[object]]

SH = ["/bin/sh", "-c"]
EXIT_4 = [*SH, "exit 4"]


# -- real engines do as they are told ----------------------------------------------------------------------------------


async def test_listings_show_what_is_there_and_its_state(containerd: ContainerdUnderTest) -> None:
    control = containerd.control
    await control.create("bare", labels={"a": "b"}, image="some:1")
    await control.create("created")
    created = await control.task_create("created")
    web = await control.run("web", labels={"c": "d"}, image="other:2")
    elsewhere = await control.run("web", "other")
    await control.pause("web", "other")
    exited = await control.run("exited", cmd=[*SH, "exit 3"])
    assert await control.wait("exited") == 3
    first = await control.run("killed")
    await control.kill_and_wait("killed")
    killed = await control.rerun("killed")
    assert killed != first
    assert (await control.exec("killed", "probe", EXIT_4), await control.exec("killed", "killed")) == (4, 0)
    await control.kill_and_wait("killed")
    tasks, containers = await control.tasks(), await control.containers()
    stopped = {"exited": ("STOPPED", exited), "killed": ("STOPPED", killed)}  # their PID is still told
    assert tasks == stopped | {"created": ("CREATED", created), "web": ("RUNNING", web)}
    assert containers.keys() == {*tasks, "bare"}
    assert (dict(containers["bare"].labels), containers["bare"].image) == ({"a": "b"}, "some:1")
    assert await control.truth() == {
        ("default", "web"): Alive("default", "web", web, "RUNNING", {"c": "d"}, "other:2"),
        ("other", "web"): Alive("other", "web", elsewhere, "PAUSED", {}, IMAGE),
    }
    assert await control.tasks("nowhere") == await control.containers("nowhere") == {}
    await control.remove("web", "other")
    assert (list(await control.truth()), await control.containers("other")) == ([("default", "web")], {})


REFUSALS = {
    "ALREADY_EXISTS": ["create web", "task_create web", "namespace_create default"],
    "FAILED_PRECONDITION": ["namespace_delete default", "_call Tasks List", "_call Containers List"],
    "INVALID_ARGUMENT": ["create web !!"],
    "NOT_FOUND": ["namespace_delete nowhere", "container_delete nobody", "kill nobody", "kill exited"],
    "UNKNOWN": [
        *("task_delete web", "resume web", "pause exited", "exec exited x", "subscribe topic==/tasks/start"),
        'subscribe topic==/tasks/start/ topic=="/tasks/exit",namespace=="default"',
    ],
}
"""Calls that make no sense where "web" runs and "exited" does not, by what they are answered with."""


async def test_what_makes_no_sense_is_refused(containerd: ContainerdUnderTest) -> None:
    async def subscribe(*filters: str) -> None:
        async with control.events(*filters):
            pass

    control = containerd.control
    await control.run("web")
    await control.run("exited", cmd=["/bin/true"])
    await control.wait("exited")
    for code, calls in REFUSALS.items():
        for call in calls:
            name, *arguments = call.split()
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await (subscribe if name == "subscribe" else getattr(control, name))(*arguments)
            assert refused.value.code().name == code, call


# -- the fake does as the real ones do ---------------------------------------------------------------------------------


def do(name: str, *arguments: Any, **options: Any) -> Step:
    """Do something to the container named "it"."""
    return lambda control: getattr(control, name)("it", *arguments, **options)


# What each scenario, and the removal at its end, says on the event stream between the creation and the deletion.
_BEGUN = "create it, start it"
_ENDED = "exit it 137, delete it 137"


def _executed(id: str) -> str:
    return f"exec-added it/{id}, exec-started it/{id}"


SCENARIOS: dict[str, tuple[list[Step], str]] = {
    "run": ([do("run")], f"{_BEGUN}, {_ENDED}"),
    "kill": ([do("run"), do("kill_and_wait")], f"{_BEGUN}, {_ENDED}"),
    "exit": ([do("run", cmd=EXIT_4), do("wait")], f"{_BEGUN}, exit it 4, delete it 4"),
    "run-again": ([do("run"), do("kill_and_wait"), do("rerun")], f"{_BEGUN}, {_ENDED}, {_BEGUN}, {_ENDED}"),
    "pause": ([do("run"), do("pause"), do("resume")], f"{_BEGUN}, paused it, resumed it, {_ENDED}"),
    "kill-paused": ([do("run"), do("pause"), do("kill_and_wait")], f"{_BEGUN}, paused it, {_ENDED}"),
    "exec": ([do("run"), do("exec", "x", EXIT_4)], f"{_BEGUN}, {_executed('x')}, exit it/x 4, {_ENDED}"),
    # Only the PID tells this exit from the container's own.
    "exec-named-like-it": ([do("run"), do("exec", "it", EXIT_4)], f"{_BEGUN}, {_executed('it')}, exit it 4, {_ENDED}"),
    "exec-outlived-by-none": (
        [do("run"), do("exec_start", "long"), do("kill_and_wait")],
        f"{_BEGUN}, {_executed('long')}, exit it/long 137, {_ENDED}",
    ),
    "update": (
        [do("run", labels={"a": "b"}), do("update_labels", {"c": "d"}), do("update_image", "other:2")],
        f"{_BEGUN}, /containers/update it c=d, /containers/update it c=d, {_ENDED}",
    ),
    "never-run": ([do("create")], ""),
    "never-started": ([do("create"), do("task_create")], f"create it, {_ENDED}"),
    "record-deleted-first": (
        [do("run", cmd=["/bin/true"]), do("wait"), do("task_delete"), do("container_delete")],
        f"{_BEGUN}, exit it 0, delete it",
    ),
}


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_engine_tells_what_happens_to_a_container(containerd: ContainerdUnderTest, scenario: str) -> None:
    steps, expected = SCENARIOS[scenario]
    told = await _watch(containerd.control, steps)
    assert _life(told) == expected
    assert {event.namespace for event in told} == {"default"}


async def test_engine_tells_of_namespaces_that_are_created_and_deleted_as_such(containerd: ContainerdUnderTest) -> None:
    told = await _watch(
        containerd.control,
        [
            lambda control: control.namespace_create("told", {"a": "b"}),
            lambda control: control.namespace_delete("told"),
            do("create", "untold"),
            do("container_delete", "untold"),
            lambda control: control.namespace_delete("untold"),
        ],
    )
    assert " ".join(f"{event.namespace}:{event.topic}" for event in told) == (
        "told:/namespaces/create told:/namespaces/delete "
        "untold:/containers/create untold:/containers/delete untold:/namespaces/delete"
    )
    assert (told[0].event.name, dict(told[0].event.labels)) == ("told", {"a": "b"})


async def test_events_carry_the_pid_and_the_time_of_the_exit_and_tell_nothing_of_a_signal_that_ends_nothing(
    containerd: ContainerdUnderTest,
) -> None:
    pids: list[int] = []

    async def signalled(control: ContainerdControl) -> None:
        pids.append(await control.run("it"))
        if containerd.fake is None:  # whose process may still be the runtime, which the signal would end
            await eventually(lambda: Path(f"/proc/{pids[0]}/comm").read_text() == "sleep\n")
        await control.kill("it", signal=signal.SIGUSR1)
        assert (await control.tasks())["it"][0] == "RUNNING"
        pids.append(await control.exec_start("it", "probe"))

    told = await _watch(containerd.control, [signalled])
    assert _life(told) == f"{_BEGUN}, {_executed('probe')}, exit it/probe 137, {_ENDED}"
    it, probe = pids
    assert [event.event.pid for event in told if hasattr(event.event, "pid")] == [it, it, probe, probe, it, it]
    exited, deleted = told[-3], told[-2]
    assert exited.event.exited_at == deleted.event.exited_at
    assert 0 <= exited.timestamp - exited.event.exited_at.ToNanoseconds() < 10_000_000_000
    assert deleted.event.id == ""


@pytest.mark.parametrize(
    ("filters", "topics"),
    [
        (['topic=="/tasks/start"'], ["/tasks/start"]),
        (['topic~="^/tasks/"'], ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]),
        (['topic=="/tasks/start"', 'topic=="/tasks/exit"'], ["/tasks/start", "/tasks/exit"]),
        (['topic~="^/tasks/",namespace=="other"'], []),
        (['topic~="delete$",namespace!="other"'], ["/tasks/delete", "/containers/delete"]),
        (["nonsense==x"], []),
    ],
)
async def test_filters_choose_events(containerd: ContainerdUnderTest, filters: list[str], topics: list[str]) -> None:
    told = await _watch(containerd.control, [do("run")], *filters)
    assert [event.topic for event in told] == topics


async def test_task_outlives_the_record_of_its_container(containerd: ContainerdUnderTest) -> None:
    control = containerd.control
    pid = await control.run("it")
    await control.container_delete("it")
    try:
        assert await control.tasks() == {"it": ("RUNNING", pid)}
        assert await control.truth() == {}
        with pytest.raises(grpc.aio.AioRpcError, match="not found"):
            await control.kill("it")
    finally:
        await control.create("it")


async def test_hung_shim_makes_a_task_unknown_without_a_pid(containerd: ContainerdUnderTest) -> None:
    control = containerd.control
    pid = await control.run("hung")
    other = await control.run("other")
    if containerd.fake is not None:
        with containerd.fake.faults.hang_shim("hung", timeout=0.01):
            hung = await control.tasks()
    else:
        shim = _shim(containerd.engine, pid)
        os.kill(shim, signal.SIGSTOP)
        try:
            await eventually(lambda: thread_states(shim) == {"T"})
            hung = await control.tasks()
        finally:
            os.kill(shim, signal.SIGCONT)
    assert hung == {"hung": ("UNKNOWN", 0), "other": ("RUNNING", other)}
    assert await control.tasks() == {"hung": ("RUNNING", pid), "other": ("RUNNING", other)}


async def test_killed_shim_takes_its_container_with_it_and_that_is_told(containerd: ContainerdUnderTest) -> None:
    async def killed(control: ContainerdControl) -> None:
        async with control.events('topic=="/tasks/delete"') as deleted, asyncio.timeout(PATIENCE):
            pid = await control.run("it")
            if containerd.fake is not None:
                containerd.fake.faults.kill_shim("it")
            else:
                os.kill(_shim(containerd.engine, pid), signal.SIGKILL)
            await anext(deleted)
        assert await control.tasks() == {}

    assert _life(await _watch(containerd.control, [killed])) == SCENARIOS["run"][1]


# -- helpers -----------------------------------------------------------------------------------------------------------


async def _watch(control: ContainerdControl, scenario: Sequence[Step], *filters: str) -> list[Told]:
    """Return the events of a scenario and of the clean-up after it, those that pass the filters."""
    async with control.events() as everything, control.events(*filters) as wanted, asyncio.timeout(PATIENCE):
        for step in scenario:
            await step(control)
        for id in {*await control.containers(), *await control.tasks()}:
            await control.remove(id)
        await control.mark()
        # Shims tell theirs later than the engine its own: all has been told when all that was created is deleted.
        topics: Counter[str] = Counter()
        while not (
            topics[MARK]
            and topics["/tasks/create"] == topics["/tasks/delete"]
            and topics["/containers/create"] == topics["/containers/delete"]
        ):
            topics[(await anext(everything)).topic] += 1
        await control.mark()
        found: list[Told] = []
        while [told.topic for told in found].count(MARK) < 2:
            found.append(await anext(wanted))
    return [told for told in found if told.topic != MARK]


def _life(told: list[Told]) -> str:
    """Spell the events between the creation of the container and its deletion in short."""
    created, *between, deleted = (_spell(one) for one in told)
    assert (created, deleted) == ("/containers/create it", "/containers/delete it")
    return ", ".join(between)


def _spell(told: Told) -> str:
    """Spell an event in short: its topic, whom it is about, its exit code, its labels."""
    event = told.event
    whom = getattr(event, "container_id", "") or event.id
    if exec_id := getattr(event, "exec_id", ""):
        whom += f"/{exec_id}"
    elif told.topic == "/tasks/exit" and event.id != whom:
        whom += f"/{event.id}"
    parts = [told.topic.removeprefix("/tasks/"), whom]
    if getattr(event, "exit_status", 0) or told.topic == "/tasks/exit":
        parts.append(str(event.exit_status))
    parts += [f"{key}={value}" for key, value in getattr(event, "labels", {}).items()]
    return " ".join(parts)


def _shim(engine: Containerd | None, pid: int) -> int:
    assert engine is not None
    (shim,) = (shim for shim in engine.shims() if pid in descendants(shim))
    return shim
