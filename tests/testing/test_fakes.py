"""What all fake engines have in common: faults that do what they say, seen by clients that know nothing of them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import aiohttp
import grpc
import grpc.aio
import pytest

from tests.conftest import PATIENCE
from tests.support.engines import containerd_wire, cri_wire
from tests.support.engines.control import DockerControl
from tests.support.engines.grpc_control import GrpcControl
from whalewatch import testing
from whalewatch.testing import FakeContainerd, FakeCRI, FakeDocker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = pytest.mark.usefixtures("patience")

NONSENSE = b"\xff\xfe nonsense"


class Refused(Exception):
    """A call or a stream has failed: its status, and what was said about it."""


class Docker:
    """Docker, at whose API an event is a line.

    Attributes:
        make: makes the fake.
        listing: the kind of the calls that `ask` makes.
        gates: the kinds of call that hold a subscription before and after the engine knows it.
        failure: a status, as a fault takes it and as the client sees it.
        remembers: whether the first subscriber is told what was before.
    """

    make, listing, gates, failure, remembers = FakeDocker, "list", ("subscribe", "events"), 503, False

    def __init__(self, fake: Any) -> None:
        self.fake, self.faults = fake, fake.faults
        self._client = DockerControl(fake.path)

    def run(self, name: str) -> None:
        self.fake.run(name)

    def tell(self, *words: str) -> None:
        for word in words:
            self.fake.emit("container", word, "x")

    def meant(self, word: str) -> Callable[[Any], bool]:
        return lambda event: bool(event["Action"] == word)

    def publish(self, message: bytes) -> None:
        self.fake.emit_raw(message + b"\n")

    async def ask(self) -> bytes:
        try:
            async with self._client._opened().get("http://docker/containers/json") as response:
                answer = await response.read()
        except aiohttp.ClientError as error:
            raise Refused("lost", str(error), error) from error
        if response.status >= 400:
            raise Refused(response.status, json.loads(answer)["message"])
        return answer

    def names(self, answer: bytes) -> set[str]:
        return {listed["Names"][0].removeprefix("/") for listed in json.loads(answer)}

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[bytes]]:
        async with self._client._opened().get("http://docker/events") as response:
            yield self._lines(response)

    async def _lines(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        try:
            async for line in response.content:
                yield line.removesuffix(b"\n")
        except aiohttp.ClientError as error:
            raise Refused("lost") from error

    def told(self, event: bytes) -> tuple[str, int]:
        read = json.loads(event)
        return read["Action"], read["timeNano"]

    async def close(self) -> None:
        await self._client.aclose()


class Grpc:
    """An engine that speaks gRPC; `calls` are the methods that list and that subscribe."""

    calls: ClassVar[tuple[str, str]]
    failure = "INTERNAL"

    def __init__(self, fake: Any) -> None:
        self.fake, self.faults = fake, fake.faults
        self._client = GrpcControl(fake.path)

    def publish(self, message: bytes) -> None:
        self.fake.publish(message)

    async def ask(self) -> bytes:
        call = self._client._opened().unary_unary(self.calls[0])
        try:
            return bytes(await call(b"", metadata=(("containerd-namespace", "default"),)))
        except grpc.aio.AioRpcError as error:
            raise Refused(error.code().name, error.details()) from error

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[bytes]]:
        call = self._client._opened().unary_stream(self.calls[1])(b"")
        try:
            yield self._messages(call)
        finally:
            call.cancel()

    async def _messages(self, call: Any) -> AsyncIterator[bytes]:
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise Refused(error.code().name, error.details()) from error

    async def close(self) -> None:
        await self._client.aclose()


class Containerd(Grpc):
    """A containerd, with all in one namespace."""

    make, listing, gates, remembers = FakeContainerd, "task_list", ("subscribe", "subscribe"), False
    calls = ("/containerd.services.tasks.v1.Tasks/List", "/containerd.services.events.v1.Events/Subscribe")

    def run(self, name: str) -> None:
        self.fake.run(name)

    def tell(self, *words: str) -> None:
        for word in words:
            self.fake.tell(f"/{word}", "containerd.events.TaskOOM", b"", "other")

    def meant(self, word: str) -> Callable[[Any], bool]:
        return lambda event: (event.topic, event.namespace) == (f"/{word}", "other")

    def names(self, answer: bytes) -> set[str]:
        _, listing = containerd_wire.request_and_answer("containerd.services.tasks.v1.Tasks", "List")
        return {task.id for task in listing.FromString(answer).tasks}

    def told(self, event: bytes) -> tuple[str, int]:
        read = containerd_wire.message("containerd.services.events.v1.Envelope").FromString(event)
        return read.topic.removeprefix("/"), read.timestamp.ToNanoseconds()


class CRI(Grpc):
    """A CRI-O, whose containers are all in one pod."""

    make, listing, gates, remembers = FakeCRI, "container_list", ("events", "events"), True
    calls = ("/runtime.v1.RuntimeService/ListContainers", "/runtime.v1.RuntimeService/GetContainerEvents")

    def __init__(self, fake: Any) -> None:
        super().__init__(fake)
        with self.faults.silently():
            self._pod = fake.run_pod("pod")

    def run(self, name: str) -> None:
        self.fake.run(self._pod, name)

    def tell(self, *words: str) -> None:
        for word in words:
            self.fake.tell("CREATED", word, pod=self._pod)

    def meant(self, word: str) -> Callable[[Any], bool]:
        return lambda event: (event.id, event.type, event.pod) == (word, "CREATED", self._pod)

    def names(self, answer: bytes) -> set[str]:
        read = cri_wire.message("ListContainersResponse").FromString(answer)
        return {container.metadata.name for container in read.containers}

    def told(self, event: bytes) -> tuple[str, int]:
        read = cri_wire.message("ContainerEventResponse").FromString(event)
        return read.container_id, read.created_at


Case = Docker | Containerd | CRI

KINDS: list[type[Case]] = [Docker, Containerd, CRI]

each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
async def case(request: pytest.FixtureRequest) -> AsyncIterator[Case]:
    async with request.param.make() as fake:
        made = request.param(fake)
        yield made
        await made.close()


@asynccontextmanager
async def subscribed(case: Case) -> AsyncIterator[AsyncIterator[bytes]]:
    """Open an event stream, and wait until the engine knows it."""
    async with case.events() as events:
        await case.fake.until(lambda: case.fake.subscribers)
        yield events


async def words(case: Case, events: AsyncIterator[bytes], count: int) -> list[str]:
    return [case.told(await anext(events))[0] for _ in range(count)]


async def alive(case: Case) -> set[str]:
    return case.names(await case.ask())


# -- what they are -----------------------------------------------------------------------------------------------------


async def test_calls_are_counted_and_can_be_waited_for(case: Case) -> None:
    counted = asyncio.create_task(case.fake.until(lambda: case.fake.requests[case.listing] == 2))
    await case.ask()
    await case.ask()
    await counted
    assert case.fake.requests == {case.listing: 2}


@each_kind
async def test_nothing_is_left_where_it_served_and_it_is_entered_once(kind: type[Case], tmp_path: Any) -> None:
    fake = kind.make(path := tmp_path / "engine.sock")
    async with fake, kind.make() as other:
        case, own_folder = kind(fake), other.path.parent
        assert (fake.path, fake.address, await alive(case)) == (path, f"unix://{path}", set())
        assert own_folder.exists()
        await case.close()
    assert (list(tmp_path.iterdir()), own_folder.exists()) == ([], False)
    with pytest.raises(RuntimeError, match=f"a {kind.make.__name__} can be entered only once"):
        await fake.__aenter__()
    with pytest.raises(RuntimeError, match=f"this {kind.make.__name__} is chosen when it is entered"):
        _ = kind.make().path


@pytest.mark.parametrize(
    ("name", "loaded"),
    [
        ("FakeContainerd", "False True"),
        ("FakeCRI", "False True"),
        ("FakeDocker", "True False"),
        ("Gate", "False False"),
    ],
)
def test_a_fake_is_loaded_with_its_protocol_and_no_other(name: str, loaded: str) -> None:
    program = f"""
import sys
from whalewatch.testing import {name}
print("aiohttp" in sys.modules, "grpc" in sys.modules)
"""
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE)
    assert ran.stdout.strip() == loaded


def test_all_exported_names_can_be_loaded() -> None:
    for name in testing.__all__:
        assert getattr(testing, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute"):
        _ = testing.Nothing


# -- faults of events --------------------------------------------------------------------------------------------------


async def test_dropped_events_are_not_told(case: Case) -> None:
    async with subscribed(case) as events:
        with case.faults.drop(case.meant("lost")):
            case.tell("lost", "kept", "lost")
        with case.faults.drop(case.meant("once"), count=1):
            case.tell("once", "twice", "once")
        with case.faults.drop():
            case.tell("all")
        case.tell("lost")
        assert await words(case, events, 4) == ["kept", "twice", "once", "lost"]


async def test_duplicated_events_are_told_twice(case: Case) -> None:
    async with subscribed(case) as events:
        with case.faults.duplicate(case.meant("a"), count=1):
            case.tell("a", "a", "b")
        told = [await anext(events) for _ in range(4)]
    assert [case.told(event)[0] for event in told] == ["a", "a", "a", "b"]
    assert told[0] == told[1] != told[2]


async def test_delayed_events_are_told_later_in_order_with_their_true_time(case: Case) -> None:
    async with subscribed(case) as events:
        delay = case.faults.delay(1000, case.meant("late"))
        case.tell("late", "early")
        delay.undo()
        with case.faults.delay(0.01, case.meant("later")):
            case.tell("later", "soon", "later")
            told = [case.told(await anext(events)) for _ in range(5)]
    assert [word for word, _ in told] == ["early", "late", "soon", "later", "later"]
    early, late, soon, *later = [time for _, time in told]
    assert late < early < later[0] < soon < later[1]


async def test_events_are_told_in_reversed_order(case: Case) -> None:
    async with subscribed(case) as events:
        with case.faults.reorder(3):
            case.tell(*"abcde")
            assert await words(case, events, 3) == ["c", "b", "a"]
        assert await words(case, events, 2) == ["e", "d"]
        with case.faults.reorder(2, lambda event: case.meant("x")(event) or case.meant("z")(event)):
            case.tell("x", "y", "z")
        assert await words(case, events, 3) == ["y", "z", "x"]


async def test_silent_changes_are_not_told(case: Case) -> None:
    async with subscribed(case) as events:
        with case.faults.silently():
            case.run("web")
        case.tell("marker")
        assert await words(case, events, 1) == ["marker"]
    assert await alive(case) == {"web"}


async def test_any_bytes_can_be_told(case: Case) -> None:
    async with subscribed(case) as events:
        case.publish(NONSENSE)
        case.tell("sound")
        assert await anext(events) == NONSENSE
        assert await words(case, events, 1) == ["sound"]


# -- faults of calls ---------------------------------------------------------------------------------------------------


async def test_failing_calls_answer_with_a_status(case: Case) -> None:
    case.run("web")
    with case.faults.fail(case.listing, case.failure, "broken", count=1):
        with pytest.raises(Refused, match="broken") as refused:
            await case.ask()
        assert refused.value.args[0] == case.failure
        assert await alive(case) == {"web"}
    with case.faults.fail(case.listing), pytest.raises(Refused, match="the fake engine was told to fail"):
        await case.ask()
    assert await alive(case) == {"web"}


async def test_garbled_calls_answer_with_nonsense(case: Case) -> None:
    with case.faults.garble(case.listing, NONSENSE, count=1):
        assert await case.ask() == NONSENSE
        assert await alive(case) == set()


async def test_slow_calls_take_their_time(case: Case) -> None:
    started = time.monotonic()
    with case.faults.slow(case.listing, 0.1):
        assert await alive(case) == set()
    assert time.monotonic() - started >= 0.1


async def test_gates_hold_calls_before_and_after_they_read(case: Case) -> None:
    with case.faults.pause_at(case.listing) as gate:
        before = asyncio.create_task(alive(case))
        await gate.reached()
        case.run("one")
        assert gate.held == 1
    assert await before == {"one"}
    with case.faults.pause_after(case.listing) as gate:
        after = asyncio.create_task(alive(case))
        await gate.reached()
        case.run("two")
    assert (await after, await alive(case)) == ({"one"}, {"one", "two"})


async def test_gate_lets_calls_go_one_by_one(case: Case) -> None:
    gate = case.faults.pause_at(case.listing)
    calls = [asyncio.create_task(alive(case)) for _ in range(3)]
    await gate.reached(3)
    gate.step()
    await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    assert (sum(call.done() for call in calls), gate.held) == (1, 2)
    gate.step(2)
    assert await asyncio.gather(*calls) == [set()] * 3


async def test_gate_before_a_subscription_lets_events_be_missed(case: Case) -> None:
    gate = case.faults.pause_at(case.gates[0])
    async with case.events() as events:
        first = asyncio.ensure_future(anext(events))
        await gate.reached()
        assert case.fake.subscribers == 0
        case.tell("early")
        gate.release()
        await case.fake.until(lambda: case.fake.subscribers)
        case.tell("later")
        assert case.told(await first)[0] == ("early" if case.remembers else "later")


async def test_gate_after_a_subscription_delays_events_and_loses_none(case: Case) -> None:
    gate = case.faults.pause_after(case.gates[1])
    async with case.events() as events:
        first = asyncio.ensure_future(anext(events))
        await gate.reached()
        case.tell("held")
        assert case.fake.unsent == 1
        gate.release()
        assert case.told(await first)[0] == "held"


async def test_kind_of_call_that_there_is_not_is_refused(case: Case) -> None:
    with pytest.raises(ValueError, match=f"no kind of call is named 'lists': .*{case.listing}"):
        case.faults.hang("lists")


async def test_clearing_undoes_all_faults(case: Case) -> None:
    case.faults.fail(case.listing)
    case.faults.silently()
    case.faults.drop()
    case.faults.hang(case.listing)
    case.faults.freeze()
    case.faults.clear()
    async with subscribed(case) as events:
        case.tell("told")
        assert await words(case, events, 1) == ["told"]
    case.run("web")
    assert await alive(case) == {"web"}


# -- faults of streams and of the engine -------------------------------------------------------------------------------


async def test_ended_streams_tell_what_is_unsent_and_then_their_end(case: Case) -> None:
    async with subscribed(case) as events:
        case.tell("a", "b")
        case.faults.end_streams()
        assert [case.told(event)[0] async for event in events] == ["a", "b"]
    await case.fake.until(lambda: case.fake.subscribers == 0)


async def test_cut_streams_fail_and_calls_find_the_engine_again(case: Case) -> None:
    async with subscribed(case) as events:
        case.faults.cut_streams()
        with pytest.raises(Refused):
            await anext(events)
        assert case.fake.subscribers == 0
    await case.close()
    assert await alive(case) == set()


async def test_killed_engine_is_gone_and_comes_back_with_what_was_done_meanwhile(case: Case) -> None:
    async with subscribed(case) as events:
        with case.faults.pause_at(case.listing) as gate:
            held = asyncio.create_task(case.ask())
            await gate.reached()
            case.faults.refuse()
            case.run("web")
            for lost in (held, anext(events)):
                with pytest.raises(Refused):
                    await lost
    await case.close()
    assert case.fake.path.exists()  # as a killed engine leaves it
    with pytest.raises(Refused, match=r"refused|Connect call failed"):
        await case.ask()
    await case.close()
    for comes_back in (case.faults.accept, case.faults.restart):
        await comes_back()
        await case.close()
        assert await alive(case) == {"web"}
        async with subscribed(case) as events:
            case.tell("next")
            assert await words(case, events, 1) == ["next"]


async def test_frozen_engine_accepts_connections_and_answers_only_when_thawed(case: Case) -> None:
    newcomer = type(case)(case.fake)
    async with subscribed(case) as events:
        with case.faults.freeze():
            waiting = [asyncio.create_task(alive(each)) for each in (case, newcomer)]
            case.tell("told")
            told = asyncio.create_task(words(case, events, 1))
            done, _ = await asyncio.wait([*waiting, told], timeout=0.2)
            assert not done
        assert (await told, await asyncio.gather(*waiting)) == (["told"], [set(), set()])
    await newcomer.close()


async def test_hanging_calls_end_with_the_engine_or_are_answered_when_that_is_undone(case: Case) -> None:
    for ends in (False, True):
        hang = case.faults.hang(case.listing)
        waiting = asyncio.create_task(alive(case))
        await case.fake.until(lambda: case.fake.requests[case.listing] == 1 + ends)  # noqa: B023 - awaited at once
        assert not waiting.done()
        if not ends:
            hang.undo()
            assert await waiting == set()
    case.faults.freeze()
    async with asyncio.timeout(PATIENCE):
        await case.fake.__aexit__(None, None, None)
    with pytest.raises(Refused):
        await waiting


@pytest.mark.parametrize(("kind", "options"), [(Containerd, {}), (CRI, {}), (CRI, {"pod_events": "shared"})])
async def test_streams_of_grpc_can_end_with_any_status(kind: type[Case], options: dict[str, Any]) -> None:
    async with kind.make(**options) as fake:
        case = kind(fake)
        async with subscribed(case) as events:
            case.tell("told")
            case.faults.end_streams("INTERNAL", "enough")
            assert await words(case, events, 1) == ["told"]
            with pytest.raises(Refused, match=r"INTERNAL.*enough"):
                await anext(events)
            await fake.until(lambda: fake.subscribers == 0)
        await case.close()
