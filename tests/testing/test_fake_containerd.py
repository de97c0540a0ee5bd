"""The fake containerd: its faults do what they say, seen by a client that knows nothing of it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from tests.conftest import PATIENCE
from tests.support.engines.containerd_control import Alive, ContainerdControl
from tests.support.engines.containerd_wire import message, request_and_answer
from whalewatch import testing
from whalewatch.testing import FakeContainerd, FakeContainerdError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.engines.containerd_control import Told
    from whalewatch.testing import FakeEvent

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
        told = [_short(await anext(events)) for _ in range(18)]
    assert told == [
        "/namespaces/create shop",
        "/containers/create web",
        "/tasks/create web",
        "/tasks/start web",
        "/tasks/paused web",
        "/tasks/resumed web",
        "/tasks/exec-added web",
        "/tasks/exec-started web",
        f"/tasks/exit web {other} 4",
        "/containers/update web",
        f"/tasks/exit web {first} 137",
        "/tasks/delete web",
        "/tasks/create web",
        "/tasks/start web",
        f"/tasks/exit web {second} 137",
        "/tasks/delete web",
        "/containers/delete web",
        "/namespaces/delete shop",
    ]


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


async def test_calls_are_counted_and_can_be_waited_for(fake: FakeContainerd, control: ContainerdControl) -> None:
    counted = asyncio.create_task(fake.until(lambda: fake.requests["task_list"] == 2))
    await control.tasks()
    await control.tasks()
    await counted
    assert fake.requests == {"task_list": 2}


@pytest.mark.parametrize(
    ("version", "pid"),
    [("1.6.20", 0), ("1.7.24", os.getpid()), ("2.1.0", os.getpid())],
    ids=["1.6", "1.7", "2.1"],  # a PID would make it another test in each process
)
async def test_it_says_who_it_is(version: str, pid: int) -> None:
    async with FakeContainerd(version=version, uuid="some-uuid") as fake, ContainerdControl(fake.path) as control:
        assert (await control._call("Version", "Version")).version == version
        server = await control._call("Introspection", "Server")
        # The definitions in use here are older than the field, which is kept as it came.
        told_pid = b"\x10" + _varint(pid) if pid else b""
        assert server.SerializeToString() == b"\n\x09some-uuid" + told_pid


async def test_it_leaves_no_folder_of_its_own_behind() -> None:
    async with FakeContainerd() as fake:
        assert fake.path.parent.exists()
    assert not fake.path.parent.exists()


async def test_it_serves_where_it_is_told_to_and_leaves_nothing_there(tmp_path: Any) -> None:
    path = tmp_path / "c.sock"
    async with FakeContainerd(path) as fake, ContainerdControl(fake.address) as control:
        assert fake.path == path
        assert await control.namespaces() == []
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError, match="only once"):
        async with fake:
            pass


def test_a_fake_is_loaded_with_its_protocol_and_no_other() -> None:
    script = """
import sys
from whalewatch.testing import {0}
print("aiohttp" in sys.modules, "grpc" in sys.modules)
"""
    for fake, loaded in (
        ("FakeContainerd", "False True"),
        ("FakeCRI", "False True"),
        ("FakeDocker", "True False"),
        ("Gate", "False False"),
    ):
        ran = subprocess.run(
            [sys.executable, "-c", script.format(fake)], check=True, capture_output=True, text=True, timeout=PATIENCE
        )
        assert ran.stdout.strip() == loaded, fake


def test_all_exported_names_can_be_loaded() -> None:
    for name in testing.__all__:
        assert getattr(testing, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute"):
        _ = testing.Nothing


async def test_listing_of_many_large_containers_is_too_large_but_streams(fake: FakeContainerd) -> None:
    with fake.faults.silently():
        for number in range(5000):
            fake.run(f"c{number}", spec=b"x" * 9000)
    async with ContainerdControl(fake.path) as control:
        assert len(await control.tasks()) == 5000
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await control.containers()
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len(await _streamed(control)) == 5000


async def test_an_older_engine_has_no_streamed_listing() -> None:
    async with FakeContainerd(list_stream=False) as fake, ContainerdControl(fake.path) as control:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await _streamed(control)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert await control.containers() == {}


async def test_text_that_is_not_utf8_is_told_as_it_is(fake: FakeContainerd, control: ContainerdControl) -> None:
    fake.run("web", labels={b"k\xff": b"v\xfe"}, image=b"i\xfd")
    channel: Any = control._opened()
    listed = await channel.unary_unary("/containerd.services.containers.v1.Containers/List")(
        b"", metadata=(("containerd-namespace", "default"),)
    )
    assert b"k\xff" in listed
    assert b"v\xfe" in listed
    assert b"i\xfd" in listed


# -- events ------------------------------------------------------------------------------------------------------------


def _starts(event: FakeEvent) -> bool:
    return event.topic == "/tasks/start"


async def test_dropped_events_are_not_told(fake: FakeContainerd, control: ContainerdControl) -> None:
    async with control.events('topic~="start"') as events:
        with fake.faults.drop(_starts):
            fake.run("lost")
        fake.run("told")
        with fake.faults.drop(lambda event: event.namespace == "other"):
            fake.run("lost-too", "other")
        with fake.faults.drop(_starts, count=1):
            fake.run("first")
            fake.run("second")
        assert [_short(await anext(events)) for _ in range(2)] == ["/tasks/start told", "/tasks/start second"]
    assert len(fake.tasks) == 5


async def test_duplicated_events_are_told_twice(fake: FakeContainerd, control: ContainerdControl) -> None:
    async with control.events() as events:
        with fake.faults.duplicate(_starts):
            fake.run("web")
        told = [await anext(events) for _ in range(4)]
    assert [one.topic for one in told] == ["/containers/create", "/tasks/create", "/tasks/start", "/tasks/start"]
    assert told[2] == told[3]


async def test_delayed_events_are_told_later_with_their_true_time(
    fake: FakeContainerd, control: ContainerdControl
) -> None:
    async with control.events() as events:
        delay = fake.faults.delay(1000, _starts)
        fake.run("web")
        fake.pause("web")
        delay.undo()
        told = [await anext(events) for _ in range(4)]
        with fake.faults.delay(0.01):
            fake.resume("web")
            told.append(await anext(events))
    assert [one.topic for one in told] == [
        "/containers/create",
        "/tasks/create",
        "/tasks/paused",
        "/tasks/start",
        "/tasks/resumed",
    ]
    assert told[3].timestamp < told[2].timestamp


async def test_events_are_told_in_reversed_order(fake: FakeContainerd, control: ContainerdControl) -> None:
    async with control.events() as events:
        with fake.faults.reorder(2, lambda event: event.topic in {"/tasks/start", "/tasks/exit"}):
            fake.run("web")
            fake.exit("web")
        told = [(await anext(events)).topic for _ in range(4)]
    assert told == ["/containers/create", "/tasks/create", "/tasks/exit", "/tasks/start"]


async def test_silent_changes_are_not_told(fake: FakeContainerd, control: ContainerdControl) -> None:
    async with control.events() as events:
        with fake.faults.silently():
            fake.run("web")
        fake.pause("web")
        assert (await anext(events)).topic == "/tasks/paused"


async def test_any_event_can_be_told(fake: FakeContainerd, control: ContainerdControl) -> None:
    async with control.events('topic~="^/tasks/"') as events:
        fake.tell_exit("web", 4711, 3, namespace="other", timestamp=1_000_000_007)
        late = await anext(events)
        assert (late.namespace, late.topic, late.timestamp) == ("other", "/tasks/exit", 1_000_000_007)
        assert (late.event.container_id, late.event.id, late.event.pid, late.event.exit_status) == (
            "web",
            "web",
            4711,
            3,
        )
        assert late.event.exited_at.ToNanoseconds() == 1_000_000_007
        fake.tell_exit("web", 4711, exec_id="probe")
        assert (await anext(events)).event.id == "probe"
        fake.tell("/tasks/oom", "containerd.events.TaskOOM", b"\n\x03web", "other")
        assert _short(await anext(events)) == "/tasks/oom web"
        fake.tell("/images/create", "containerd.events.ImageCreate", b"")  # which this stream has not asked for
        envelope = message("containerd.services.events.v1.Envelope")(topic="/tasks/garbage", namespace="nowhere")
        fake.publish(envelope.SerializeToString())
        assert (await anext(events)).topic == "/tasks/garbage"


async def test_garbage_can_be_told(fake: FakeContainerd, control: ContainerdControl) -> None:
    channel: Any = control._opened()
    stream = channel.unary_stream("/containerd.services.events.v1.Events/Subscribe")(b"")
    reading = aiter(stream)
    first = asyncio.ensure_future(anext(reading))
    await fake.until(lambda: fake.subscribers)
    fake.publish(b"\xff\xff garbage")
    assert await first == b"\xff\xff garbage"
    stream.cancel()


async def test_unread_events_are_kept_for_their_subscriber(fake: FakeContainerd, control: ContainerdControl) -> None:
    async with control.events() as events:
        with fake.faults.freeze():
            for number in range(3000):
                fake.run(f"c{number}")
            assert fake.unsent > 0
        topics = [(await anext(events)).topic for _ in range(9000)]
    assert topics.count("/tasks/start") == 3000


# -- calls -------------------------------------------------------------------------------------------------------------


async def test_failing_calls_answer_with_a_status(fake: FakeContainerd, control: ContainerdControl) -> None:
    fake.run("web")
    fake.run("web", "other")
    with fake.faults.fail("task_list", "INTERNAL", "broken", namespace="other"):
        with pytest.raises(grpc.aio.AioRpcError, match="broken") as refused:
            await control.tasks("other")
        assert refused.value.code() is grpc.StatusCode.INTERNAL
        assert set(await control.tasks("default")) == {"web"}
    assert set(await control.tasks("other")) == {"web"}


async def test_failing_calls_can_be_those_about_one_container(fake: FakeContainerd, control: ContainerdControl) -> None:
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

    with fake.faults.fail("task_get", id="a"):
        assert await failing() == {("one", "a"), ("two", "a")}
    with fake.faults.fail("task_get", id="a", namespace="one"):
        assert await failing() == {("one", "a")}
    with fake.faults.fail("task_get", namespace="one"):
        assert await failing() == {("one", "a"), ("one", "b")}
    with fake.faults.fail("task_get", count=1):
        assert len(await failing()) == 1
    assert await failing() == set()


async def test_garbled_calls_answer_with_nonsense(fake: FakeContainerd, control: ContainerdControl) -> None:
    channel: Any = control._opened()
    version = channel.unary_unary("/containerd.services.version.v1.Version/Version")
    with fake.faults.garble("version", b"\xff nonsense", count=1):
        assert await version(b"") == b"\xff nonsense"
        assert b"1.7.24" in await version(b"")
    with fake.faults.garble("container_list_stream", b"\xff nonsense"):
        listing = channel.unary_stream("/containerd.services.containers.v1.Containers/ListStream")
        assert [part async for part in listing(b"")] == [b"\xff nonsense"]


async def test_hanging_calls_answer_when_that_is_undone(fake: FakeContainerd, control: ContainerdControl) -> None:
    hang = fake.faults.hang("namespace_list")
    waiting = asyncio.create_task(control.namespaces())
    await fake.until(lambda: fake.requests["namespace_list"])
    assert await control.tasks() == {}
    assert not waiting.done()
    hang.undo()
    assert await waiting == []


async def test_slow_calls_take_their_time(fake: FakeContainerd, control: ContainerdControl) -> None:
    started = time.monotonic()
    with fake.faults.slow("namespace_list", 0.1):
        assert await control.namespaces() == []
    assert time.monotonic() - started >= 0.1


async def test_gates_hold_calls_before_and_after_they_read(fake: FakeContainerd, control: ContainerdControl) -> None:
    with fake.faults.pause_at("task_list") as gate:
        before = asyncio.create_task(control.tasks())
        await gate.reached()
        pid = fake.run("web")
    assert await before == {"web": ("RUNNING", pid)}
    with fake.faults.pause_after("task_list") as gate:
        after = asyncio.create_task(control.tasks())
        await gate.reached()
        fake.exit("web")
    assert await after == {"web": ("RUNNING", pid)}


async def test_gate_before_a_subscription_lets_events_be_missed(
    fake: FakeContainerd, control: ContainerdControl
) -> None:
    channel: Any = control._opened()
    with fake.faults.pause_at("subscribe") as gate:
        stream = channel.unary_stream("/containerd.services.events.v1.Events/Subscribe")(b"")
        first = asyncio.ensure_future(anext(aiter(stream)))
        await gate.reached()
        assert fake.subscribers == 0
        fake.run("missed")
    await fake.until(lambda: fake.subscribers)
    fake.pause("missed")
    assert b"/tasks/paused" in await first
    stream.cancel()


async def test_gate_after_a_subscription_delays_events_and_loses_none(
    fake: FakeContainerd, control: ContainerdControl
) -> None:
    channel: Any = control._opened()
    with fake.faults.pause_after("subscribe") as gate:
        stream = channel.unary_stream("/containerd.services.events.v1.Events/Subscribe")(b"")
        first = asyncio.ensure_future(anext(aiter(stream)))
        await gate.reached()
        fake.run("held")
        assert fake.unsent == 3
    assert b"/containers/create" in await first
    stream.cancel()


async def test_kind_that_there_is_not_is_refused(fake: FakeContainerd) -> None:
    with pytest.raises(ValueError, match="task_list"):
        fake.faults.hang("tasks")


async def test_clearing_undoes_all_faults(fake: FakeContainerd, control: ContainerdControl) -> None:
    fake.faults.fail("namespace_list")
    fake.faults.silently()
    fake.faults.drop()
    fake.faults.hang("task_list")
    fake.faults.freeze()
    fake.faults.clear()
    async with control.events() as events:
        fake.run("web")
        assert (await anext(events)).topic == "/containers/create"
    assert await control.namespaces() == ["default"]
    assert len(await control.tasks()) == 1


# -- shims, streams, the engine ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.6.20", "2.1.0"])
async def test_hung_shim_is_unknown_or_left_out(version: str) -> None:
    async with FakeContainerd(version=version) as fake, ContainerdControl(fake.path) as control:
        pid = fake.run("web")
        with fake.faults.hang_shim("web", timeout=0.01):
            assert await control.tasks() == ({} if version == "2.1.0" else {"web": ("UNKNOWN", 0)})
            answer = await _task(control, "default", "web")
            assert (answer.process.id, answer.process.pid) == ("web", 0)
        assert await control.tasks() == {"web": ("RUNNING", pid)}


@pytest.mark.parametrize("code", ["OK", "INTERNAL"])
async def test_ended_streams_tell_what_is_unsent_and_then_their_status(
    fake: FakeContainerd, control: ContainerdControl, code: str
) -> None:
    async with control.events() as events:
        fake.run("web")
        fake.faults.end_streams(code, "enough")
        told = [await anext(events) for _ in range(3)]
        if code == "OK":
            assert [late async for late in events] == []
        else:
            with pytest.raises(grpc.aio.AioRpcError, match="enough"):
                await anext(events)
    assert told[-1].topic == "/tasks/start"
    await fake.until(lambda: fake.subscribers == 0)


async def test_cut_streams_end_and_calls_find_the_engine_again(
    fake: FakeContainerd, control: ContainerdControl
) -> None:
    async with control.events() as events:
        fake.faults.cut_streams()
        assert fake.subscribers == 0
        assert [told async for told in events] == []
    await control.aclose()
    assert await control.namespaces() == []


async def test_refusing_engine_is_gone_and_comes_back_with_its_containers(
    fake: FakeContainerd, control: ContainerdControl
) -> None:
    pid = fake.run("web")
    async with control.events() as events:
        fake.faults.refuse()
        fake.pause("web")
        assert [told async for told in events] == []
    await control.aclose()
    assert fake.path.exists()  # as a killed engine leaves it
    with pytest.raises(grpc.aio.AioRpcError, match="refused") as refused:
        await control.namespaces()
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    await control.aclose()
    await fake.faults.accept()
    assert await control.tasks() == {"web": ("PAUSED", pid)}


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


async def test_frozen_engine_accepts_connections_and_answers_only_when_thawed(
    fake: FakeContainerd, control: ContainerdControl
) -> None:
    async with control.events() as events, ContainerdControl(fake.path) as newcomer:
        with fake.faults.freeze():
            waiting = [asyncio.create_task(each.namespaces()) for each in (control, newcomer)]
            fake.run("web")
            next_event = asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait([*waiting, next_event], timeout=0.2)
            assert not done
        assert await asyncio.gather(*waiting) == [["default"]] * 2
        assert (await next_event).topic == "/containers/create"


async def test_leaving_ends_what_hangs() -> None:
    async with FakeContainerd() as other, ContainerdControl(other.path) as control:
        other.faults.hang("task_list")
        waiting = asyncio.create_task(control.tasks())
        await other.until(lambda: other.requests["task_list"])
        other.faults.freeze()
        async with asyncio.timeout(PATIENCE):
            await other.__aexit__(None, None, None)
        with pytest.raises(grpc.aio.AioRpcError):
            await waiting


# -- helpers -----------------------------------------------------------------------------------------------------------


def _short(told: Told) -> str:
    """Spell an event in short: its topic, whom it is about, and of an exit the PID and the code."""
    event = told.event
    whom = getattr(event, "container_id", "") or getattr(event, "id", "") or event.name
    if told.topic == "/tasks/exit":
        return f"{told.topic} {whom} {event.pid} {event.exit_status}"
    return f"{told.topic} {whom}"


async def _task(control: ContainerdControl, namespace: str, id: str) -> Any:
    return await control._call("Tasks", "Get", namespace, container_id=id)


async def _streamed(control: ContainerdControl, namespace: str = "default") -> list[str]:
    """Return the ids that the streamed listing tells."""
    service = "containerd.services.containers.v1.Containers"
    request, answer = request_and_answer(service, "ListStream")
    channel: Any = control._opened()
    call = channel.unary_stream(
        f"/{service}/ListStream",
        request_serializer=request.SerializeToString,
        response_deserializer=answer.FromString,
    )(request(), metadata=(("containerd-namespace", namespace),))
    return [listed.container.id async for listed in call]


def _varint(value: int) -> bytes:
    low = bytes([value & 0x7F | (0x80 if value > 0x7F else 0)])
    return low + (_varint(value >> 7) if value > 0x7F else b"")
