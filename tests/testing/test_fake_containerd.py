"""The fake containerd, as far as it is like no other: seen by a client that knows nothing of it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from tests.support.engines.containerd_control import Alive, ContainerdControl
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


async def test_methods_do_what_the_calls_do(fake: FakeContainerd, control: ContainerdControl) -> None:
    async with control.events() as events:
        fake.namespace_create("shop")
        first = fake.run("web", "shop", labels={"a": "b"}, project="front", image="web:1", paused=True)
        assert fake.namespaces == ["shop"]
        assert fake.containers["shop", "web"].labels == {"a": "b", "com.docker.compose.project": "front"}
        assert [(task.pid, task.status, task.alive) for task in fake.tasks.values()] == [(first, "PAUSED", True)]
        fake.resume("web", "shop")
        other = fake.exec("web", "web", namespace="shop")
        fake.exec_exit("web", "web", 4, namespace="shop")
        fake.update("web", "shop", labels={"c": "d"})
        second = fake.restart("web", namespace="shop")
        assert first < other < second
        assert await control.truth() == {("shop", "web"): Alive("shop", "web", second, "RUNNING", {"c": "d"}, "web:1")}
        with pytest.raises(FakeContainerdError, match="already exists") as refused:
            fake.run("web", "shop")
        assert refused.value.code == "ALREADY_EXISTS"
        fake.exit("web", 3, namespace="shop")
        assert [(task.exit_status, task.alive) for task in fake.tasks.values()] == [(3, False)]
        fake.delete("web", "shop")
        fake.namespace_delete("shop")
        with pytest.raises(FakeContainerdError, match="not found"):
            fake.exit("web", namespace="shop")
        told = " ".join([_short(await anext(events)) for _ in range(18)])
    assert told == (
        "/namespaces/create /containers/create /tasks/create /tasks/start /tasks/paused /tasks/resumed "
        f"/tasks/exec-added /tasks/exec-started /tasks/exit:{other}:4 /containers/update "
        f"/tasks/exit:{first}:137 /tasks/delete /tasks/create /tasks/start "
        f"/tasks/exit:{second}:3 /tasks/delete /containers/delete /namespaces/delete"
    )


@pytest.mark.parametrize("version", ["1.6.20", "1.7.24", "2.1.0"])
async def test_it_says_who_it_is(version: str) -> None:
    async with FakeContainerd(version=version, uuid="some-uuid") as fake, ContainerdControl(fake.path) as control:
        assert (await control._call("Version", "Version")).version == version
        server = (await control._call("Introspection", "Server")).SerializeToString()
        uuid, told_pid = server[:11], server[11:]  # which the definitions in use here are too old to know
        assert (uuid, bool(told_pid)) == (b"\n\x09some-uuid", version != "1.6.20")


async def test_large_listing_is_refused(fake: FakeContainerd, control: ContainerdControl) -> None:
    for number in range(20):
        fake.run(f"c{number}", spec=b"x" * 1_000_000)
    assert len(await control.tasks()) == 20
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await control.containers()
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_any_event_can_be_told(fake: FakeContainerd, control: ContainerdControl) -> None:
    async with control.events('topic~="^/tasks/"') as events:
        fake.tell_exit("web", 4711, 3, namespace="other", timestamp=1_000_000_007)
        fake.tell_exit("web", 4711, exec_id="probe")
        fake.tell("/images/create", "containerd.events.ImageCreate", b"")  # which this stream has not asked for
        fake.tell("/tasks/oom", "containerd.events.TaskOOM", b"\n\x03web", "other")
        exited, probe, oom = [await anext(events) for _ in range(3)]
    told = exited.event
    assert (exited.namespace, exited.topic, exited.timestamp) == ("other", "/tasks/exit", 1_000_000_007)
    assert (told.container_id, told.id, told.pid, told.exit_status) == ("web", "web", 4711, 3)
    assert (told.exited_at.ToNanoseconds(), probe.event.id) == (1_000_000_007, "probe")
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


@pytest.mark.parametrize("limits", [{"id": "a"}, {"id": "a", "namespace": "one"}, {"namespace": "one"}])
async def test_faults_of_calls_can_be_limited(
    fake: FakeContainerd, control: ContainerdControl, limits: dict[str, Any]
) -> None:
    fake.faults.fail("task_get", **limits)
    for namespace, id in (("one", "a"), ("one", "b"), ("two", "a"), ("two", "b")):
        fake.run(id, namespace)
        limited = limits.get("namespace", namespace) == namespace and limits.get("id", id) == id
        with pytest.raises(grpc.aio.AioRpcError, match="told to fail") if limited else nullcontext():
            await _task(control, namespace, id)


async def test_garbled_streamed_listing_is_nonsense(fake: FakeContainerd, control: ContainerdControl) -> None:
    with fake.faults.garble("container_list_stream", b"\xff nonsense"):
        listing = control._opened().unary_stream("/containerd.services.containers.v1.Containers/ListStream")
        assert [part async for part in listing(b"")] == [b"\xff nonsense"]


async def test_hung_shim_of_a_newer_engine_is_left_out() -> None:
    async with FakeContainerd(version="2.1.0") as fake, ContainerdControl(fake.path) as control:
        fake.run("web")
        with fake.faults.hang_shim("web", timeout=0.01):
            assert await control.tasks() == {}
            answer = await _task(control, "default", "web")
            assert (answer.process.id, answer.process.pid) == ("web", 0)
        assert set(await control.tasks()) == {"web"}


async def test_restarted_engine_has_another_pid_and_forgets_what_has_exited(
    fake: FakeContainerd, control: ContainerdControl
) -> None:
    async def server() -> bytes:
        await control.aclose()
        told: bytes = (await control._call("Introspection", "Server")).SerializeToString()
        return told

    before = await server()
    fake.run("web")
    fake.run("exited")
    fake.exit("exited")
    await fake.faults.restart(keep_exited=True)
    again = await server()
    assert set(await control.tasks()) == {"web", "exited"}
    await fake.faults.restart()
    assert len({before, again, await server()}) == 3
    assert before[:38] == again[:38]  # its uuid is still the same
    assert set(await control.tasks()) == {"web"}


def _short(told: Told) -> str:
    """Spell an event in short: its topic, and of an exit the PID and the code; it must be about what is there."""
    event = told.event
    whom = getattr(event, "container_id", "") or getattr(event, "id", "") or event.name
    assert whom == ("shop" if told.topic.startswith("/namespaces/") else "web")
    return f"{told.topic}:{event.pid}:{event.exit_status}" if told.topic == "/tasks/exit" else told.topic


async def _task(control: ContainerdControl, namespace: str, id: str) -> Any:
    return await control._call("Tasks", "Get", namespace, container_id=id)
