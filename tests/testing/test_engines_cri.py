"""The CRI engines that other tests rely on: real ones do as they are told, and the fakes do as they do."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from tests.conftest import FAKE_CRIS
from tests.support.engines.cri_control import CRIControl, Pod
from tests.support.engines.process import alive
from whalewatch.testing import FakeCRI

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.conftest import CRIUnderTest
    from tests.support.engines.containerd import Containerd
    from tests.support.engines.cri_control import Told

    MakeCRI = Callable[..., Containerd]

SH = ["/bin/sh", "-c"]

live = pytest.mark.live
each_version = pytest.mark.parametrize("version", ["1.6", "1.7"])


# -- what engines list -------------------------------------------------------------------------------------------------


async def test_pod_with_containers_is_listed_with_all_that_it_was_given(cri: CRIUnderTest) -> None:
    control = cri.control
    pod = await control.run_pod("web", "shop", uid="u-1", attempt=2, labels={"a": "b"}, annotations={"c": "d"})
    one = await control.run(pod, "one", labels={"e": "f"}, annotations={"g": "h"})
    two = await control.create(pod, "two", attempt=3)
    (sandbox,) = (await control.sandboxes()).values()
    assert (sandbox.id, sandbox.name, sandbox.attempt, sandbox.state) == (pod.id, "web", 2, "READY")
    assert (sandbox.labels, sandbox.annotations) == ({"a": "b"}, {"c": "d"})
    containers = await control.containers()
    assert {id: (found.sandbox, found.name, found.attempt, found.state) for id, found in containers.items()} == {
        one: (pod.id, "one", 0, "RUNNING"),
        two: (pod.id, "two", 3, "CREATED"),
    }
    assert (containers[one].labels, containers[one].annotations) == ({"e": "f"}, {"g": "h"})
    assert (containers[two].labels, containers[two].annotations) == ({}, {})
    told = (await control.call("ListPodSandbox")).items[0].metadata
    assert (told.namespace, told.uid) == ("shop", "u-1")


async def test_what_runs_has_a_pid_of_its_own(cri: CRIUnderTest) -> None:
    pod = await cri.control.run_pod("web")
    ids = {pod.id, await cri.control.run(pod, "one"), await cri.control.run(pod, "two")}
    truth = await cri.control.truth()
    assert truth.keys() == ids
    assert len(set(truth.values())) == 3
    if cri.engine is not None:
        assert all(alive(pid) for pid in truth.values())


async def test_what_does_not_run_has_no_pid(cri: CRIUnderTest) -> None:
    control = cri.control
    pod = await control.run_pod("web")
    created = await control.create(pod, "created")
    killed = await control.run(pod, "killed")
    await control.stop(killed)
    exited = await control.run(pod, "exited", cmd=[*SH, "exit 3"])
    assert (await control.exited(exited), await control.exited(killed)) == (3, 137)
    assert [await control.pid(id) for id in (created, killed, exited)] == [0, 0, 0]
    assert (await control.truth()).keys() == {pod.id}
    await control.stop_pod(pod.id)
    assert await control.pid(pod.id) == 0
    assert await control.truth() == {}


async def test_status_tells_times_and_the_way_it_ended(cri: CRIUnderTest) -> None:
    control = cri.control
    pod = await control.run_pod("web")
    one = await control.create(pod, "one")
    before = await control.container_status(one)
    assert before.created_at > 0
    assert (before.started_at, before.finished_at) == (0, 0)
    await control.start(one)
    while_running = await control.container_status(one)
    assert while_running.started_at > before.created_at
    assert while_running.finished_at == 0
    await control.stop(one)
    after = await control.container_status(one)
    assert after.finished_at > after.started_at == while_running.started_at
    assert (after.exit_code, after.reason, after.created_at) == (137, "Error", before.created_at)


async def test_stopped_pod_is_listed_until_it_is_removed(cri: CRIUnderTest) -> None:
    control = cri.control
    pod = await control.run_pod("web")
    await control.run(pod, "one")
    await control.stop_pod(pod.id)
    assert [found.state for found in (await control.sandboxes()).values()] == ["NOTREADY"]
    assert [found.state for found in (await control.containers()).values()] == ["EXITED"]
    await control.remove_pod(pod.id)
    assert await control.sandboxes() == {}
    assert await control.containers() == {}


async def test_successor_of_a_container_is_another_one(cri: CRIUnderTest) -> None:
    control = cri.control
    pod = await control.run_pod("web")
    first = await control.run(pod, "one")
    await control.stop(first)
    second = await control.run(pod, "one", attempt=1)
    assert second != first
    states = {found.attempt: found.state for found in (await control.containers()).values()}
    assert states == {0: "EXITED", 1: "RUNNING"}
    await control.remove(first)
    assert list(await control.containers()) == [second]


async def test_containers_outlive_the_process_of_their_sandbox(cri: CRIUnderTest) -> None:
    control = cri.control
    pod = await control.run_pod("web")
    one = await control.run(pod, "one")
    if cri.fake is not None:
        cri.fake.exit_pod(pod.id)
    else:
        os.kill(await control.pid(pod.id), signal.SIGKILL)
    await control.until_pod_is("NOTREADY", pod.id)
    assert (await control.truth()).keys() == {one}
    assert await control.pid(pod.id) == 0


async def test_beginning_of_an_id_stands_for_the_id(cri: CRIUnderTest) -> None:
    control = cri.control
    pod = await control.run_pod("web")
    one = await control.run(pod, "one")
    await control.run(pod, "two")
    assert (await control.container_status(one[:12])).id == one
    assert (await control.call("PodSandboxStatus", pod_sandbox_id=pod.id[:12])).status.id == pod.id
    listed = await control.call("ListContainers", filter={"id": one[:12]})
    assert [found.id for found in listed.containers] == [one]
    listed = await control.call("ListPodSandbox", filter={"id": pod.id[:12]})
    assert [found.id for found in listed.items] == [pod.id]


async def test_listings_can_be_filtered(cri: CRIUnderTest) -> None:
    control = cri.control
    pod, other = await control.run_pod("web", labels={"a": "b"}), await control.run_pod("other")
    running = await control.run(pod, "running", labels={"c": "d", "e": "f"})
    created = await control.create(other, "created", labels={"c": "x"})
    await control.stop_pod(other.id)

    async def containers(**wanted: Any) -> list[str]:
        return [found.id for found in (await control.call("ListContainers", filter=wanted)).containers]

    async def pods(**wanted: Any) -> list[str]:
        return [found.id for found in (await control.call("ListPodSandbox", filter=wanted)).items]

    assert await containers(state={"state": 1}) == [running]
    assert await containers(state={"state": 0}) == [created]  # what was never started does not end
    assert await containers(pod_sandbox_id=pod.id) == [running]
    assert await containers(label_selector={"c": "d"}) == [running]
    assert await containers(label_selector={"c": "d", "e": "x"}) == []
    assert await containers(id="nobody") == []
    assert await pods(state={"state": 0}) == [pod.id]
    assert await pods(state={"state": 1}) == [other.id]
    assert await pods(label_selector={"a": "b"}) == [pod.id]
    assert await pods(id="nobody") == []


async def test_what_is_done_already_can_be_done_again(cri: CRIUnderTest) -> None:
    control = cri.control
    pod = await control.run_pod("web")
    created, one = await control.create(pod, "created"), await control.run(pod, "one")
    await control.stop(created)
    assert (await control.containers())[created].state == "CREATED"
    await control.start(created)
    for twice in (control.stop, control.remove):
        await twice(one)
        await twice(one)
    for pod_twice in (control.stop_pod, control.remove_pod):
        await pod_twice(pod.id)
        await pod_twice(pod.id)
    assert (await control.sandboxes(), await control.containers()) == ({}, {})


REFUSALS: dict[str, tuple[Callable[[CRIControl, Pod, str], Awaitable[object]], str]] = {
    "run a pod twice": (lambda control, pod, one: control.run_pod("web", uid="u"), "UNKNOWN"),
    "run a pod of no name": (lambda control, pod, one: control.call("RunPodSandbox"), "UNKNOWN"),
    "create a container twice": (lambda control, pod, one: control.create(pod, "one"), "UNKNOWN"),
    "start a container twice": (lambda control, pod, one: control.start(one), "UNKNOWN"),
    "start nobody": (lambda control, pod, one: control.start("nobody"), "NOT_FOUND"),
    "status of nobody": (lambda control, pod, one: control.container_status("nobody"), "NOT_FOUND"),
    "status of no pod": (
        lambda control, pod, one: control.call("PodSandboxStatus", pod_sandbox_id="nobody"),
        "NOT_FOUND",
    ),
    "create in no pod": (
        lambda control, pod, one: control.call("CreateContainer", pod_sandbox_id="nobody"),
        "NOT_FOUND",
    ),
    "an unknown call": (lambda control, pod, one: control.call("Version", service="/runtime.v9.None"), "UNIMPLEMENTED"),
}


async def test_what_makes_no_sense_is_refused(cri: CRIUnderTest) -> None:
    pod = await cri.control.run_pod("web", uid="u")
    one = await cri.control.run(pod, "one")
    refused = {}
    for what, (call, _) in REFUSALS.items():
        try:
            await call(cri.control, pod, one)
        except grpc.aio.AioRpcError as error:
            refused[what] = error.code().name
    assert refused == {what: code for what, (_, code) in REFUSALS.items()}
    await cri.control.stop(one)
    await cri.control.stop_pod(pod.id)
    for late in (cri.control.start(one), cri.control.create(pod, "late")):
        with pytest.raises(grpc.aio.AioRpcError):
            await late


async def test_only_containerd_16_refuses_to_stop_nobody(cri: CRIUnderTest) -> None:
    for call in (cri.control.stop, cri.control.stop_pod):
        if cri.kind in {"1.6", "fake-1.6"}:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call("nobody")
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        else:
            await call("nobody")
    await cri.control.remove("nobody")
    await cri.control.remove_pod("nobody")


async def test_engine_says_who_it_is(cri: CRIUnderTest) -> None:
    runtime, version = await cri.control.version()
    if cri.fake is None:
        assert runtime == "containerd"
        assert version.startswith(f"{cri.kind}.")
    else:
        assert (runtime, version) == (FAKE_CRIS[cri.kind]["runtime"], FAKE_CRIS[cri.kind]["version"])


# -- what engines tell -------------------------------------------------------------------------------------------------


async def test_engines_without_pod_events_say_so_in_two_ways(cri: CRIUnderTest) -> None:
    if cri.kind not in {"1.6", "fake-1.6", "fake-cri-o-mute"}:
        return
    async with cri.control.events() as events:
        if cri.kind == "fake-cri-o-mute":
            assert [told async for told in events] == []
            return
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await anext(events)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert refused.value.details() == "method GetContainerEvents not implemented"


TELLING = [pytest.param("1.7", marks=live), "fake-1.7", "fake-cri-o"]


@asynccontextmanager
async def telling(kind: str, make: MakeCRI) -> AsyncIterator[CRIControl]:
    """An engine that tells pod events, and has told none yet."""
    async with AsyncExitStack() as stack:
        if kind == "1.7":
            path = (await asyncio.to_thread(make, "1.7")).socket
        elif kind == "fake-1.7":
            fake = FakeCRI(runtime="containerd", version="1.7.24", pod_events="shared")
            path = (await stack.enter_async_context(fake)).path
        else:
            path = (await stack.enter_async_context(FakeCRI(**FAKE_CRIS[kind]))).path
        yield await stack.enter_async_context(CRIControl(path))


async def _told(events: AsyncIterator[Told], last: str, names: dict[str, str]) -> list[tuple[str, str, str, str]]:
    """Read events up to the deletion of this id; those of what is stopped or removed at once are in any order."""
    found = []
    async for told in events:
        states = " ".join(sorted(f"{names[id]}={state}" for id, state in told.containers.items()))
        found.append((names[told.id], told.type, told.sandbox, states))
        if told.id == last and told.type == "DELETED":
            break
    return found


@pytest.mark.parametrize("kind", TELLING)
async def test_life_of_a_pod_is_told_in_the_same_order(make_cri: MakeCRI, kind: str) -> None:
    async with telling(kind, make_cri) as control, control.events() as events:
        pod = await control.run_pod("pod")
        one = await control.run(pod, "one")
        brief = await control.run(pod, "brief", cmd=[*SH, "sleep 0.2; exit 3"] if kind == "1.7" else [*SH, "exit 3"])
        await control.exited(brief)
        await control.stop(one)
        await control.stop(one)
        next_one = await control.run(pod, "one", attempt=1)
        await control.remove(one)
        await control.remove(await control.create(pod, "never"))
        await control.stop_pod(pod.id)
        await control.remove(brief)
        await control.remove_pod(pod.id)
        names = {pod.id: "pod", one: "one", brief: "brief", next_one: "next"}
        found = await _told(events, pod.id, _Names(names))
    assert found == [
        ("pod", "CREATED", "READY", ""),
        ("pod", "STARTED", "READY", ""),
        ("one", "CREATED", "READY", "one=CREATED"),
        ("one", "STARTED", "READY", "one=RUNNING"),
        ("brief", "CREATED", "READY", "brief=CREATED one=RUNNING"),
        ("brief", "STARTED", "READY", "brief=RUNNING one=RUNNING"),
        ("brief", "STOPPED", "READY", "brief=EXITED one=RUNNING"),
        ("one", "STOPPED", "READY", "brief=EXITED one=EXITED"),
        ("next", "CREATED", "READY", "brief=EXITED next=CREATED one=EXITED"),
        ("next", "STARTED", "READY", "brief=EXITED next=RUNNING one=EXITED"),
        ("one", "DELETED", "READY", "brief=EXITED next=RUNNING"),
        ("?", "CREATED", "READY", "?=CREATED brief=EXITED next=RUNNING"),
        ("?", "DELETED", "READY", "brief=EXITED next=RUNNING"),
        ("next", "STOPPED", "READY", "brief=EXITED next=EXITED"),
        ("pod", "STOPPED", "NOTREADY", "brief=EXITED next=EXITED"),
        ("brief", "DELETED", "NOTREADY", "next=EXITED"),
        ("next", "DELETED", "NOTREADY", ""),
        ("pod", "DELETED", "", ""),
    ]


class _Names(dict[str, str]):
    def __missing__(self, id: str) -> str:
        return "?"


@pytest.mark.parametrize("kind", TELLING)
async def test_whatever_is_removed_is_told_to_have_stopped(make_cri: MakeCRI, kind: str) -> None:
    async with telling(kind, make_cri) as control, control.events() as events:
        pod = await control.run_pod("pod")
        one = await control.run(pod, "one")
        two = await control.run(pod, "two")
        await control.remove(one)
        await control.remove_pod(pod.id)
        names = {pod.id: "pod", one: "one", two: "two"}
        found = [(name, type) for name, type, _, _ in await _told(events, pod.id, names)]
    expected = [
        ("one", "STOPPED"),
        ("one", "DELETED"),
        ("two", "STOPPED"),
        ("pod", "STOPPED"),
        ("two", "DELETED"),
        ("pod", "DELETED"),
    ]
    if kind == "1.7":  # busy, it may notice an exit only after the removal; the pod is the last in any case
        assert found[-1] == expected[-1]
        found[6:], expected = sorted(found[6:]), sorted(expected)
    assert found[6:] == expected


@pytest.mark.parametrize("kind", TELLING)
async def test_first_who_asks_gets_what_was_told_before(make_cri: MakeCRI, kind: str) -> None:
    async with telling(kind, make_cri) as control:
        pod = await control.run_pod("pod")
        async with control.events() as events:
            told = [await anext(events) for _ in range(2)]
            assert [(event.id, event.type) for event in told] == [(pod.id, "CREATED"), (pod.id, "STARTED")]
            await control.remove_pod(pod.id)
            later = [await anext(events) for _ in range(2)]
        assert [event.type for event in later] == ["STOPPED", "DELETED"]
        times = [event.timestamp for event in (*told, *later)]
        assert times == sorted(times)


@pytest.mark.parametrize("kind", [pytest.param("1.7", marks=live), "fake-1.7"])
async def test_readers_of_containerd_17_take_events_from_each_other(make_cri: MakeCRI, kind: str) -> None:
    async with telling(kind, make_cri) as control, AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(control.events()) for _ in range(2)]
        await control.version()  # on the same connection, so that both have been asked for
        ids = {(await control.run_pod(f"pod-{number}")).id for number in range(4)}
        got: list[list[tuple[str, str]]] = [[], []]
        complete = asyncio.Event()

        async def read(number: int) -> None:
            async for told in readers[number]:
                if told.id in ids:
                    got[number].append((told.id, told.type))
                if len(got[0]) + len(got[1]) == 2 * len(ids):
                    complete.set()

        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            tasks = [group.create_task(read(number)) for number in range(2)]
            await complete.wait()
            for task in tasks:
                task.cancel()
    assert sorted(got[0] + got[1]) == sorted((id, type) for id in ids for type in ("CREATED", "STARTED"))
    assert got[0]
    assert got[1]


# -- real engines, killed and frozen -----------------------------------------------------------------------------------


@live
@each_version
async def test_pods_outlive_a_killed_engine(make_cri: MakeCRI, version: str) -> None:
    engine = await asyncio.to_thread(make_cri, version)
    async with CRIControl(engine.socket) as control:
        pod = await control.run_pod("web")
        doomed, one = await control.run(pod, "doomed"), await control.run(pod, "one")
        before = await control.truth()
        engine.kill()
        os.kill(before[doomed], signal.SIGKILL)
    await asyncio.to_thread(engine.start)
    async with CRIControl(engine.socket) as control:
        # 1.7 finds that the process is gone, and does not know how it ended.
        assert await control.exited(doomed) == {"1.6": 137, "1.7": 255}[version]
        assert await control.truth() == {id: before[id] for id in (pod.id, one)}
        await control.run(pod, "doomed", attempt=1)


@live
@each_version
async def test_closed_engine_leaves_nothing_of_its_pods_behind(make_cri: MakeCRI, version: str) -> None:
    engine = await asyncio.to_thread(make_cri, version)
    async with CRIControl(engine.socket) as control:
        pod = await control.run_pod("web")
        one = await control.run(pod, "one")
        pids = (await control.truth()).values()
    assert (engine.root / "runc/k8s.io" / one).exists()  # it shares this folder with no other engine
    cgroups = list(engine._cgroups())
    assert any(cgroup.name == one for cgroup in cgroups)
    engine.kill()
    await asyncio.to_thread(engine.close)
    assert not [pid for pid in pids if alive(pid)]
    assert engine.shims() == []
    assert [cgroup for cgroup in cgroups if cgroup.exists()] == []
    assert not engine.root.exists()


@live
@each_version
async def test_frozen_engine_answers_when_thawed(make_cri: MakeCRI, version: str) -> None:
    engine = await asyncio.to_thread(make_cri, version)
    async with CRIControl(engine.socket) as control:
        engine.freeze()
        waiting = asyncio.create_task(control.version())
        assert not (await asyncio.wait({waiting}, timeout=0.3))[0]
        engine.thaw()
        assert (await waiting)[0] == "containerd"
