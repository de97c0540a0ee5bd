"""The CRI engines that other tests rely on: real ones do as they are told, and the fakes do as they do."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from tests.conftest import FAKE_CRIS
from tests.support.engines.cri_control import CRIControl, Listed, Pod
from tests.support.engines.process import alive
from whalewatch.testing import FakeCRI

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from tests.conftest import CRIUnderTest
    from tests.support.engines.containerd import Containerd
    from tests.support.engines.cri_control import Told

    MakeCRI = Callable[..., Containerd]

SH = ["/bin/sh", "-c"]

live = pytest.mark.live


async def test_only_what_runs_has_a_pid_of_its_own_which_outlives_the_process_of_its_sandbox(cri: CRIUnderTest) -> None:
    control = cri.control
    pod = await control.run_pod("web")
    one, two, killed = [await control.run(pod, name) for name in ("one", "two", "killed")]
    created = await control.create(pod, "created")
    await control.stop(killed)
    exited = await control.run(pod, "exited", cmd=[*SH, "exit 3"])
    assert (await control.exited(exited), await control.exited(killed)) == (3, 137)
    assert [await control.pid(id) for id in (created, killed, exited)] == [0, 0, 0]
    truth = await control.truth()
    assert truth.keys() == {pod.id, one, two}
    assert len(set(truth.values())) == 3
    if cri.fake is not None:
        cri.fake.exit_pod(pod.id)
    else:
        assert all(alive(pid) for pid in truth.values())
        os.kill(truth[pod.id], signal.SIGKILL)
    await control.until_pod_is("NOTREADY", pod.id)
    assert await control.pid(pod.id) == 0
    assert (await control.truth()).keys() == {one, two}
    await control.stop_pod(pod.id)
    assert await control.truth() == {}


async def test_what_has_stopped_is_listed_until_it_is_removed_and_may_be_stopped_and_removed_again(
    cri: CRIUnderTest,
) -> None:
    control = cri.control
    pod = await control.run_pod("web")
    first = await control.create(pod, "one")
    before = await control.container_status(first)
    await control.stop(first)
    assert (await control.containers())[first].state == "CREATED"  # what was never started does not end
    await control.start(first)
    running = await control.container_status(first)
    await control.stop(first)
    await control.stop(first)
    after = await control.container_status(first)
    assert (before.started_at, before.finished_at, running.finished_at) == (0, 0, 0)
    assert 0 < before.created_at == after.created_at < running.started_at == after.started_at < after.finished_at
    assert (after.exit_code, after.reason) == (137, "Error")
    second = await control.run(pod, "one", attempt=1)
    states = {(found.id, found.attempt): found.state for found in (await control.containers()).values()}
    assert states == {(first, 0): "EXITED", (second, 1): "RUNNING"}
    await control.remove(first)
    await control.remove(first)
    await control.stop_pod(pod.id)
    await control.stop_pod(pod.id)
    assert [found.state for found in (await control.sandboxes()).values()] == ["NOTREADY"]
    assert [(found.id, found.state) for found in (await control.containers()).values()] == [(second, "EXITED")]
    await control.remove_pod(pod.id)
    await control.remove_pod(pod.id)
    assert (await control.sandboxes(), await control.containers()) == ({}, {})


async def test_listings_tell_what_was_given_and_can_be_filtered_and_the_beginning_of_an_id_stands_for_it(
    cri: CRIUnderTest,
) -> None:
    control = cri.control
    pod = await control.run_pod("web", "shop", uid="u-1", attempt=2, labels={"a": "b"}, annotations={"c": "d"})
    told = (await control.call("ListPodSandbox")).items[0].metadata
    assert (told.namespace, told.uid) == ("shop", "u-1")
    other = await control.run_pod("other")
    running = await control.run(pod, "one", labels={"c": "d", "e": "f"}, annotations={"g": "h"})
    created = await control.create(other, "two", attempt=3, labels={"c": "x"})
    await control.stop_pod(other.id)
    assert await control.sandboxes() == {
        pod.id: Listed(pod.id, pod.id, "web", 2, "READY", {"a": "b"}, {"c": "d"}),
        other.id: Listed(other.id, other.id, "other", 0, "NOTREADY", {}, {}),
    }
    assert await control.containers() == {
        running: Listed(running, pod.id, "one", 0, "RUNNING", {"c": "d", "e": "f"}, {"g": "h"}),
        created: Listed(created, other.id, "two", 3, "CREATED", {"c": "x"}, {}),
    }
    rows: list[tuple[str, dict[str, Any], list[str]]] = [
        ("Containers", {"state": {"state": 1}}, [running]),
        ("Containers", {"state": {"state": 0}}, [created]),
        ("Containers", {"state": {"state": 3}}, []),
        ("Containers", {"id": created, "state": {"state": 1}}, []),
        ("Containers", {"id": created, "state": {"state": 0}}, [created]),
        ("Containers", {"pod_sandbox_id": pod.id}, [running]),
        ("Containers", {"label_selector": {"c": "d"}}, [running]),
        ("Containers", {"label_selector": {"c": "d", "e": "x"}}, []),
        ("Containers", {"id": "nobody"}, []),
        ("Containers", {"id": running[:12]}, [running]),
        ("PodSandbox", {"state": {"state": 0}}, [pod.id]),
        ("PodSandbox", {"state": {"state": 1}}, [other.id]),
        ("PodSandbox", {"id": other.id, "state": {"state": 0}}, []),
        ("PodSandbox", {"label_selector": {"a": "b"}}, [pod.id]),
        ("PodSandbox", {"id": "nobody"}, []),
        ("PodSandbox", {"id": pod.id[:12]}, [pod.id]),
    ]
    for what, wanted, expected in rows:
        listed = await control.call(f"List{what}", filter=wanted)
        found = listed.containers if what == "Containers" else listed.items
        assert [each.id for each in found] == expected, wanted
    assert (await control.container_status(running[:12])).id == running
    assert (await control.call("PodSandboxStatus", pod_sandbox_id=pod.id[:12])).status.id == pod.id


REFUSALS: list[tuple[str, Callable[[CRIControl, Pod, str], Awaitable[object]]]] = [
    ("UNKNOWN", lambda control, *_: control.run_pod("web", uid="u")),
    ("UNKNOWN", lambda control, *_: control.call("RunPodSandbox")),
    ("UNKNOWN", lambda control, pod, _: control.create(pod, "one")),
    ("UNKNOWN", lambda control, _, one: control.start(one)),
    ("NOT_FOUND", lambda control, *_: control.start("nobody")),
    ("NOT_FOUND", lambda control, *_: control.container_status("nobody")),
    ("NOT_FOUND", lambda control, *_: control.call("PodSandboxStatus", pod_sandbox_id="nobody")),
    ("NOT_FOUND", lambda control, *_: control.call("CreateContainer", pod_sandbox_id="nobody")),
    ("UNIMPLEMENTED", lambda control, *_: control.call("Version", service="/runtime.v9.None")),
]


@contextmanager
def refused(code: str, details: str = "") -> Iterator[None]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        yield
    assert (error.value.code().name, details or error.value.details()) == (code, error.value.details())


async def test_what_makes_no_sense_is_refused(cri: CRIUnderTest) -> None:
    pod = await cri.control.run_pod("web", uid="u")
    one = await cri.control.run(pod, "one")
    for code, call in REFUSALS:
        with refused(code):
            await call(cri.control, pod, one)
    await cri.control.stop(one)
    await cri.control.stop_pod(pod.id)
    for late in (cri.control.start(one), cri.control.create(pod, "late")):
        with pytest.raises(grpc.aio.AioRpcError):
            await late


async def test_engines_say_who_they_are_and_differ_in_what_they_refuse(cri: CRIUnderTest) -> None:
    control = cri.control
    runtime, version = await control.version()
    if cri.fake is None:
        assert (runtime, version.startswith(f"{cri.kind}.")) == ("containerd", True)
    else:
        assert (runtime, version) == (FAKE_CRIS[cri.kind]["runtime"], FAKE_CRIS[cri.kind]["version"])
    for call in (control.stop, control.stop_pod):
        with refused("NOT_FOUND") if cri.kind in {"1.6", "fake-1.6"} else nullcontext():
            await call("nobody")
    await control.remove("nobody")
    await control.remove_pod("nobody")
    if cri.kind == "fake-cri-o-mute":
        async with control.events() as events:
            assert [told async for told in events] == []
    elif cri.kind in {"1.6", "fake-1.6"}:
        with refused("UNIMPLEMENTED", "method GetContainerEvents not implemented"):
            async with control.events() as events:
                await anext(events)


TELLING = [pytest.param("1.7", marks=live), "fake-1.7", "fake-cri-o"]

FAKES = FAKE_CRIS | {"fake-1.7": {"runtime": "containerd", "version": "1.7.24", "pod_events": "shared"}}


@pytest.fixture
async def telling(kind: str, make_cri: MakeCRI) -> AsyncIterator[CRIControl]:
    """The driver of an engine that tells pod events, and has told none yet."""
    async with AsyncExitStack() as stack:
        if kind in FAKES:
            engine: Any = await stack.enter_async_context(FakeCRI(**FAKES[kind]))
        else:
            engine = await asyncio.to_thread(make_cri, kind)
        yield await stack.enter_async_context(CRIControl(engine.address))


async def _told(events: AsyncIterator[Told], last: str) -> list[Told]:
    """Read events up to the deletion of this id; those of what is stopped or removed at once are in any order."""
    found: list[Told] = []
    while not found or (found[-1].id, found[-1].type) != (last, "DELETED"):
        found.append(await anext(events))
    return found


def _short(told: Told, names: dict[str, str]) -> tuple[str, str, str, str]:
    states = " ".join(sorted(f"{names.get(id, '?')}={state}" for id, state in told.containers.items()))
    return names.get(told.id, "?"), told.type, told.sandbox, states


@pytest.mark.parametrize("kind", TELLING)
async def test_life_of_a_pod_is_told_in_the_same_order_also_to_who_asks_late(telling: CRIControl, kind: str) -> None:
    pod = await telling.run_pod("pod")
    async with telling.events() as events:
        one = await telling.run(pod, "one")
        brief = await telling.run(pod, "brief", cmd=[*SH, "sleep 0.2; exit 3"] if kind == "1.7" else [*SH, "exit 3"])
        await telling.exited(brief)
        await telling.stop(one)
        await telling.stop(one)
        next_one = await telling.run(pod, "one", attempt=1)
        await telling.remove(one)
        await telling.remove(await telling.create(pod, "never"))
        await telling.stop_pod(pod.id)
        await telling.remove(brief)
        await telling.remove_pod(pod.id)
        told = await _told(events, pod.id)
        names = {pod.id: "pod", one: "one", brief: "brief", next_one: "next"}
        assert [_short(each, names) for each in told] == [
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

        other = await telling.run_pod("other")  # whatever is removed is told to have stopped
        two, three = await telling.run(other, "two"), await telling.run(other, "three")
        told += [await anext(events) for _ in range(6)]
        await telling.remove(two)
        await telling.remove_pod(other.id)
        ended = await _told(events, other.id)
    times = [each.timestamp for each in (*told, *ended) if each.type in {"CREATED", "STARTED"} or each.id == other.id]
    assert times == sorted(times)
    names = {other.id: "pod", two: "two", three: "three"}
    found = [f"{names[each.id]} {each.type}" for each in ended]
    expected = ["two STOPPED", "two DELETED", "three STOPPED", "pod STOPPED", "three DELETED", "pod DELETED"]
    if kind == "1.7":  # busy, it may notice an exit only after the removal; the pod is the last in any case
        assert found[-1] == expected[-1]
        found, expected = sorted(found), sorted(expected)
    assert found == expected


@pytest.mark.parametrize("kind", [pytest.param("1.7", marks=live), "fake-1.7"])
async def test_readers_of_containerd_17_take_events_from_each_other(telling: CRIControl) -> None:
    got: list[set[tuple[str, str]]] = [set(), set()]
    told = asyncio.Semaphore(0)

    async def read(number: int, events: AsyncIterator[Told]) -> None:
        async for each in events:
            got[number].add((each.id, each.type))
            told.release()

    async with AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(telling.events()) for _ in got]
        await telling.version()  # on the same connection, so that both have been asked for
        ids = [(await telling.run_pod(f"pod-{number}")).id for number in range(4)]
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            tasks = [group.create_task(read(*each)) for each in enumerate(readers)]
            for _ in range(2 * len(ids)):
                await told.acquire()
            for task in tasks:
                task.cancel()
    assert got[0] | got[1] == {(id, type) for id in ids for type in ("CREATED", "STARTED")}
    assert got[0]
    assert got[1]
    assert not got[0] & got[1]
