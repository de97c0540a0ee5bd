"""The fake CRI, as far as it is like no other: seen by a client that knows nothing of it."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from tests.support.engines.cri_control import SERVICE, CRIControl
from tests.support.engines.cri_wire import message
from whalewatch.testing import FakeCRI, FakeCRIError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.support.engines.cri_control import Told

pytestmark = pytest.mark.usefixtures("patience")

CAPACITY = 1000  # events that an engine keeps


@pytest.fixture
async def fake() -> AsyncIterator[FakeCRI]:
    async with FakeCRI() as fake:
        yield fake


@pytest.fixture
async def control(fake: FakeCRI) -> AsyncIterator[CRIControl]:
    async with CRIControl(fake.path) as control:
        yield control


# -- what it is --------------------------------------------------------------------------------------------------------


async def test_methods_do_what_the_calls_do(fake: FakeCRI, control: CRIControl) -> None:
    async with control.events() as events:
        pod = fake.run_pod("web", "shop", uid="u", attempt=1, labels={"a": "b"}, annotations={"c": "d"})
        created = fake.create(pod, "one", labels={"e": "f"}, annotations={"g": "h"}, image="web:1")
        assert fake.start(created) == 5002
        other = fake.run(pod, "two", attempt=4)
        assert await control.truth() == {pod: 5001, created: 5002, other: 5003}
        fake.exit(created, 7)
        fake.stop(other)
        fake.stop(other)
        fake.remove(other)
        fake.exit_pod(pod)
        fake.stop_pod(pod)
        (sandbox,) = (await control.sandboxes()).values()
        assert (sandbox.name, sandbox.attempt, sandbox.state) == ("web", 1, "NOTREADY")
        (container,) = (await control.containers()).values()
        assert (container.name, container.attempt, container.state) == ("one", 0, "EXITED")
        status = await control.container_status(created)
        assert (status.exit_code, status.image.image, status.reason) == (7, "web:1", "Error")
        fake.remove_pod(pod)
        names = {pod: "pod", created: "one", other: "two"}
        told = ", ".join([f"{names[told.id]} {told.type}" for told in await _next(events, 12)])
    assert told == (
        "pod CREATED, pod STARTED, one CREATED, one STARTED, two CREATED, two STARTED, "
        "one STOPPED, two STOPPED, two DELETED, pod STOPPED, one DELETED, pod DELETED"
    )
    assert (fake.pods, fake.containers) == ({}, {})


async def test_what_it_knows_can_be_read(fake: FakeCRI) -> None:
    pod = fake.run_pod("web", "shop", uid="u", labels={"a": "b"})
    one = fake.run(pod, "one", image="web:1")
    known = {id: (known.name, known.namespace, known.uid, known.ready) for id, known in fake.pods.items()}
    assert known == {pod: ("web", "shop", "u", True)}
    found = fake.containers[one]
    assert (found.name, found.pod, found.image, found.state, found.pid) == ("one", pod, "web:1", "RUNNING", 5002)
    fake.exit(one, 3)
    assert (found.state, found.pid, found.exit_code) == ("EXITED", 0, 3)


async def test_methods_refuse_as_the_calls_do(fake: FakeCRI) -> None:
    def refused(why: str, operation: Callable[..., object], *arguments: str, **options: Any) -> str:
        with pytest.raises(FakeCRIError, match=why) as refusal:
            operation(*arguments, **options)
        return str(refusal.value.code)

    pod = fake.run_pod("web", uid="u")
    one = fake.run(pod, "one")
    assert refused("is reserved for", fake.run_pod, "web", uid="u") == "UNKNOWN"
    assert refused("is reserved for", fake.create, pod, "one") == "UNKNOWN"
    refused("CONTAINER_RUNNING", fake.start, one)
    fake.stop(one)
    refused("CONTAINER_EXITED", fake.exit, one)
    fake.exit_pod(pod)
    for operation in (fake.stop_pod, fake.remove_pod, fake.start, fake.stop, fake.remove, fake.faults.unknown):
        assert refused("not found", operation, "nobody") == "NOT_FOUND"
    refused("not found", fake.create, pod, "late")


async def test_calls_are_counted_by_kind(fake: FakeCRI, control: CRIControl) -> None:
    await control.containers()
    await control.sandboxes()
    await control.call("Status")
    assert fake.requests == {"container_list": 1, "pod_list": 1, "status": 1}


async def test_text_that_is_not_utf8_is_told_as_it_is(fake: FakeCRI, control: CRIControl) -> None:
    pod = fake.run_pod(b"p\xf0", b"n\xf1", uid=b"u\xf2", labels={b"k\xf3": b"v\xf4"}, annotations={b"a\xf5": b"w\xf6"})
    one = fake.run(pod, b"c\xf7", labels={b"l\xf8": b"x\xf9"}, annotations={b"b\xfa": b"y\xfb"}, image=b"i\xfc")
    of_pod = (b"p\xf0", b"n\xf1", b"u\xf2", b"k\xf3", b"v\xf4", b"a\xf5", b"w\xf6")
    of_container = (b"c\xf7", b"l\xf8", b"x\xf9", b"b\xfa", b"y\xfb", b"i\xfc")
    for answer, texts in (
        (await _raw(control, "ListPodSandbox"), of_pod),
        (await _raw(control, "ListContainers"), of_container),
        (await _raw(control, "ContainerStatus", container_id=one), of_container),
    ):
        assert [text for text in texts if text not in answer] == []


async def test_answers_have_a_limit(fake: FakeCRI, control: CRIControl) -> None:
    pod = fake.run_pod("web")
    for number in range(20):
        fake.create(pod, f"c{number}", annotations={"large": "x" * 1_000_000})
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await control.containers()
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


# -- verbose information, states ---------------------------------------------------------------------------------------


async def test_information_is_told_if_asked_for_with_the_pid_of_what_has_a_process(
    fake: FakeCRI, control: CRIControl
) -> None:
    bare, usual = fake.run_pod("bare", infra=False), fake.run_pod("usual")
    one = fake.run(usual, "one")
    for id in (bare, usual, one):
        assert await _info(control, id, verbose=False) == {}
    assert "pid" not in json.loads((await _info(control, bare))["info"])
    assert json.loads((await _info(control, usual))["info"])["pid"] == 5001
    assert json.loads((await _info(control, one))["info"]).keys() >= {"sandboxID", "pid", "runtimeSpec"}
    fake.stop_pod(usual)
    assert json.loads((await _info(control, usual))["info"])["pid"] == 0
    assert [found.state for found in (await control.sandboxes()).values()] == ["READY", "NOTREADY"]


async def test_any_information_can_be_told_until_that_is_undone(fake: FakeCRI, control: CRIControl) -> None:
    pod = fake.run_pod("web")
    one, two = fake.run(pod, "one"), fake.run(pod, "two")
    with fake.faults.tell_info(None), fake.faults.tell_info("not JSON", one):
        assert [await _info(control, id) for id in (one, two, pod)] == [{"info": "not JSON"}, {}, {}]
    assert json.loads((await _info(control, one))["info"])["pid"] == 5002
    fake.faults.tell_info(b"\xff")
    assert b"\xff" in await _raw(control, "ContainerStatus", container_id=two, verbose=True)
    fake.faults.clear()
    assert json.loads((await _info(control, two))["info"])["pid"] == 5003


async def test_state_can_be_unknown_until_that_is_undone(fake: FakeCRI, control: CRIControl) -> None:
    one = fake.run(fake.run_pod("web"), "one")
    for undo in (fake.faults.unknown(one).undo, fake.faults.clear):
        fake.faults.unknown(one)
        assert (await control.containers())[one].state == "UNKNOWN"
        assert (await control.container_status(one)).state == 3
        assert fake.containers[one].state == "RUNNING"
        undo()
        fake.faults.clear()
        assert (await control.containers())[one].state == "RUNNING"


# -- events ------------------------------------------------------------------------------------------------------------


async def test_cri_o_tells_everybody_and_the_first_what_was_before(fake: FakeCRI, control: CRIControl) -> None:
    pod = fake.run_pod("web")
    async with control.events() as first:
        assert [told.type for told in await _next(first, 2)] == ["CREATED", "STARTED"]
        async with control.events() as second:
            await fake.until(lambda: fake.subscribers == 2)
            fake.exit_pod(pod)
            assert [(await anext(each)).type for each in (first, second)] == ["STOPPED"] * 2
    await fake.until(lambda: fake.subscribers == 0)
    fake.remove_pod(pod)  # which nobody is told, nor ever will be
    async with control.events() as third:
        await fake.until(lambda: fake.subscribers == 1)
        fake.run_pod("next")
        assert (await anext(third)).type == "CREATED"


async def test_cri_o_loses_what_is_too_much(fake: FakeCRI, control: CRIControl) -> None:
    for _ in range(CAPACITY + 1):
        fake.tell("CREATED", "too much")
    async with control.events() as events:
        with fake.faults.pause_after("events") as gate:
            reading = asyncio.create_task(_next(events, CAPACITY))
            await gate.reached()
            assert fake.unsent == CAPACITY
            fake.tell("STOPPED", "too much")
            assert fake.unsent == CAPACITY
        assert {told.type for told in await reading} == {"CREATED"}
        fake.tell("DELETED", "next")
        assert (await anext(events)).type == "DELETED"


async def test_killed_engine_forgets_what_nobody_has_read(fake: FakeCRI, control: CRIControl) -> None:
    fake.run_pod("web")
    await fake.faults.restart()
    async with control.events() as events:
        fake.tell("DELETED", "next")
        assert (await anext(events)).id == "next"


async def test_streams_of_mute_engines_end_at_once_and_old_ones_have_none() -> None:
    async with FakeCRI(pod_events="ended") as fake, CRIControl(fake.path) as control:
        fake.run_pod("web")
        async with control.events() as events:
            assert [told async for told in events] == []
        assert fake.requests == {"events": 1}
    async with FakeCRI(pod_events="unimplemented") as fake, CRIControl(fake.path) as control:
        async with control.events() as events:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await anext(events)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_stream_that_is_gone_takes_one_event_along_where_they_share() -> None:
    async with FakeCRI(pod_events="shared") as fake, CRIControl(fake.path) as control:
        async with control.events() as gone:
            pod = fake.run_pod("web")
            assert [told.type for told in await _next(gone, 2)] == ["CREATED", "STARTED"]
        await fake.until(lambda: fake.subscribers == 0)
        fake.create(pod, "lost")
        kept = fake.create(pod, "kept")
        async with control.events() as events:
            assert (await anext(events)).id == kept


async def test_any_event_can_be_told(fake: FakeCRI, control: CRIControl) -> None:
    with fake.faults.silently():
        pod = fake.run_pod("web")
        one = fake.run(pod, "one")
    async with control.events() as events:
        fake.tell("STOPPED", one, timestamp=1_000_000_007)
        fake.tell("STARTED", "nobody")
        fake.tell("STARTED", "nobody", pod=pod)
        fake.tell("CREATED", pod)
        told = await _next(events, 4)
    assert told[0].timestamp == 1_000_000_007
    assert [(each.id, each.type, each.sandbox, each.containers) for each in told] == [
        (one, "STOPPED", "READY", {one: "RUNNING"}),
        ("nobody", "STARTED", "", {}),
        ("nobody", "STARTED", "READY", {one: "RUNNING"}),
        (pod, "CREATED", "READY", {one: "RUNNING"}),
    ]


# -- faults of calls ---------------------------------------------------------------------------------------------------

METHODS = {
    "container_status": "ContainerStatus",
    "container_list": "ListContainers",
    "container_stop": "StopContainer",
    "container_remove": "RemoveContainer",
    "pod_status": "PodSandboxStatus",
    "pod_list": "ListPodSandbox",
    "pod_stop": "StopPodSandbox",
    "pod_remove": "RemovePodSandbox",
}


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("fault", ["fail", "hang"])
async def test_faults_of_calls_can_be_limited(fake: FakeCRI, control: CRIControl, kind: str, fault: str) -> None:
    async def call(id: str) -> None:
        about = "container_id" if kind.startswith("container_") else "pod_sandbox_id"
        await control.call(METHODS[kind], **({"filter": {"id": id}} if kind.endswith("_list") else {about: id}))

    one, two = fake.run_pod("one"), fake.run_pod("two")
    if kind.startswith("container_"):
        one, two = fake.run(two, "one"), fake.run(two, "two")
    with getattr(fake.faults, fault)(kind, id=one):
        calling = asyncio.create_task(call(one))
        await fake.until(lambda: fake.requests[kind])
        await call(two)
        if fault == "hang":
            assert not calling.done()
        else:
            with pytest.raises(grpc.aio.AioRpcError, match="told to fail"):
                await calling
    await (calling if fault == "hang" else call(one))


async def test_event_stream_can_begin_with_nonsense(fake: FakeCRI, control: CRIControl) -> None:
    with fake.faults.garble("events", b"\xff nonsense"):
        stream = control._opened().unary_stream(f"{SERVICE}/GetContainerEvents")(b"")
        assert await anext(aiter(stream)) == b"\xff nonsense"
        stream.cancel()


# -- helpers -----------------------------------------------------------------------------------------------------------


async def _raw(control: CRIControl, method: str, **fields: Any) -> bytes:
    """Make a call, and return the bytes of its answer."""
    request = message(f"{method}Request")(**fields).SerializeToString()
    answer: bytes = await control._opened().unary_unary(f"{SERVICE}/{method}")(request)
    return answer


async def _info(control: CRIControl, id: str, *, verbose: bool = True) -> dict[str, str]:
    """Return what a status tells as the information of a container or sandbox."""
    if id in await control.containers():
        return dict((await control.call("ContainerStatus", container_id=id, verbose=verbose)).info)
    return dict((await control.call("PodSandboxStatus", pod_sandbox_id=id, verbose=verbose)).info)


async def _next(events: AsyncIterator[Told], count: int) -> list[Told]:
    return [await anext(events) for _ in range(count)]
