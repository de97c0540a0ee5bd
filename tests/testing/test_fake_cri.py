"""The fake CRI, as far as it is like no other: seen by a client that knows nothing of it."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.engines.cri_control import SERVICE, CRIControl
from tests.support.engines.cri_wire import message
from whalewatch.testing import FakeCRI, FakeCRIError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

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


async def test_methods_do_what_the_calls_do(fake: FakeCRI, control: CRIControl) -> None:
    async with control.events() as events:
        pod = fake.run_pod("web", "shop", uid="u", attempt=1, labels={"a": "b"}, annotations={"c": "d"})
        created = fake.create(pod, "one", labels={"e": "f"}, annotations={"g": "h"}, image="web:1")
        assert fake.start(created) == 5002
        other = fake.run(pod, "two", attempt=4)
        assert await control.truth() == {pod: 5001, created: 5002, other: 5003}
        known, one = fake.pods[pod], fake.containers[created]
        assert (known.name, known.namespace, known.uid, known.ready) == ("web", "shop", "u", True)
        assert (one.name, one.pod, one.image, one.state, one.pid) == ("one", pod, "web:1", "RUNNING", 5002)
        fake.exit(created, 7)
        assert (one.state, one.pid, one.exit_code) == ("EXITED", 0, 7)
        with pytest.raises(FakeCRIError, match="CONTAINER_EXITED"):
            fake.exit(created)
        with pytest.raises(FakeCRIError, match="is reserved for") as refused:
            fake.run_pod("web", "shop", uid="u", attempt=1)
        assert refused.value.code == "UNKNOWN"
        for operation in (fake.stop_pod, fake.remove_pod, fake.start, fake.stop, fake.remove, fake.faults.unknown):
            with pytest.raises(FakeCRIError, match="not found") as refused:
                operation("nobody")
            assert refused.value.code == "NOT_FOUND"
        fake.stop(other)
        fake.stop(other)
        fake.remove(other)
        fake.exit_pod(pod)
        fake.stop_pod(pod)
        listed = [*(await control.sandboxes()).values(), *(await control.containers()).values()]
        shown = [(each.name, each.attempt, each.state) for each in listed]
        assert shown == [("web", 1, "NOTREADY"), ("one", 0, "EXITED")]
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
    await control.call("Status")
    assert fake.requests["status"] == 1


async def test_text_that_is_not_utf8_is_told_as_it_is(fake: FakeCRI, control: CRIControl) -> None:
    pod = fake.run_pod(b"p\xf0", b"n\xf1", uid=b"u\xf2", labels={b"k\xf3": b"v\xf4"}, annotations={b"a\xf5": b"w\xf6"})
    one = fake.run(pod, b"c\xf7", labels={b"l\xf8": b"x\xf9"}, annotations={b"b\xfa": b"y\xfb"}, image=b"i\xfc")
    sandboxes = await _raw(control, "ListPodSandbox")
    assert all(text in sandboxes for text in (b"p\xf0", b"n\xf1", b"u\xf2", b"k\xf3", b"v\xf4", b"a\xf5", b"w\xf6"))
    for answer in (await _raw(control, "ListContainers"), await _raw(control, "ContainerStatus", container_id=one)):
        assert all(text in answer for text in (b"c\xf7", b"l\xf8", b"x\xf9", b"b\xfa", b"y\xfb", b"i\xfc"))


async def test_information_is_told_if_asked_for_with_the_pid_of_what_has_a_process(
    fake: FakeCRI, control: CRIControl
) -> None:
    bare, usual = fake.run_pod("bare", infra=False), fake.run_pod("usual")
    one = fake.run(usual, "one")
    for id in (bare, usual, one):
        assert await _info(control, id, verbose=False) is None
    assert "pid" not in json.loads(await _info(control, bare))
    assert json.loads(await _info(control, usual))["pid"] == 5001
    assert json.loads(await _info(control, one)).keys() >= {"sandboxID", "pid", "runtimeSpec"}
    with fake.faults.tell_info(None), fake.faults.tell_info("not JSON", one):
        assert [await _info(control, id) for id in (one, usual)] == ["not JSON", None]
    assert json.loads(await _info(control, one))["pid"] == 5002
    fake.faults.tell_info(b"\xff")
    assert b"\xff" in await _raw(control, "ContainerStatus", container_id=one, verbose=True)
    fake.faults.clear()
    fake.stop_pod(usual)
    assert json.loads(await _info(control, usual))["pid"] == 0
    assert [found.state for found in (await control.sandboxes()).values()] == ["READY", "NOTREADY"]


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


async def test_cri_o_tells_everybody_and_the_first_what_was_before(fake: FakeCRI, control: CRIControl) -> None:
    fake.run_pod("forgotten")
    await fake.faults.restart()
    pod = fake.run_pod("web")
    async with control.events() as first:
        early = [(told.id, told.type) for told in await _next(first, 2)]
        assert early == [(pod, "CREATED"), (pod, "STARTED")]
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


async def _raw(control: CRIControl, method: str, **fields: Any) -> bytes:
    """Make a call, and return the bytes of its answer."""
    request = message(f"{method}Request")(**fields).SerializeToString()
    answer: bytes = await control._opened().unary_unary(f"{SERVICE}/{method}")(request)
    return answer


async def _info(control: CRIControl, id: str, *, verbose: bool = True) -> Any:
    """Return what a status tells as the information of a container or sandbox; None if it tells none."""
    if id in await control.containers():
        answer = await control.call("ContainerStatus", container_id=id, verbose=verbose)
    else:
        answer = await control.call("PodSandboxStatus", pod_sandbox_id=id, verbose=verbose)
    return dict(answer.info).get("info")


async def _next(events: AsyncIterator[Told], count: int) -> list[Told]:
    return [await anext(events) for _ in range(count)]
