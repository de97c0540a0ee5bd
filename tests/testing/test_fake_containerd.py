"""The fake containerd, as far as it is like no other: seen by a client that knows nothing of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from tests.support.engines.containerd_control import Alive, ContainerdControl
from tests.support.engines.containerd_wire import request_and_answer
from whalewatch.testing import FakeContainerd, FakeContainerdError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.engines.containerd_control import Told

pytestmark = pytest.mark.usefixtures("patience")


@pytest.fixture
async def fake() -> AsyncIterator[FakeContainerd]:
    async with FakeContainerd() as fake:
        yield fake


@pytest.fixture
async def control(fake: FakeContainerd) -> AsyncIterator[ContainerdControl]:
    async with ContainerdControl(fake.path) as control:
        yield control


# -- what it is --------------------------------------------------------------------------------------------------------


async def test_methods_do_what_the_calls_do(fake: FakeContainerd, control: ContainerdControl) -> None:
    async with control.events() as events:
        fake.namespace_create("shop")
        first = fake.run("web", "shop", labels={"a": "b"}, project="front", image="web:1")
        fake.pause("web", "shop")
        fake.resume("web", "shop")
        other = fake.exec("web", "web", namespace="shop")
        fake.exec_exit("web", "web", 4, namespace="shop")
        fake.update("web", "shop", labels={"c": "d"})
        second = fake.restart("web", namespace="shop")
        assert first < other < second
        assert await control.truth() == {("shop", "web"): Alive("shop", "web", second, "RUNNING", {"c": "d"}, "web:1")}
        fake.delete("web", "shop")
        fake.namespace_delete("shop")
        told = " ".join([_short(await anext(events)) for _ in range(18)])
    assert told == (
        "/namespaces/create /containers/create /tasks/create /tasks/start /tasks/paused /tasks/resumed "
        f"/tasks/exec-added /tasks/exec-started /tasks/exit:{other}:4 /containers/update "
        f"/tasks/exit:{first}:137 /tasks/delete /tasks/create /tasks/start "
        f"/tasks/exit:{second}:137 /tasks/delete /containers/delete /namespaces/delete"
    )


async def test_what_it_knows_can_be_read(fake: FakeContainerd) -> None:
    pid = fake.run("web", paused=True, project="shop")
    fake.create("bare", "other")
    assert fake.namespaces == ["default", "other"]
    assert set(fake.containers) == {("default", "web"), ("other", "bare")}
    assert fake.containers["default", "web"].labels == {"com.docker.compose.project": "shop"}
    assert [(task.pid, task.status, task.alive) for task in fake.tasks.values()] == [(pid, "PAUSED", True)]
    fake.exit("web", 3)
    assert [(task.exit_status, task.alive) for task in fake.tasks.values()] == [(3, False)]


async def test_methods_refuse_as_the_calls_do(fake: FakeContainerd) -> None:
    fake.run("web")
    with pytest.raises(FakeContainerdError, match="already exists") as refused:
        fake.run("web")
    assert refused.value.code == "ALREADY_EXISTS"
    with pytest.raises(FakeContainerdError, match="not found"):
        fake.exit("nobody")


@pytest.mark.parametrize("version", ["1.6.20", "1.7.24", "2.1.0"])
async def test_it_says_who_it_is(version: str) -> None:
    async with FakeContainerd(version=version, uuid="some-uuid") as fake, ContainerdControl(fake.path) as control:
        assert (await control._call("Version", "Version")).version == version
        server = await control._call("Introspection", "Server")
        # The definitions in use here are older than the field, which is kept as it came.
        told_pid = b"" if version == "1.6.20" else b"\x10" + _varint(os.getpid())
        assert server.SerializeToString() == b"\n\x09some-uuid" + told_pid


async def test_large_listing_is_refused_but_can_be_streamed(fake: FakeContainerd, control: ContainerdControl) -> None:
    for number in range(20):
        fake.run(f"c{number}", spec=b"x" * 1_000_000)
    assert len(await control.tasks()) == 20
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await control.containers()
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await _streamed(control) == {f"c{number}" for number in range(20)}


async def test_an_older_engine_has_no_streamed_listing() -> None:
    async with FakeContainerd(list_stream=False) as fake, ContainerdControl(fake.path) as control:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await _streamed(control)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert await control.containers() == {}


async def test_text_that_is_not_utf8_is_told_as_it_is(fake: FakeContainerd, control: ContainerdControl) -> None:
    fake.run("web", labels={b"k\xff": b"v\xfe"}, image=b"i\xfd")
    listing = control._opened().unary_unary("/containerd.services.containers.v1.Containers/List")
    listed = await listing(b"", metadata=(("containerd-namespace", "default"),))
    assert [text for text in (b"k\xff", b"v\xfe", b"i\xfd") if text not in listed] == []


# -- events, faults ----------------------------------------------------------------------------------------------------


async def test_any_event_can_be_told(fake: FakeContainerd, control: ContainerdControl) -> None:
    async with control.events('topic~="^/tasks/"') as events:
        fake.tell_exit("web", 4711, 3, namespace="other", timestamp=1_000_000_007)
        late = await anext(events)
        assert (late.namespace, late.topic, late.timestamp) == ("other", "/tasks/exit", 1_000_000_007)
        told = late.event
        assert (told.container_id, told.id, told.pid, told.exit_status) == ("web", "web", 4711, 3)
        assert told.exited_at.ToNanoseconds() == 1_000_000_007
        fake.tell_exit("web", 4711, exec_id="probe")
        assert (await anext(events)).event.id == "probe"
        fake.tell("/images/create", "containerd.events.ImageCreate", b"")  # which this stream has not asked for
        fake.tell("/tasks/oom", "containerd.events.TaskOOM", b"\n\x03web", "other")
        oom = await anext(events)
        assert (oom.namespace, oom.topic, oom.event.container_id) == ("other", "/tasks/oom", "web")


@pytest.mark.slow
async def test_unread_events_are_kept_for_their_subscriber(fake: FakeContainerd, control: ContainerdControl) -> None:
    async with control.events() as events:
        with fake.faults.freeze():
            for number in range(3000):
                fake.tell_exit(f"c{number}", 1)
            assert fake.unsent > 0
        told = [(await anext(events)).event.container_id for _ in range(3000)]
    assert told == [f"c{number}" for number in range(3000)]


async def test_faults_of_calls_can_be_limited(fake: FakeContainerd, control: ContainerdControl) -> None:
    for namespace in ("one", "two"):
        fake.run("a", namespace)
        fake.run("b", namespace)

    async def failing() -> set[tuple[str, str]]:
        failed = set()
        for key in fake.containers:
            try:
                await _task(control, *key)
            except grpc.aio.AioRpcError:
                failed.add(key)
        return failed

    for limits, limited in (
        ({"id": "a"}, {("one", "a"), ("two", "a")}),
        ({"id": "a", "namespace": "one"}, {("one", "a")}),
        ({"namespace": "one"}, {("one", "a"), ("one", "b")}),
        ({"count": 1}, {("one", "a")}),
    ):
        with fake.faults.fail("task_get", **limits):
            assert await failing() == limited
        assert await failing() == set()
    with fake.faults.fail("task_list", namespace="two"):
        assert set(await control.tasks("one")) == {"a", "b"}
        with pytest.raises(grpc.aio.AioRpcError):
            await control.tasks("two")


async def test_garbled_streamed_listing_is_nonsense(fake: FakeContainerd, control: ContainerdControl) -> None:
    with fake.faults.garble("container_list_stream", b"\xff nonsense"):
        listing = control._opened().unary_stream("/containerd.services.containers.v1.Containers/ListStream")
        assert [part async for part in listing(b"")] == [b"\xff nonsense"]


@pytest.mark.parametrize("version", ["1.6.20", "2.1.0"])
async def test_hung_shim_is_unknown_or_left_out(version: str) -> None:
    async with FakeContainerd(version=version) as fake, ContainerdControl(fake.path) as control:
        pid = fake.run("web")
        with fake.faults.hang_shim("web", timeout=0.01):
            assert await control.tasks() == ({} if version == "2.1.0" else {"web": ("UNKNOWN", 0)})
            answer = await _task(control, "default", "web")
            assert (answer.process.id, answer.process.pid) == ("web", 0)
        assert await control.tasks() == {"web": ("RUNNING", pid)}


async def test_restarted_engine_has_another_pid_and_forgets_what_has_exited(
    fake: FakeContainerd, control: ContainerdControl
) -> None:
    server = (await control._call("Introspection", "Server")).SerializeToString()
    pid = fake.run("web")
    fake.run("exited")
    fake.exit("exited")
    await fake.faults.restart(keep_exited=True)
    await control.aclose()
    assert set(await control.tasks()) == {"web", "exited"}
    await fake.faults.restart()
    await control.aclose()
    assert await control.tasks() == {"web": ("RUNNING", pid)}
    again = (await control._call("Introspection", "Server")).SerializeToString()
    assert again != server
    assert again[:38] == server[:38]  # its uuid is still the same


# -- helpers -----------------------------------------------------------------------------------------------------------


def _short(told: Told) -> str:
    """Spell an event in short: its topic, and of an exit the PID and the code; it must be about what is there."""
    event = told.event
    whom = getattr(event, "container_id", "") or getattr(event, "id", "") or event.name
    assert whom == ("shop" if told.topic.startswith("/namespaces/") else "web")
    return f"{told.topic}:{event.pid}:{event.exit_status}" if told.topic == "/tasks/exit" else told.topic


async def _task(control: ContainerdControl, namespace: str, id: str) -> Any:
    return await control._call("Tasks", "Get", namespace, container_id=id)


async def _streamed(control: ContainerdControl) -> set[str]:
    """Return the ids that the streamed listing tells."""
    service = "containerd.services.containers.v1.Containers"
    listing = control._opened().unary_stream(f"/{service}/ListStream")(
        b"", metadata=(("containerd-namespace", "default"),)
    )
    answer = request_and_answer(service, "ListStream")[1]
    return {answer.FromString(listed).container.id async for listed in listing}


def _varint(value: int) -> bytes:
    low = bytes([value & 0x7F | (0x80 if value > 0x7F else 0)])
    return low + (_varint(value >> 7) if value > 0x7F else b"")
