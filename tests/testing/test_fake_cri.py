"""The fake CRI: its faults do what they say, seen by a client that knows nothing of it."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from tests.conftest import PATIENCE
from tests.support.engines.cri_control import SERVICE, CRIControl
from tests.support.engines.cri_wire import message
from whalewatch.testing import FakeCRI, FakeCRIError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.support.engines.cri_control import Told
    from whalewatch.testing import FakePodEvent

pytestmark = pytest.mark.usefixtures("patience")

EVENTS = f"{SERVICE}/GetContainerEvents"

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
        told = [await anext(events) for _ in range(12)]
    assert [(names[each.id], each.type) for each in told] == [
        ("pod", "CREATED"),
        ("pod", "STARTED"),
        ("one", "CREATED"),
        ("one", "STARTED"),
        ("two", "CREATED"),
        ("two", "STARTED"),
        ("one", "STOPPED"),
        ("two", "STOPPED"),
        ("two", "DELETED"),
        ("pod", "STOPPED"),
        ("one", "DELETED"),
        ("pod", "DELETED"),
    ]
    assert (fake.pods, fake.containers) == ({}, {})


async def test_what_it_knows_can_be_read(fake: FakeCRI) -> None:
    pod = fake.run_pod("web", "shop", uid="u", labels={"a": "b"})
    one = fake.run(pod, "one", image="web:1")
    assert {id: (known.name, known.namespace, known.uid, known.ready) for id, known in fake.pods.items()} == {
        pod: ("web", "shop", "u", True)
    }
    found = fake.containers[one]
    assert (found.name, found.pod, found.image, found.state, found.pid) == ("one", pod, "web:1", "RUNNING", 5002)
    fake.exit(one, 3)
    assert (found.state, found.pid, found.exit_code) == ("EXITED", 0, 3)


async def test_methods_refuse_as_the_calls_do(fake: FakeCRI) -> None:
    pod = fake.run_pod("web", uid="u")
    one = fake.run(pod, "one")
    with pytest.raises(FakeCRIError, match="is reserved for") as refused:
        fake.run_pod("web", uid="u")
    assert refused.value.code == "UNKNOWN"
    with pytest.raises(FakeCRIError, match="is reserved for") as refused:
        fake.create(pod, "one")
    assert refused.value.code == "UNKNOWN"
    with pytest.raises(FakeCRIError, match="CONTAINER_RUNNING"):
        fake.start(one)
    fake.stop(one)
    with pytest.raises(FakeCRIError, match="CONTAINER_EXITED"):
        fake.exit(one)
    fake.exit_pod(pod)
    of_nobody: list[Callable[[str], object]] = [fake.stop_pod, fake.remove_pod, fake.start, fake.stop, fake.remove]
    for operation in (*of_nobody, fake.faults.unknown):
        with pytest.raises(FakeCRIError, match="not found") as refused:
            operation("nobody")
        assert refused.value.code == "NOT_FOUND"
    with pytest.raises(FakeCRIError, match="not found"):
        fake.create(pod, "late")


async def test_calls_are_counted_and_can_be_waited_for(fake: FakeCRI, control: CRIControl) -> None:
    counted = asyncio.create_task(fake.until(lambda: fake.requests["container_list"] == 2))
    await control.containers()
    await control.containers()
    await counted
    await control.sandboxes()
    await control.call("Status")
    assert fake.requests == {"container_list": 2, "pod_list": 1, "status": 1}


async def test_it_leaves_no_folder_of_its_own_behind() -> None:
    async with FakeCRI() as fake:
        assert fake.path.parent.exists()
    assert not fake.path.parent.exists()


async def test_it_serves_where_it_is_told_to_and_leaves_nothing_there(tmp_path: Path) -> None:
    path = tmp_path / "own" / "c.sock"
    path.parent.mkdir()
    with pytest.raises(RuntimeError, match="FakeCRI is chosen when"):
        _ = FakeCRI().path
    async with FakeCRI(path) as fake, CRIControl(fake.address) as control:
        assert fake.path == path
        assert await control.sandboxes() == {}
    path.parent.rmdir()  # nothing is in it
    with pytest.raises(RuntimeError, match="FakeCRI can be entered only once"):
        async with fake:
            pass


async def test_text_that_is_not_utf8_is_told_as_it_is(fake: FakeCRI, control: CRIControl) -> None:
    pod = fake.run_pod(b"p\xf0", b"n\xf1", uid=b"u\xf2", labels={b"k\xf3": b"v\xf4"}, annotations={b"a\xf5": b"w\xf6"})
    one = fake.run(pod, b"c\xf7", labels={b"l\xf8": b"x\xf9"}, annotations={b"b\xfa": b"y\xfb"}, image=b"i\xfc")
    pods, containers = await _raw(control, "ListPodSandbox"), await _raw(control, "ListContainers")
    for text in (b"p\xf0", b"n\xf1", b"u\xf2", b"k\xf3", b"v\xf4", b"a\xf5", b"w\xf6"):
        assert text in pods
    status = await _raw(control, "ContainerStatus", container_id=one)
    for text in (b"c\xf7", b"l\xf8", b"x\xf9", b"b\xfa", b"y\xfb", b"i\xfc"):
        assert text in containers
        assert text in status


async def test_answers_have_a_limit(fake: FakeCRI, control: CRIControl) -> None:
    pod = fake.run_pod("web")
    for number in range(20):
        fake.create(pod, f"c{number}", annotations={"large": "x" * 1_000_000})
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await control.containers()
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


# -- verbose information -----------------------------------------------------------------------------------------------


async def test_sandbox_without_a_process_tells_no_pid(fake: FakeCRI, control: CRIControl) -> None:
    bare, usual = fake.run_pod("bare", infra=False), fake.run_pod("usual")
    assert "pid" not in await _info(control, bare)
    assert (await _info(control, usual))["pid"] == 5001
    fake.stop_pod(usual)
    assert (await _info(control, usual))["pid"] == 0
    assert [found.state for found in (await control.sandboxes()).values()] == ["READY", "NOTREADY"]


async def test_information_is_told_only_if_asked_for(fake: FakeCRI, control: CRIControl) -> None:
    pod = fake.run_pod("web")
    one = fake.run(pod, "one")
    assert dict((await control.call("ContainerStatus", container_id=one)).info) == {}
    assert dict((await control.call("PodSandboxStatus", pod_sandbox_id=pod)).info) == {}
    assert (await _info(control, one)).keys() >= {"sandboxID", "pid", "runtimeSpec"}


async def test_any_information_can_be_told(fake: FakeCRI, control: CRIControl) -> None:
    pod = fake.run_pod("web")
    one, two = fake.run(pod, "one"), fake.run(pod, "two")

    async def told(id: str) -> Any:
        return dict((await control.call("ContainerStatus", container_id=id, verbose=True)).info)

    with fake.faults.tell_info(None), fake.faults.tell_info("not JSON", one):
        assert await told(one) == {"info": "not JSON"}
        assert await told(two) == {}
        assert dict((await control.call("PodSandboxStatus", pod_sandbox_id=pod, verbose=True)).info) == {}
    assert json.loads((await told(one))["info"])["pid"] == 5002
    with fake.faults.tell_info(b"\xff"):
        assert b"\xff" in await _raw(control, "ContainerStatus", container_id=two, verbose=True)


async def test_state_can_be_unknown(fake: FakeCRI, control: CRIControl) -> None:
    one = fake.run(fake.run_pod("web"), "one")
    with fake.faults.unknown(one):
        assert (await control.containers())[one].state == "UNKNOWN"
        assert (await control.container_status(one)).state == 3
        assert fake.containers[one].state == "RUNNING"
    assert (await control.containers())[one].state == "RUNNING"


# -- events ------------------------------------------------------------------------------------------------------------


async def test_cri_o_tells_everybody_and_the_first_what_was_before(fake: FakeCRI, control: CRIControl) -> None:
    pod = fake.run_pod("web")
    async with control.events() as first:
        assert [(await anext(first)).type for _ in range(2)] == ["CREATED", "STARTED"]
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
    stream = _events(control)
    with fake.faults.pause_after("events") as gate:
        reading = asyncio.ensure_future(_next(stream, CAPACITY))
        await gate.reached()
        assert fake.unsent == CAPACITY
        fake.tell("STOPPED", "too much")
        assert fake.unsent == CAPACITY
    assert {told.container_event_type for told in await reading} == {0}
    fake.tell("DELETED", "next")
    assert (await _next(stream, 1))[0].container_event_type == 3
    stream.cancel()


async def test_streams_of_mute_engines_end_at_once() -> None:
    async with FakeCRI(pod_events="ended") as fake, CRIControl(fake.path) as control:
        fake.run_pod("web")
        async with control.events() as events:
            assert [told async for told in events] == []
        assert fake.requests == {"events": 1}


async def test_old_engines_have_no_streams() -> None:
    async with FakeCRI(pod_events="unimplemented") as fake, CRIControl(fake.path) as control:
        async with control.events() as events:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await anext(events)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_stream_that_is_gone_takes_one_event_along_where_they_share() -> None:
    async with FakeCRI(pod_events="shared") as fake, CRIControl(fake.path) as control:
        async with control.events() as gone:
            pod = fake.run_pod("web")
            assert [(await anext(gone)).type for _ in range(2)] == ["CREATED", "STARTED"]
        await fake.until(lambda: fake.subscribers == 0)
        fake.create(pod, "lost")
        kept = fake.create(pod, "kept")
        async with control.events() as events:
            assert (await anext(events)).id == kept


def _starts(event: FakePodEvent) -> bool:
    return event.type == "STARTED"


async def test_dropped_events_are_not_told(fake: FakeCRI, control: CRIControl) -> None:
    async with control.events() as events:
        with fake.faults.drop(_starts):
            pod = fake.run_pod("web")
        one = fake.create(pod, "one")
        with fake.faults.drop(lambda event: event.id == one):
            fake.start(one)
        with fake.faults.drop(lambda event: event.pod == pod, count=1):
            fake.exit(one)
            fake.remove(one)
        assert [(await anext(events)).type for _ in range(3)] == ["CREATED", "CREATED", "DELETED"]


async def test_duplicated_events_are_told_twice(fake: FakeCRI, control: CRIControl) -> None:
    async with control.events() as events:
        with fake.faults.duplicate(_starts):
            fake.run_pod("web")
        told = [await anext(events) for _ in range(3)]
    assert [each.type for each in told] == ["CREATED", "STARTED", "STARTED"]
    assert told[1] == told[2]


async def test_delayed_events_are_told_later_with_their_true_time(fake: FakeCRI, control: CRIControl) -> None:
    async with control.events() as events:
        await fake.until(lambda: fake.subscribers)
        delay = fake.faults.delay(1000, _starts)
        pod = fake.run_pod("web")
        fake.exit_pod(pod)
        delay.undo()
        told = [await anext(events) for _ in range(3)]
    assert [each.type for each in told] == ["CREATED", "STOPPED", "STARTED"]
    assert told[2].timestamp < told[1].timestamp


async def test_events_are_told_in_reversed_order(fake: FakeCRI, control: CRIControl) -> None:
    async with control.events() as events:
        await fake.until(lambda: fake.subscribers)
        with fake.faults.reorder(2):
            fake.run_pod("web")
        assert [(await anext(events)).type for _ in range(2)] == ["STARTED", "CREATED"]


async def test_silent_changes_are_not_told(fake: FakeCRI, control: CRIControl) -> None:
    async with control.events() as events:
        with fake.faults.silently():
            pod = fake.run_pod("web")
        fake.exit_pod(pod)
        assert (await anext(events)).type == "STOPPED"


async def test_any_event_can_be_told(fake: FakeCRI, control: CRIControl) -> None:
    with fake.faults.silently():
        pod = fake.run_pod("web")
        one = fake.run(pod, "one")
    async with control.events() as events:
        fake.tell("STOPPED", one, timestamp=1_000_000_007)
        told = await anext(events)
        assert (told.id, told.type, told.timestamp) == (one, "STOPPED", 1_000_000_007)
        assert (told.sandbox, told.containers) == ("READY", {one: "RUNNING"})
        fake.tell("STARTED", "nobody")
        assert _short(await anext(events)) == ("nobody", "STARTED", "", {})
        fake.tell("STARTED", "nobody", pod=pod)
        assert _short(await anext(events)) == ("nobody", "STARTED", "READY", {one: "RUNNING"})
        fake.tell("CREATED", pod)
        assert _short(await anext(events)) == (pod, "CREATED", "READY", {one: "RUNNING"})
        fake.publish(message("ContainerEventResponse")(container_id="bytes").SerializeToString())
        assert (await anext(events)).id == "bytes"


async def test_garbage_can_be_told(fake: FakeCRI, control: CRIControl) -> None:
    stream = control._opened().unary_stream(EVENTS)(b"")
    first = asyncio.ensure_future(anext(aiter(stream)))
    await fake.until(lambda: fake.subscribers)
    fake.publish(b"\xff\xff garbage")
    assert await first == b"\xff\xff garbage"
    stream.cancel()


# -- calls -------------------------------------------------------------------------------------------------------------


async def test_failing_calls_answer_with_a_status(fake: FakeCRI, control: CRIControl) -> None:
    with fake.faults.fail("pod_list", "INTERNAL", "broken", count=1):
        with pytest.raises(grpc.aio.AioRpcError, match="broken") as refused:
            await control.sandboxes()
        assert refused.value.code() is grpc.StatusCode.INTERNAL
        assert await control.sandboxes() == {}


@pytest.mark.parametrize("kind", ["container_status", "container_list", "container_stop", "container_remove"])
async def test_failing_calls_can_be_those_about_one_container(fake: FakeCRI, control: CRIControl, kind: str) -> None:
    pod = fake.run_pod("web")
    calls: dict[str, Callable[[str], Awaitable[object]]] = {
        "container_status": control.container_status,
        "container_list": lambda one: control.call("ListContainers", filter={"id": one}),
        "container_stop": control.stop,
        "container_remove": control.remove,
    }
    one, two = fake.run(pod, "one"), fake.run(pod, "two")
    with fake.faults.fail(kind, id=one):
        with pytest.raises(grpc.aio.AioRpcError, match="told to fail"):
            await calls[kind](one)
        await calls[kind](two)
    await calls[kind](one)


@pytest.mark.parametrize("kind", ["pod_status", "pod_list", "pod_stop", "pod_remove"])
async def test_failing_calls_can_be_those_about_one_pod(fake: FakeCRI, control: CRIControl, kind: str) -> None:
    calls: dict[str, Callable[[str], Awaitable[object]]] = {
        "pod_status": lambda pod: control.call("PodSandboxStatus", pod_sandbox_id=pod),
        "pod_list": lambda pod: control.call("ListPodSandbox", filter={"id": pod}),
        "pod_stop": control.stop_pod,
        "pod_remove": control.remove_pod,
    }
    one, two = fake.run_pod("one"), fake.run_pod("two")
    with fake.faults.fail(kind, id=one):
        with pytest.raises(grpc.aio.AioRpcError, match="told to fail"):
            await calls[kind](one)
        await calls[kind](two)
    await calls[kind](one)


async def test_garbled_calls_answer_with_nonsense(fake: FakeCRI, control: CRIControl) -> None:
    with fake.faults.garble("version", b"\xff nonsense", count=1):
        assert await _raw(control, "Version") == b"\xff nonsense"
        assert b"cri-o" in await _raw(control, "Version")
    with fake.faults.garble("events", b"\xff nonsense"):
        stream = control._opened().unary_stream(EVENTS)(b"")
        assert await anext(aiter(stream)) == b"\xff nonsense"
        stream.cancel()


async def test_hanging_calls_answer_when_that_is_undone(fake: FakeCRI, control: CRIControl) -> None:
    pod = fake.run_pod("web")
    one, two = fake.run(pod, "one"), fake.run(pod, "two")
    hang = fake.faults.hang("container_status", one)
    waiting = asyncio.create_task(control.container_status(one))
    await fake.until(lambda: fake.requests["container_status"])
    assert (await control.container_status(two)).id == two
    assert not waiting.done()
    hang.undo()
    assert (await waiting).id == one


async def test_slow_calls_take_their_time(fake: FakeCRI, control: CRIControl) -> None:
    started = time.monotonic()
    with fake.faults.slow("pod_list", 0.1):
        assert await control.sandboxes() == {}
    assert time.monotonic() - started >= 0.1


async def test_gates_hold_calls_before_and_after_they_read(fake: FakeCRI, control: CRIControl) -> None:
    with fake.faults.pause_at("pod_list") as gate:
        before = asyncio.create_task(control.sandboxes())
        await gate.reached()
        pod = fake.run_pod("web")
    assert (await before)[pod].state == "READY"
    with fake.faults.pause_after("pod_list") as gate:
        after = asyncio.create_task(control.sandboxes())
        await gate.reached()
        fake.stop_pod(pod)
    assert (await after)[pod].state == "READY"
    assert (await control.sandboxes())[pod].state == "NOTREADY"


async def test_gate_before_a_subscription_holds_it(fake: FakeCRI, control: CRIControl) -> None:
    with fake.faults.pause_at("events") as gate:
        stream = _events(control)
        first = asyncio.ensure_future(_next(stream, 1))
        await gate.reached()
        assert fake.subscribers == 0
        fake.run_pod("kept")
    assert (await first)[0].container_event_type == 0
    stream.cancel()


async def test_kind_that_there_is_not_is_refused(fake: FakeCRI) -> None:
    with pytest.raises(ValueError, match="pod_list"):
        fake.faults.hang("list")


async def test_clearing_undoes_all_faults(fake: FakeCRI, control: CRIControl) -> None:
    one = fake.run(fake.run_pod("web"), "one")
    fake.faults.fail("pod_list")
    fake.faults.silently()
    fake.faults.drop()
    fake.faults.tell_info(None)
    fake.faults.unknown(one)
    fake.faults.hang("container_list")
    fake.faults.freeze()
    fake.faults.clear()
    assert len(await control.truth()) == 2
    async with control.events() as events:
        for _ in range(4):
            await anext(events)
        fake.exit(one)
        assert (await anext(events)).type == "STOPPED"


# -- streams, the engine -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["broadcast", "shared"])
@pytest.mark.parametrize("code", ["OK", "INTERNAL"])
async def test_ended_streams_tell_what_is_unsent_and_then_their_status(mode: Any, code: str) -> None:
    async with FakeCRI(pod_events=mode) as fake, CRIControl(fake.path) as control, control.events() as events:
        await fake.until(lambda: fake.subscribers)
        fake.run_pod("web")
        fake.faults.end_streams(code, "enough")
        assert [(await anext(events)).type for _ in range(2)] == ["CREATED", "STARTED"]
        if code == "OK":
            assert [late async for late in events] == []
        else:
            with pytest.raises(grpc.aio.AioRpcError, match="enough"):
                await anext(events)
        await fake.until(lambda: fake.subscribers == 0)


async def test_cut_streams_end_and_calls_find_the_engine_again(fake: FakeCRI, control: CRIControl) -> None:
    async with control.events() as events:
        await fake.until(lambda: fake.subscribers)
        fake.faults.cut_streams()
        assert fake.subscribers == 0
        assert [told async for told in events] == []
    await control.aclose()
    assert await control.sandboxes() == {}


async def test_refusing_engine_is_gone_and_comes_back_with_its_pods(fake: FakeCRI, control: CRIControl) -> None:
    pod = fake.run_pod("web")  # of which a killed engine has kept no event
    async with control.events() as events:
        fake.faults.refuse()
        fake.stop_pod(pod)
        assert [told async for told in events] == []
    await control.aclose()
    with pytest.raises(grpc.aio.AioRpcError, match="refused") as refused:
        await control.sandboxes()
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    await control.aclose()
    await fake.faults.accept()
    assert [found.state for found in (await control.sandboxes()).values()] == ["NOTREADY"]
    async with control.events() as events:
        fake.remove_pod(pod)
        assert (await anext(events)).type == "DELETED"


async def test_restarted_engine_keeps_pods_and_their_processes(fake: FakeCRI, control: CRIControl) -> None:
    pod = fake.run_pod("web")
    before = await control.truth()
    await fake.faults.restart()
    await control.aclose()
    assert await control.truth() == before == {pod: 5001}


async def test_frozen_engine_accepts_connections_and_answers_only_when_thawed(
    fake: FakeCRI, control: CRIControl
) -> None:
    async with control.events() as events, CRIControl(fake.path) as newcomer:
        await fake.until(lambda: fake.subscribers)
        with fake.faults.freeze():
            waiting = [asyncio.create_task(each.sandboxes()) for each in (control, newcomer)]
            pod = fake.run_pod("web")
            next_event = asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait([*waiting, next_event], timeout=0.2)
            assert not done
        assert [list(answer) for answer in await asyncio.gather(*waiting)] == [[pod]] * 2
        assert (await next_event).type == "CREATED"


async def test_leaving_ends_what_hangs() -> None:
    async with FakeCRI() as other, CRIControl(other.path) as control:
        other.faults.hang("pod_list")
        waiting = asyncio.create_task(control.sandboxes())
        await other.until(lambda: other.requests["pod_list"])
        other.faults.freeze()
        async with asyncio.timeout(PATIENCE):
            await other.__aexit__(None, None, None)
        with pytest.raises(grpc.aio.AioRpcError):
            await waiting


# -- helpers -----------------------------------------------------------------------------------------------------------


def _short(told: Told) -> tuple[str, str, str, dict[str, str]]:
    return told.id, told.type, told.sandbox, dict(told.containers)


async def _raw(control: CRIControl, method: str, **fields: Any) -> bytes:
    """Make a call, and return the bytes of its answer."""
    request = message(f"{method}Request")(**fields).SerializeToString()
    answer: bytes = await control._opened().unary_unary(f"{SERVICE}/{method}")(request)
    return answer


async def _info(control: CRIControl, id: str) -> Any:
    """Return the verbose information of a container or sandbox."""
    if id in await control.containers():
        answer = await control.call("ContainerStatus", container_id=id, verbose=True)
    else:
        answer = await control.call("PodSandboxStatus", pod_sandbox_id=id, verbose=True)
    return json.loads(answer.info["info"])


def _events(control: CRIControl) -> Any:
    """Ask for the events, and return the call."""
    return control._opened().unary_stream(
        EVENTS,
        request_serializer=message("GetEventsRequest").SerializeToString,
        response_deserializer=message("ContainerEventResponse").FromString,
    )(message("GetEventsRequest")())


async def _next(stream: Any, count: int) -> list[Any]:
    reading = aiter(stream)
    return [await anext(reading) for _ in range(count)]
