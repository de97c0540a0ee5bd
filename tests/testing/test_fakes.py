"""What all fake engines have in common: faults that do what they say, seen by clients that know nothing of them."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc
import grpc.aio
import pytest

from tests.conftest import PATIENCE
from tests.support.engines import containerd_wire, cri_wire
from tests.support.engines.containerd_control import ContainerdControl
from tests.support.engines.control import ControlError, DockerControl
from tests.support.engines.cri_control import CRIControl
from whalewatch import testing
from whalewatch.testing import FakeContainerd, FakeCRI, FakeDocker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

pytestmark = pytest.mark.usefixtures("patience")

NONSENSE = b"\xff\xfe nonsense\n"

REFUSED = (ControlError, aiohttp.ClientError, grpc.aio.AioRpcError)
"""What is raised when a call or a stream fails."""

EVENTS, CRI = "containerd.services.events.v1", "runtime.v1.RuntimeService"


@dataclass(frozen=True)
class Kind:
    """A kind of fake engine, and what to do with it in words that are the same for all.

    Attributes:
        make, control: the fake, and a client that knows nothing of it.
        listing: the kind of the calls that list what is alive, and an answer to it that tells of "made-up".
        subscribing: the kinds of call that hold a subscription before and after the engine knows it; their method.
        failure: a status.
        listed, names: lists what is alive, and the names in that.
        tell, means: lets the engine tell an event that can be known by a word, and knows it as faults see it.
        decode, told: an event as it was sent, and the word and the time in that.
        run: runs something of a name.
        remembers: whether the first subscriber is told what was before.
    """

    make: Any
    control: Any
    listing: tuple[str, bytes]
    subscribing: tuple[str, str, str]
    listed: Callable[[Any], Awaitable[Any]]
    names: Callable[[Any], set[str]]
    tell: Callable[[Any, str], object]
    means: Callable[[Any, str], bool]
    decode: Callable[[bytes], Any]
    told: Callable[[Any], tuple[str, int]]
    run: Callable[[Any, str], object] = lambda fake, name: fake.run(name)
    failure: Any = "INTERNAL"
    remembers: bool = False


KINDS = {
    "Docker": Kind(
        make=FakeDocker,
        control=DockerControl,
        listing=("list", b'[{"Names": ["/made-up"]}]'),
        subscribing=("subscribe", "events", "http://docker/events"),
        failure=503,
        listed=DockerControl.list,
        names=lambda listed: {each["Names"][0][1:] for each in listed},
        tell=lambda fake, word: fake.emit("container", word, "x"),
        means=lambda event, word: event["Action"] == word,
        decode=json.loads,
        told=lambda event: (event["Action"], event["timeNano"]),
    ),
    "containerd": Kind(
        make=FakeContainerd,
        control=ContainerdControl,
        listing=("task_list", b"\n\x09\x12\x07made-up"),
        subscribing=("subscribe", "subscribe", f"/{EVENTS}.Events/Subscribe"),
        listed=ContainerdControl.tasks,
        names=set,
        tell=lambda fake, word: fake.tell(f"/{word}", "containerd.events.TaskOOM", b"", "other"),
        means=lambda event, word: (event.topic, event.namespace) == (f"/{word}", "other"),
        decode=containerd_wire.message(f"{EVENTS}.Envelope").FromString,
        told=lambda event: (event.topic.removeprefix("/"), event.timestamp.ToNanoseconds()),
    ),
    "CRI": Kind(
        make=FakeCRI,
        control=CRIControl,
        listing=("pod_list", b"\n\x0b\x12\x09\n\x07made-up"),
        subscribing=("events", "events", f"/{CRI}/GetContainerEvents"),
        run=lambda fake, name: fake.run_pod(name),
        listed=CRIControl.sandboxes,
        names=lambda listed: {sandbox.name for sandbox in listed.values()},
        tell=lambda fake, word: fake.tell("CREATED", word),
        means=lambda event, word: (event.type, event.id) == ("CREATED", word),
        decode=cri_wire.message("ContainerEventResponse").FromString,
        told=lambda event: (event.container_id, event.created_at),
        remembers=True,
    ),
}


class Case:
    """A fake engine and a client of it that knows nothing of it."""

    def __init__(self, kind: Kind, fake: Any) -> None:
        self.kind, self.fake, self.faults = kind, fake, fake.faults
        self.control = kind.control(fake.path)
        self.listing = kind.listing[0]

    def tell(self, *words: str) -> None:
        for word in words:
            self.kind.tell(self.fake, word)

    def meant(self, *words: str) -> Callable[[Any], bool]:
        return lambda event: any(self.kind.means(event, word) for word in words)

    async def alive(self) -> set[str]:
        return self.kind.names(await self.kind.listed(self.control))

    def told(self, event: bytes) -> tuple[str, int]:
        return self.kind.told(self.kind.decode(event))

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open an event stream; the value is an iterator of what comes."""
        channel, method = self.control._opened(), self.kind.subscribing[2]
        if self.kind.make is FakeDocker:
            async with channel.get(method) as response:
                yield aiter(response.content)
            return
        call = channel.unary_stream(method)(b"")
        try:
            yield aiter(call)
        finally:
            call.cancel()

    @asynccontextmanager
    async def subscribed(self) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open an event stream, and wait until the engine knows it."""
        async with self.events() as events:
            await self.fake.until(lambda: self.fake.subscribers)
            yield events

    async def words(self, events: AsyncIterator[bytes], count: int) -> list[str]:
        return [self.told(await anext(events))[0] for _ in range(count)]


@asynccontextmanager
async def serving(kind: str, **options: Any) -> AsyncIterator[Case]:
    async with KINDS[kind].make(**options) as fake:
        case = Case(KINDS[kind], fake)
        try:
            yield case
        finally:
            await case.control.aclose()


@pytest.fixture(params=KINDS)
async def case(request: pytest.FixtureRequest) -> AsyncIterator[Case]:
    async with serving(request.param) as case:
        yield case


# -- what they are -----------------------------------------------------------------------------------------------------


async def test_calls_are_counted_by_kinds_that_there_are_and_can_be_waited_for(case: Case) -> None:
    counted = asyncio.create_task(case.fake.until(lambda: case.fake.requests[case.listing] == 2))
    await case.alive()
    await case.alive()
    await counted
    assert case.fake.requests == {case.listing: 2}
    with pytest.raises(ValueError, match=f"no kind of call is named 'lists': .*{case.listing}"):
        case.faults.hang("lists")


@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_is_left_where_it_served_and_it_is_entered_once(kind: str, tmp_path: Any) -> None:
    path, name = tmp_path / "engine.sock", KINDS[kind].make.__name__
    async with serving(kind, path=path) as case, KINDS[kind].make() as other:
        own_folder = other.path.parent
        assert (case.fake.path, case.fake.address, await case.alive()) == (path, f"unix://{path}", set())
        assert own_folder.exists()
    assert (list(tmp_path.iterdir()), own_folder.exists()) == ([], False)
    with pytest.raises(RuntimeError, match=f"a {name} can be entered only once"):
        await case.fake.__aenter__()
    with pytest.raises(RuntimeError, match=f"this {name} is chosen when it is entered"):
        _ = KINDS[kind].make().path


@pytest.mark.slow
def test_a_fake_is_loaded_when_it_is_used_with_its_protocol_and_no_other() -> None:
    program = "import sys; from whalewatch.testing import {}; print({{'aiohttp', 'grpc'}} & sys.modules.keys())"
    for name, loaded in {
        "FakeContainerd": {"grpc"},
        "FakeCRI": {"grpc"},
        "FakeDocker": {"aiohttp"},
        "Gate": set(),
    }.items():
        command = [sys.executable, "-c", program.format(name)]
        ran = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE)
        assert ran.stdout.strip() == str(loaded), name
    assert [getattr(testing, name).__name__ for name in testing.__all__] == testing.__all__
    with pytest.raises(AttributeError, match="no attribute"):
        _ = testing.Nothing


# -- faults of events --------------------------------------------------------------------------------------------------


EVENT_FAULTS: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "drop": (lambda faults, meant: faults.drop(meant("a")), "bc b z"),
    "drop once": (lambda faults, meant: faults.drop(meant("a"), count=1), "bcab z"),
    "drop all": (lambda faults, _: faults.drop(), " z"),
    "silently": (lambda faults, _: faults.silently(), " z"),
    "duplicate": (lambda faults, meant: faults.duplicate(meant("a")), "aabcaab z"),
    "duplicate once": (lambda faults, meant: faults.duplicate(meant("a"), count=1), "aabcab z"),
    "delay": (lambda faults, meant: faults.delay(1000, meant("a")), "bcb aa z"),
    "reverse": (lambda faults, _: faults.reorder(3), "cba ba z"),
    "reverse some": (lambda faults, meant: faults.reorder(2, meant("a", "c")), "bcab a z"),
}
"""Faults of events, and what is told with them of the events a, b, c, a and b, when they are undone, and of z."""


@pytest.mark.parametrize("fault", EVENT_FAULTS)
async def test_faults_of_events_change_what_is_told(case: Case, fault: str) -> None:
    make, told = EVENT_FAULTS[fault]
    before, undone = told.split(" ", 1)
    async with case.subscribed() as events:
        with make(case.faults, case.meant):
            case.tell(*"abcab")
            found = [await anext(events) for _ in before]
        case.tell("z")
        found += [await anext(events) for _ in undone.replace(" ", "")]
    assert "".join(case.told(event)[0] for event in found) == told.replace(" ", "")
    assert len(set(found)) == min(len(found), len("abcabz")), "what is duplicated is told as it was"


async def test_delayed_events_are_told_in_order_with_their_true_time(case: Case) -> None:
    async with case.subscribed() as events:
        with case.faults.delay(0.01, case.meant("later")):
            case.tell("later", "soon", "later")
            told = [case.told(await anext(events)) for _ in range(3)]
    assert [word for word, _ in told] == ["soon", "later", "later"]
    assert told[1][1] < told[0][1] < told[2][1]


# -- faults of calls ---------------------------------------------------------------------------------------------------


async def test_failing_calls_answer_with_a_status(case: Case) -> None:
    case.kind.run(case.fake, "web")
    with case.faults.fail(case.listing, case.kind.failure, "broken", count=1):
        with pytest.raises(REFUSED, match=rf"{case.kind.failure}(.|\n)*broken"):
            await case.alive()
        assert await case.alive() == {"web"}
    with case.faults.fail(case.listing), pytest.raises(REFUSED, match="the fake engine was told to fail"):
        await case.alive()
    assert await case.alive() == {"web"}


def _run_in_pod(fake: FakeCRI, name: str) -> str:
    return fake.run(fake.run_pod(name), name)


ABOUT: list[tuple[str, str, Callable[[Any, str], str], Callable[..., Awaitable[object]]]] = [
    ("Docker", "inspect", FakeDocker.run, DockerControl.inspect),
    ("Docker", "pause", FakeDocker.run, DockerControl.pause),
    ("containerd", "pause", lambda fake, one: fake.run(one) and one, ContainerdControl.pause),
    ("CRI", "container_list", _run_in_pod, lambda control, one: control.call("ListContainers", filter={"id": one})),
    ("CRI", "container_remove", _run_in_pod, CRIControl.remove),
    ("CRI", "container_status", _run_in_pod, CRIControl.container_status),
    ("CRI", "container_stop", _run_in_pod, CRIControl.stop),
    ("CRI", "pod_list", FakeCRI.run_pod, lambda control, one: control.call("ListPodSandbox", filter={"id": one})),
    ("CRI", "pod_remove", FakeCRI.run_pod, CRIControl.remove_pod),
    ("CRI", "pod_status", FakeCRI.run_pod, lambda control, one: control.call("PodSandboxStatus", pod_sandbox_id=one)),
    ("CRI", "pod_stop", FakeCRI.run_pod, CRIControl.stop_pod),
]
"""Calls about one container or pod: of which fake, their kind, what runs something, and what makes the call."""


@pytest.mark.parametrize("how", ["fail", "hang", "pause_at", "pause_after"])
@pytest.mark.parametrize(("kind", "call", "run", "ask"), ABOUT, ids=[f"{kind} {call}" for kind, call, *_ in ABOUT])
async def test_faults_of_calls_can_be_limited_to_one_container(
    kind: str, call: str, run: Callable[..., str], ask: Callable[..., Awaitable[object]], how: str
) -> None:
    async with serving(kind) as case:
        one, two = run(case.fake, "one"), run(case.fake, "two")
        with getattr(case.faults, how)(call, id=one):
            asking = asyncio.ensure_future(ask(case.control, one))
            await case.fake.until(lambda: case.fake.requests[call])
            await ask(case.control, two)
            if how == "fail":
                with pytest.raises(REFUSED, match="told to fail"):
                    await asking
            else:
                assert not asking.done()
        await (ask(case.control, one) if how == "fail" else asking)


async def test_calls_can_be_garbled_or_slow(case: Case) -> None:
    with case.faults.garble(*case.kind.listing, count=1):
        assert (await case.alive(), await case.alive()) == ({"made-up"}, set())
    started = time.monotonic()
    with case.faults.slow(case.listing, 0.1):
        assert await case.alive() == set()
    assert time.monotonic() - started >= 0.1


async def test_streams_can_tell_any_bytes(case: Case) -> None:
    async with case.subscribed() as events:
        (case.fake.emit_raw if case.kind.make is FakeDocker else case.fake.publish)(NONSENSE)
        case.tell("sound")
        assert (await anext(events), await case.words(events, 1)) == (NONSENSE, ["sound"])
    case.faults.garble(case.kind.subscribing[1], NONSENSE)
    async with case.events() as events:
        assert await anext(events) == NONSENSE


async def test_gates_hold_calls_before_and_after_they_read_and_let_them_go_one_by_one(case: Case) -> None:
    with case.faults.pause_at(case.listing) as gate:
        calls = [asyncio.create_task(case.alive()) for _ in range(4)]
        await gate.reached(4)
        gate.step()
        done, held = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        case.kind.run(case.fake, "one")
        assert ([call.result() for call in done], gate.held) == ([set()], 3)
        gate.step(2)
        done, held = await asyncio.wait(held, return_when=asyncio.FIRST_COMPLETED)
        assert gate.held == 1
    assert await asyncio.gather(*done, *held) == [{"one"}] * 3
    with case.faults.pause_after(case.listing) as gate:
        after = asyncio.create_task(case.alive())
        await gate.reached()
        case.kind.run(case.fake, "two")
    assert (await after, await case.alive()) == ({"one"}, {"one", "two"})


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_gate_before_a_subscription_lets_events_be_missed_and_after_it_delays_them(
    case: Case, moment: str
) -> None:
    pause = case.faults.pause_at if moment == "before" else case.faults.pause_after
    gate = pause(case.kind.subscribing[moment == "after"])
    async with case.events() as events:
        first = asyncio.ensure_future(anext(events))
        await gate.reached()
        assert case.fake.subscribers == (moment == "after")
        case.tell("held")
        assert case.fake.unsent == (moment == "after")
        gate.release()
        await case.fake.until(lambda: case.fake.subscribers)
        case.tell("later")
        missed = moment == "before" and not case.kind.remembers
        assert case.told(await first)[0] == ("later" if missed else "held")


async def test_clearing_undoes_all_faults(case: Case) -> None:
    case.faults.fail(case.listing)
    case.faults.silently()
    case.faults.drop()
    case.faults.hang(case.listing)
    case.faults.freeze()
    case.faults.clear()
    async with case.subscribed() as events:
        case.tell("told")
        assert await case.words(events, 1) == ["told"]
    case.kind.run(case.fake, "web")
    assert await case.alive() == {"web"}


# -- faults of streams and of the engine -------------------------------------------------------------------------------


FAILED, SHARED = ("INTERNAL", "enough"), {"pod_events": "shared"}


@pytest.mark.parametrize(
    ("kind", "options", "status"),
    [*((kind, {}, ()) for kind in KINDS), ("containerd", {}, FAILED), ("CRI", {}, FAILED), ("CRI", SHARED, FAILED)],
)
async def test_ended_streams_tell_what_is_unsent_and_then_their_end(
    kind: str, options: dict[str, Any], status: tuple[str, ...]
) -> None:
    async with serving(kind, **options) as case, case.subscribed() as events:
        case.tell("a", "b")
        case.faults.end_streams(*status)
        assert await case.words(events, 2) == ["a", "b"]
        ended, why = (grpc.aio.AioRpcError, r"INTERNAL(.|\n)*enough") if status else (StopAsyncIteration, None)
        with pytest.raises(ended, match=why):
            await anext(events)
        await case.fake.until(lambda: case.fake.subscribers == 0)


@pytest.mark.parametrize("how", ["cut", "killed"])
async def test_streams_and_calls_fail_with_their_connection_and_find_the_engine_again(case: Case, how: str) -> None:
    survives = how == "cut" and case.kind.make is FakeDocker  # with gRPC calls share the connection of the stream
    async with case.subscribed() as events:
        with case.faults.pause_at(case.listing) as gate:
            held = asyncio.create_task(case.alive())
            await gate.reached()
            (case.faults.cut_streams if how == "cut" else case.faults.refuse)()
            case.kind.run(case.fake, "web")
            for lost in (anext(events), *([] if survives else [held])):
                with pytest.raises(REFUSED):
                    await lost
            assert case.fake.subscribers == 0 or how == "killed"
    if survives:
        assert await held == {"web"}
    await case.control.aclose()
    if how == "killed":
        assert case.fake.path.exists()  # as a killed engine leaves it
        with pytest.raises(REFUSED, match=r"refused|Connect call failed"):
            await case.alive()
        await case.faults.accept()
    for _ in range(2):
        await case.control.aclose()
        assert await case.alive() == {"web"}
        async with case.subscribed() as events:
            case.tell("next")
            assert await case.words(events, 1) == ["next"]
        await case.faults.restart()


async def test_frozen_engine_accepts_connections_and_answers_only_when_thawed(case: Case) -> None:
    newcomer = Case(case.kind, case.fake)
    async with case.subscribed() as events:
        with case.faults.freeze():
            waiting = [asyncio.create_task(each.alive()) for each in (case, newcomer)]
            case.tell("told")
            told = asyncio.create_task(case.words(events, 1))
            done, _ = await asyncio.wait([*waiting, told], timeout=0.2)
            assert not done
        assert (await told, await asyncio.gather(*waiting)) == (["told"], [set(), set()])
    await newcomer.control.aclose()


@pytest.mark.parametrize("how", ["hang", "pause_at", "pause_after", "slow", "freeze"])
async def test_held_calls_and_streams_end_with_the_engine_and_leave_no_task(case: Case, how: str) -> None:
    before = asyncio.all_tasks()
    async with case.subscribed() as events:
        case.faults.delay(3600.0)
        case.tell("late")
        getattr(case.faults, how)(*{"freeze": ()}.get(how, (case.listing,)), *([3600.0] if how == "slow" else []))
        held = asyncio.create_task(case.alive())
        if how != "freeze":  # with gRPC, what is frozen does not count the call
            await case.fake.until(lambda: case.fake.requests[case.listing])
        async with asyncio.timeout(PATIENCE):
            await case.fake.__aexit__(None, None, None)
        for lost in (held, anext(events)):
            with pytest.raises(REFUSED):
                await lost
    await case.control.aclose()
    assert {task for task in asyncio.all_tasks() if "grpc" not in repr(task)} <= before


@pytest.mark.parametrize("make", [FakeDocker, FakeContainerd, FakeCRI])
@pytest.mark.parametrize("what", ["file", "folder", "link to a file", "link to a folder", "link to nothing"])
async def test_fake_replaces_nothing_but_a_socket(make: Any, what: str, tmp_path: Path) -> None:
    path, other = tmp_path / "engine.sock", tmp_path / "other"
    place = other if "link" in what else path
    if "file" in what:
        place.write_text("precious")
    elif "folder" in what:
        place.mkdir()
    if "link" in what:
        path.symlink_to(other)
    with pytest.raises(
        FileExistsError, match="is no socket, so a fake engine does not replace it: remove it, or choose"
    ):
        await make(path).__aenter__()
    assert path.is_symlink() is ("link" in what)
    assert place.exists() is (what != "link to nothing")
    assert "file" not in what or path.read_text() == "precious"


@pytest.mark.parametrize("make", [FakeDocker, FakeContainerd, FakeCRI])
async def test_fake_replaces_a_socket_and_removes_its_own_only(make: Any, tmp_path: Path) -> None:
    path = tmp_path / "engine.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with make(path):
        assert path.is_socket()
    assert not path.exists()
    async with make(path):
        path.unlink()
        path.write_text("precious")
    assert path.read_text() == "precious"
