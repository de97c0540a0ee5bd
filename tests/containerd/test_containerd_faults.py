"""What containerd does once in a thousand times: on the fake, by fault and by gate."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest

from tests.conftest import PATIENCE
from tests.support.containerd_checker import CheckedContainerd, checked
from tests.support.engines.containerd_control import ContainerdControl
from tests.support.followed import AT_ONCE, eventually, followed
from whalewatch import (
    AddressError,
    Dead,
    EngineError,
    EngineUnavailable,
    Origin,
    ProtocolViolation,
    SignalType,
    WatchState,
    containerd,
)
from whalewatch._adapter import times
from whalewatch._wire import containerd_pb2 as wire
from whalewatch.containerd import ContainerdEngine, watch
from whalewatch.containerd.reading import alive, container, filters, moment, signal, split
from whalewatch.testing import FakeContainerd

GARBAGE = b"\xff\xff\xff"

ODD_TIMES = (-(2**63), 0, 2**63 - 1)

ODD_TEXT = (
    *((namespace, b"nobody") for namespace in (b"\xff", b"a\nb", b"")),
    *((b"default", id) for id in (b"\xfe\x1b", b"a/b", b"x" * 20_000)),
)
"""Namespaces and ids of which at least one makes no sense."""


@pytest.fixture
async def fake() -> AsyncIterator[FakeContainerd]:
    async with FakeContainerd() as running:
        yield running


@pytest.fixture
async def engine(fake: FakeContainerd) -> AsyncIterator[ContainerdEngine]:
    made = ContainerdEngine(fake.address)
    await made.connect()
    yield made
    await made.close()


@asynccontextmanager
async def following(fake: FakeContainerd, **options: Any) -> AsyncIterator[CheckedContainerd]:
    """Watch under supervision, and be in sync."""
    async with ContainerdControl(fake.path) as control, checked(fake.address, control, **options) as check:
        yield check


def told(topic: bytes, event: Any, namespace: bytes = b"default", seconds: int = 0) -> bytes:
    """An event as it is sent."""
    envelope = wire.Envelope(topic=topic, namespace=namespace, timestamp=wire.Timestamp(seconds=seconds))
    envelope.event.type_url = f"containerd.events.{type(event).DESCRIPTOR.name}".encode()
    envelope.event.value = event.SerializeToString()
    return envelope.SerializeToString()


# ---- listings


async def test_namespace_that_fails_is_not_read_as_empty_and_one_that_vanishes_is(
    fake: FakeContainerd, engine: ContainerdEngine
) -> None:
    assert (await engine.listing()).containers == {}
    for namespace in ("default", "bad", "good"):
        fake.run("web", namespace)
    fake.namespace_create("moby")
    for kind in ("task_list", "container_list_stream"):
        with fake.faults.fail(kind, "INTERNAL", namespace="bad"):
            listing = await engine.listing()
        assert (set(listing.containers), set(listing.failed)) == ({"web", "good/web"}, {"bad"})
        assert "INTERNAL" in str(listing.failed["bad"])
        assert [listing.scope(id) for id in ("web", "bad/web")] == ["default", "bad"]
        assert not listing.absence_is_death
        with fake.faults.fail(kind, "NOT_FOUND", namespace="default"):
            listing = await engine.listing()
        assert (set(listing.containers), listing.failed) == ({"bad/web", "good/web"}, {})
    fake.namespace_create("late")
    with fake.faults.pause_after("namespace_list") as gate:
        listed = asyncio.create_task(engine.listing())
        await gate.reached()
        fake.namespace_delete("late")
    assert (len((await listed).containers), (await listed).failed) == (3, {})
    with fake.faults.fail("task_list", "INTERNAL"), pytest.raises(EngineError, match="INTERNAL"):
        await engine.listing()
    with fake.faults.fail("namespace_list", "UNAVAILABLE"), pytest.raises(EngineUnavailable, match="UNAVAILABLE"):
        await engine.listing()
    with fake.faults.garble("namespace_list", GARBAGE), pytest.raises(ProtocolViolation):
        await engine.listing()


@pytest.mark.slow
async def test_failing_namespace_keeps_its_last_known_containers_and_is_warned_about_once(
    fake: FakeContainerd, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings() -> int:
        return sum("cannot list 'bad'" in r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)

    fake.run("web", "bad")
    fake.run("web")
    async with following(fake, retry=AT_ONCE) as check:
        watcher = check.watcher
        with fake.faults.fail("task_list", "INTERNAL", namespace="bad"):
            for cuts in range(1, 4):
                fake.faults.cut_streams()
                await eventually(lambda: watcher.stats.syncs == cuts + 1)  # noqa: B023 - awaited at once
                assert {c.id for c in watcher.portfolio.snapshot()} == {"web", "bad/web"}
                assert watcher.stats.unresolved >= 1
            assert (watcher.stats.outages, warnings()) == (3, 1)
            fake.delete("web", "bad")  # its events are heard all the same
            await check.expect("bad/web", "exited")
        await eventually(lambda: watcher.stats.unresolved == 0 and watcher.status.state is WatchState.SYNCED)
        fake.run("web", "bad")
        await check.expect("bad/web", "exited", "started")
        with fake.faults.fail("task_list", "INTERNAL", namespace="bad"):
            fake.faults.cut_streams()
            await eventually(lambda: warnings() == 2)
        await eventually(lambda: watcher.stats.unresolved == 0 and watcher.status.state is WatchState.SYNCED)


@pytest.mark.slow
async def test_what_could_not_be_read_at_first_is_seen_later(fake: FakeContainerd) -> None:
    fake.run("web", "bad")
    fake.run("stuck")
    fake.run("web")
    fake.faults.fail("container_list_stream", "INTERNAL", namespace="bad")
    fake.faults.hang_shim("stuck", timeout=0.05)
    async with watch(fake.address) as watcher:
        await watcher.ready(PATIENCE)
        assert [c.id for c in watcher.portfolio.snapshot()] == ["web"]
        assert watcher.stats.unresolved == 2
        fake.faults.clear()
        for id in ("bad/web", "stuck"):
            found = await watcher.portfolio.wait_for(id, PATIENCE)
            assert found.pid is not None


@pytest.mark.parametrize("list_stream", [True, False])
async def test_streamed_listing_is_preferred_and_not_needed(list_stream: bool) -> None:
    async with FakeContainerd(list_stream=list_stream) as fake:
        for number in range(3):
            fake.run(f"web{number}", f"space{number}")
        async with watch(fake.address) as watcher:
            await watcher.ready(PATIENCE)
            assert len(watcher.portfolio.snapshot()) == 3
            plain = 0 if list_stream else 6
            await eventually(lambda: fake.requests["task_list"] == 6 and fake.requests["container_list"] >= plain)
        assert fake.requests["container_list"] == plain


@pytest.mark.slow
async def test_five_thousand_containers_with_large_specs_are_listed(fake: FakeContainerd) -> None:
    spec = json.dumps({"ociVersion": "1.0.2", "padding": "x" * 9000}).encode()
    for number in range(5000):
        fake.run(f"web-{number}", spec=spec)
    async with watch(fake.address, call_timeout=60) as watcher:
        await watcher.ready(90)
        assert len(watcher.portfolio.snapshot()) == 5000
        fake.exit("web-4711", 3)
        await watcher.portfolio.wait_gone("web-4711", PATIENCE)


async def test_namespaces_are_listed_at_the_same_time_within_a_bound(
    fake: FakeContainerd, engine: ContainerdEngine
) -> None:
    for number in range(12):
        fake.run("web", f"space{number}")
    gate = fake.faults.pause_at("task_list")
    listing = asyncio.create_task(engine.listing())
    async with asyncio.timeout(PATIENCE):
        await gate.reached(8)
        await engine.ping()
        assert gate.held == 8
        gate.release()
        assert len((await listing).containers) == 12


async def test_containers_beyond_what_is_kept_of_a_listing_are_inspected(
    fake: FakeContainerd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whalewatch._grpc.listings.MAX_KEPT", 1000)
    for number in range(3):
        fake.run(f"c{number}", labels={"a": "x" * 500})
    async with containerd.watch(fake.address, audit=None) as watcher:
        containers = await watcher.portfolio.containers()
        assert sorted(container.id for container in containers) == ["c0", "c1", "c2"]
        assert {container.labels["a"] for container in containers} == {"x" * 500}
        assert watcher.stats.calls["container"] >= 1


async def test_tasks_without_containers_and_containers_without_tasks_are_no_errors(
    fake: FakeContainerd, engine: ContainerdEngine
) -> None:
    fake.create("created")
    fake.run("bare")
    fake.container_delete("bare")
    fake.run("exited")
    fake.exit("exited", 7)
    fake.run("web")
    assert fake.tasks["default", "exited"].pid, "a stale PID stays"
    listing = await engine.listing()
    assert (set(listing.containers), dict(listing.failed)) == ({"web"}, {})
    web = listing.containers["web"].container
    assert web is not None
    created = times.moment(fake.containers["default", "created"].created_at)
    expected = attrs.evolve(web, id="created", name="created", pid=None, created_at=created)
    assert await engine.inspect("created") == Dead(expected)
    for id in ("bare", "none", "nowhere/web", "moby/web"):
        assert await engine.inspect(id) is None
    dead = await engine.inspect("exited")
    assert isinstance(dead, Dead)
    assert (dead.container.name, dead.exit_code, dead.oom) == ("exited", 7, None)
    assert (await engine.inspect("web")) == listing.containers["web"].container


async def test_text_that_is_not_utf8_hides_nothing(fake: FakeContainerd) -> None:
    hostile = {b"a\xff": b"\xfe\x1b[31m", b"nerdctl/name": b"w\xffb", b"com.docker.compose.project": b"\xc3("}
    fake.run("odd", labels=hostile, image=b"\xffimage")
    fake.run("plain")
    async with followed(watch(fake.address)) as follow:
        fake.run("late", labels=hostile)
        fake.update("plain", labels={b"\xff": b"\xff"})
        await follow.until_taken("late")
        await follow.until(lambda: follow.types("plain") == ["updated"])
        odd, late, plain = (follow.fold.alive[id] for id in ("odd", "late", "plain"))
        assert (odd.name, odd.project, odd.image) == ("w\ufffdb", "\ufffd(", "\ufffdimage")
        assert (odd.labels["a\ufffd"], late.name) == ("\ufffd\x1b[31m", "w\ufffdb")
        assert (dict(plain.labels), follow.stats.lost) == ({"\ufffd": "\ufffd"}, 0)


# ---- events


async def test_listing_begins_only_when_a_call_behind_the_subscription_was_answered(
    fake: FakeContainerd, engine: ContainerdEngine
) -> None:
    gate = fake.faults.pause_at("version")
    signals = engine.signals()
    first = asyncio.ensure_future(anext(signals))
    async with asyncio.timeout(PATIENCE):
        await gate.reached()
        await fake.until(lambda: fake.subscribers == 1)
        assert not first.done()
        gate.release()
        assert (await first).type is SignalType.SUBSCRIBED
    await signals.aclose()  # type: ignore[attr-defined]


async def test_what_happens_between_subscribing_and_listing_is_told(fake: FakeContainerd) -> None:
    for name in ("dies", "stays", "restarts"):
        fake.run(name)
    for gate_at in ("namespace_list", "task_list", "container_list_stream"):
        gate = fake.faults.pause_after(gate_at)
        async with followed(watch(fake.address), ready=False) as follow:
            await gate.reached()
            fake.exit("dies")
            fake.restart("restarts")
            fake.run("comes")
            gate.release()
            pids = {id: task.pid for (_, id), task in fake.tasks.items() if task.alive}
            assert pids.keys() == {"stays", "restarts", "comes"}
            await follow.until(lambda: {one.id: one.pid for one in follow.snapshot} == pids)  # noqa: B023 - awaited at once
            assert follow.stats.drift == 0
        fake.delete("comes")
        fake.start("dies")


async def test_what_a_late_subscription_missed_is_found_by_the_confirming_listing(fake: FakeContainerd) -> None:
    for name in ("dies", "restarts", "pauses", "relabelled"):
        fake.run(name)
    subscription = fake.faults.pause_at("subscribe")
    confirming = fake.faults.pause_at("namespace_list")
    async with followed(watch(fake.address), ready=False) as follow:
        await confirming.reached()
        confirming.step()
        await confirming.reached()  # the second listing: the first is done, and nobody is subscribed yet
        assert fake.subscribers == 0
        fake.exit("dies")
        fake.restart("restarts")
        fake.pause("pauses")
        fake.update("relabelled", labels={"a": "1"})
        fake.run("comes")
        subscription.release()
        await fake.until(lambda: fake.subscribers == 1)
        confirming.release()
        await follow.until(lambda: len(follow.news()) == 6)
        told = {id: follow.types(id) for id in ("dies", "pauses", "relabelled", "comes", "restarts")}
        changes = [["exited"], ["paused"], ["updated"], ["started"], ["exited", "started"]]
        assert [*told.values()] == changes
        assert ({event.origin for event in follow.news()}, follow.stats.drift) == ({Origin.RESYNC}, 5)


async def test_garbage_odd_text_and_odd_times_on_the_stream_are_counted_told_once_and_leave_nothing_behind(
    fake: FakeContainerd, caplog: pytest.LogCaptureFixture
) -> None:
    pid = fake.run("web")
    async with following(fake) as check:
        fake.tell("/tasks/unheard-of", "nonsense", GARBAGE)
        fake.publish(wire.Envelope(topic=b"/tasks/unheard-of").SerializeToString())
        for seconds in ODD_TIMES:
            start = wire.TaskStart(container_id=b"nobody", pid=4711)
            fake.publish(told(b"/tasks/start", start, seconds=seconds))
        fake.pause("web")
        await check.expect("web", "paused")
        assert check.watcher.stats.lost == 0
        fake.publish(GARBAGE)
        fake.tell("/tasks/exit", "containerd.events.TaskExit", GARBAGE)
        fake.tell("/tasks/exit", "containerd.events.TaskStart", b"")
        fake.tell("/tasks/exit", "containerd.events.TaskExit", b"")
        fake.tell("/tasks/start", "", b"")
        for namespace, id in ODD_TEXT:
            for seconds in ODD_TIMES:
                fake.publish(told(b"/tasks/start", wire.TaskStart(container_id=id, pid=4711), namespace, seconds))
        fake.exit("web", 3)
        _, exited = await check.expect("web", "paused", "exited")
        assert (exited.exit_code, exited.container.pid) == (3, pid)
        audits = check.watcher.stats.audits
        await eventually(lambda: check.watcher.stats.audits > audits)
        assert (check.watcher.stats.lost, check.watcher.stats.unresolved) == (5 + len(ODD_TEXT) * len(ODD_TIMES), 0)
    warned = [r for r in caplog.records if "makes no sense" in r.message and r.levelname == "WARNING"]
    assert len(warned) == 1
    assert warned[0].message.startswith(f"containerd engine at {fake.address}: ")


async def test_exit_that_tells_no_pid_is_not_believed(fake: FakeContainerd) -> None:
    fake.run("web")
    async with following(fake) as check:
        inspects = check.watcher.stats.calls.get("task", 0)
        fake.publish(told(b"/tasks/exit", wire.TaskExit(container_id=b"web", id=b"web"), seconds=int(time.time()) + 1))
        fake.run("marker")
        await check.expect("marker", "started")
        await eventually(lambda: check.watcher.stats.calls.get("task", 0) >= inspects + 2)
        assert check.types("web") == []


async def test_overlapping_streams_tell_each_event_once(fake: FakeContainerd) -> None:
    fake.run("web")
    async with following(fake, audit=0.1) as check:
        await eventually(lambda: check.stats.calls["introspection"] == 2)  # the first audit has asked for the version
        gate = fake.faults.pause_at("version")  # a new stream is open, and does not yet take over
        await gate.reached()
        await fake.until(lambda: fake.subscribers == 2)
        before = check.watcher.stats.signals
        fake.pause("web")
        await check.expect("web", "paused")
        fake.resume("web")
        await check.expect("web", "paused", "unpaused")
        gate.release()
        audits = check.watcher.stats.audits
        await eventually(lambda: check.watcher.stats.audits > audits + 1)
        await check.expect("web", "paused", "unpaused")
        assert check.watcher.stats.signals == before + 2


async def test_duplicated_and_late_events_do_no_harm(fake: FakeContainerd) -> None:
    async with following(fake) as check:
        with fake.faults.duplicate():
            fake.run("web")
            await check.expect("web", "started")
            fake.pause("web")
            fake.resume("web")
            await check.expect("web", "started", "paused", "unpaused")
        first = fake.tasks["default", "web"].pid
        fake.restart("web", 3)
        await check.expect("web", "started", "paused", "unpaused", "exited", "started")
        fake.tell_exit("web", first, 137, timestamp=1)  # from before a restart of containerd
        fake.tell_exit("web", first, 137)
        await eventually(lambda: check.watcher.stats.signals == 8)  # what was doubled was told once
        await check.settled()
        await check.expect("web", "started", "paused", "unpaused", "exited", "started")


@pytest.mark.parametrize(
    "lost", [{"/tasks/exit"}, {"/tasks/exit", "/tasks/delete"}, None], ids=["exit", "both", "late"]
)
async def test_exit_that_is_lost_or_late_is_made_up_for_by_the_deletion(
    fake: FakeContainerd, lost: set[str] | None
) -> None:
    fake.run("web")
    fake.run("other")
    async with following(fake) as check:
        # containerd tells the last of three, and the shim the others
        fault = fake.faults.reorder(3) if lost is None else fake.faults.drop(lambda event: event.topic in lost)
        with fault:
            fake.delete("web")
            (exited,) = await check.expect("web", "exited")
        assert exited.origin is Origin.ENGINE
        assert exited.exit_code == (None if lost and "/tasks/delete" in lost else 137)
        assert "task" not in check.watcher.stats.calls or lost


async def test_container_removed_beside_its_living_task_and_one_whose_shim_is_killed_are_gone(
    fake: FakeContainerd,
) -> None:
    for id, sandbox in {"web": "", "other": "", "pod": "", "early": "pod"}.items():
        fake.run(id, sandbox=sandbox)
    async with following(fake) as check:
        fake.run("late", sandbox="pod")
        await check.expect("late", "started")
        fake.container_delete("web")
        (exited,) = await check.expect("web", "exited")
        assert exited.exit_code is None
        fake.faults.kill_shim("other")
        await check.expect("other", "exited")
        with fake.faults.silently():  # of a sandbox, containerd 2.1 reports only its own exit
            for id in ("early", "late"):
                fake.faults.kill_shim(id)
        fake.faults.kill_shim("pod")
        await check.expect("early", "exited")
        await check.expect("late", "started", "exited")


async def test_something_that_is_no_containerd_is_told(fake: FakeContainerd) -> None:
    with fake.faults.fail("version", "UNIMPLEMENTED", "unknown service"):
        async with watch(fake.address, retry=None) as watcher:
            with pytest.raises(ProtocolViolation, match="is it of another kind"):
                await watcher.ready(PATIENCE)


def test_addresses_and_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(
        AddressError, match=r"containerd engine: use unix, as in unix:///run/containerd/containerd\.sock"
    ):
        watch("tcp://host:1")
    with pytest.raises(ValueError, match="collection of namespaces"):
        watch(ignore="moby")
    assert watch().engine.address == "unix:///run/containerd/containerd.sock"
    assert watch("/run/x.sock").engine.address == "unix:///run/x.sock"


# ---- reading


def test_state_of_a_task_decides_whether_it_is_alive() -> None:
    states = {"UNKNOWN": None, "CREATED": False, "RUNNING": True, "STOPPED": False, "PAUSED": True, "PAUSING": True}
    tasks = {name: wire.Task(pid=1, status=wire.Status.Value(name)) for name in states}  # type: ignore[arg-type]
    assert {name: alive(task) for name, task in tasks.items()} == states
    assert alive(wire.Task.FromString(wire.Task(pid=1).SerializeToString() + b"\x20\x63")) is False  # not known yet
    found = wire.Container(id=b"web")
    paused = {name: container("default", found, task, "").paused for name, task in tasks.items()}
    assert paused == dict.fromkeys(states, False) | {"PAUSED": True}


def test_ids_and_filters_tell_namespaces_apart() -> None:
    assert (split("web"), split("other/web")) == (("default", "web"), ("other", "web"))
    assert 'topic=="/tasks/exit"' in filters([])
    assert filters(["moby", 'a"b'])[0] == r'topic=="/tasks/start",namespace!="a\"b",namespace!="moby"'


def test_deletion_of_an_executed_process_is_no_exit() -> None:
    def read(id: bytes) -> Any:
        event = wire.TaskDelete(container_id=b"web", pid=7, exit_status=3, id=id)
        return signal(told(b"/tasks/delete", event), "")

    assert read(b"probe") is None
    for id in (b"", b"web"):
        exited = read(id)
        assert (exited.type, exited.id, exited.pid, exited.exit_code) == (SignalType.EXITED, "web", 7, 3)
    assert read(b"").timestamp is None


def test_times_are_read_to_the_microsecond() -> None:
    read = moment(wire.Timestamp(seconds=1767323045, nanos=6999))
    assert read is not None
    assert read.isoformat() == "2026-01-02T03:04:05.000006+00:00"
    assert moment(wire.Timestamp(seconds=-62135596800)) is moment(wire.Timestamp(seconds=2**60)) is None


async def test_watchers_that_are_kept_keep_no_socket(fake: FakeContainerd) -> None:
    def sockets() -> int:
        with socket.socket() as probe:
            return probe.fileno()  # the lowest number that is free

    async with watch(fake.address) as first:
        await first.ready(PATIENCE)  # what gRPC makes once for all is there now
    kept, before = [], sockets()
    gc.disable()
    try:
        for _ in range(8):
            async with watch(fake.address) as watcher:
                await watcher.ready(PATIENCE)
            kept.append(watcher)
        await eventually(lambda: sockets() < before + 4)
    finally:
        gc.enable()
    assert all(watcher.status.state is WatchState.CLOSED for watcher in kept)


@pytest.mark.slow
async def test_many_namespaces_that_hang_hide_nobody_else_and_take_no_longer_than_one(
    fake: FakeContainerd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whalewatch.containerd.namespaces.LISTING_TIMEOUT", 3.0)
    fake.run("job", "hung-shims")
    fake.faults.hang("task_list", "hung-shims")
    for number in range(20):
        fake.run("job", f"batch{number}")
        fake.faults.hang("container_list_stream", f"batch{number}")
    fake.run("web")  # listed last
    async with watch(fake.address, heartbeat=2.0, call_timeout=2.0) as watcher:
        await watcher.ready(PATIENCE)
        assert {c.id for c in await watcher.portfolio.containers()} == {"web", "hung-shims/job"}
        assert watcher.stats.unresolved == 20
        assert watcher.stats.outages == 0
