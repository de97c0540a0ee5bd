"""Following a CRI engine by its pod events or by polling, whatever the engine says; the source is chosen to fit it."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.support.checker import Checked
from tests.support.followed import eventually
from tests.support.outage import lost
from whalewatch import (
    AddressError,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    Origin,
    ProtocolViolation,
    Retry,
    UnsupportedEngine,
    WatchState,
    cri,
)
from whalewatch._wire import containerd_pb2
from whalewatch._wire import cri_pb2 as wire
from whalewatch.cri import native, pod_events, polling
from whalewatch.cri.records import Records
from whalewatch.testing import FakeContainerd, FakeCRI

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from whalewatch import Container, Watcher

PATIENCE = 10.0
"""Seconds after which something that should have come is missing."""

BACKLOG = 1000
"""Events that an engine keeps for the first who asks for them."""

QUICK: dict[str, Any] = {"poll": 0.05, "retry": Retry(stable_after=0)}


@asynccontextmanager
async def following(engine: FakeCRI, **options: Any) -> AsyncIterator[Checked]:
    """Watch under supervision, and be in sync."""
    async with cri.watch(engine.address, **QUICK | options) as watcher:
        check = Checked(watcher)
        reader = asyncio.create_task(check.read())
        try:
            await watcher.ready(PATIENCE)
            yield check
        finally:
            reader.cancel()
            await asyncio.wait({reader})
        if not reader.cancelled():
            reader.result()


@asynccontextmanager
async def connected(engine: FakeCRI, source: Any = None, **options: Any) -> AsyncIterator[cri.CRIEngine]:
    """Connect without a watcher."""
    adapter = cri.CRIEngine(engine.address, source=source, **options)
    await adapter.connect()
    try:
        yield adapter
    finally:
        await adapter.close()


@pytest.fixture
async def engine() -> AsyncIterator[FakeCRI]:
    async with FakeCRI() as running:
        yield running


@pytest.fixture
async def containerd() -> AsyncIterator[Containerd]:
    async with Containerd() as running:
        yield running


def bare(engine: FakeCRI) -> str:
    """Run a pod whose sandbox has no process, so that it is not in the picture; return its id."""
    return engine.run_pod("bare", infra=False)


def asked(engine: FakeCRI, *kinds: str) -> int:
    """How often these calls were made."""
    return sum(engine.requests[kind] for kind in kinds)


async def outages(watcher: Watcher, count: int, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Wait until the engine was lost so often, and do something again and again before."""

    def lost() -> bool:
        if watcher.stats.outages < count:
            meanwhile()
        return watcher.stats.outages == count

    await eventually(lost)


def story(check: Checked) -> list[tuple[str, str]]:
    return [(e.type.value, e.container.id) for e in check.fold.events]


# ---- the choice of the source


@pytest.mark.parametrize(
    ("runtime", "events", "source"),
    [
        ("cri-o", "broadcast", "pod-events"),
        ("cri-o", "ended", "poll"),
        ("cri-o", "unimplemented", "poll"),
        ("cri-dockerd", "UNKNOWN", "poll"),
        ("cri-o", "PERMISSION_DENIED", "poll"),
        ("cri-o", "UNAUTHENTICATED", "poll"),
        # Without its own API; from its pod events the kubelet would miss what we take.
        ("containerd", "broadcast", "poll"),
    ],
)
async def test_source_is_chosen_to_fit_the_engine(
    runtime: str, events: Any, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "whalewatch")
    refused = events.isupper()
    async with FakeCRI(runtime=runtime, pod_events="broadcast" if refused else events) as engine:
        if refused:
            engine.faults.fail("events", events, "not implemented")
        pod = engine.run_pod("shop")
        async with following(engine) as check:
            assert check.watcher.status.source == source
            c1 = engine.run(pod, "web")
            await check.until(lambda: ("started", c1) in story(check))
            assert check.watcher.stats.outages == 0
            assert check.watcher.status.state is WatchState.SYNCED
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    told = [r for r in caplog.records if "listing every" in r.getMessage()]
    assert [r.levelno for r in told] == ([logging.INFO] if source == "poll" else [])


async def test_missing_pod_events_are_told_once_and_looked_for_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "whalewatch.cri")
    async with FakeCRI(pod_events="ended") as engine, connected(engine) as adapter:
        for events in ("ended", "unimplemented", "ended"):  # whatever the engine says about it
            engine._state.events.mode = events
            await adapter.connect()
            assert adapter.source == "poll"
        assert len(caplog.records) == 1
        engine._state.events.mode = "broadcast"
        await adapter.connect()
        assert adapter.source == "pod-events"


async def test_stream_that_keeps_ending_late_without_an_event_is_given_up_for_polling(engine: FakeCRI) -> None:
    async with following(engine) as check:
        watcher = check.watcher
        for _ in range(2):
            await engine.until(lambda: engine.subscribers)
            async for status in watcher.status_changes():
                if status.state is WatchState.SYNCED:
                    break
            engine.faults.end_streams()
            await engine.until(lambda: not engine.subscribers)
        async with asyncio.timeout(PATIENCE):
            async for status in watcher.status_changes():
                if status.state is WatchState.SYNCED and status.source == "poll":
                    break
        pod = engine.run_pod("shop")
        await check.until(lambda: story(check) == [("started", pod)])
        assert watcher.stats.outages == 2


async def test_connections_that_are_lost_do_not_speak_against_pod_events(engine: FakeCRI) -> None:
    adapter = cri.CRIEngine(engine.address)
    for _ in range(4):
        await adapter.connect()
        assert adapter.source == "pod-events"
        stream = adapter.signals()
        await anext(stream)
        await engine.faults.restart()
        with pytest.raises(EngineUnavailable):
            await anext(stream)
    await adapter.close()


@pytest.mark.parametrize("refusal", ["UNIMPLEMENTED", "UNKNOWN", "PERMISSION_DENIED"])
async def test_stream_that_keeps_being_refused_late_is_given_up_for_polling(
    engine: FakeCRI, refusal: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "whalewatch.cri")
    monkeypatch.setattr(pod_events, "PROBE_TIMEOUT", 0.0)  # no engine is as fast as that
    late = engine.faults.pause_at("events")
    engine.faults.fail("events", refusal)
    async with following(engine) as check:
        watcher = check.watcher
        for lost in (1, 2):
            await eventually(lambda: watcher.status.state is WatchState.SYNCED)
            assert watcher.status.source == "pod-events"
            await outages(watcher, lost, lambda: late.step(late.held))
        await watcher.portfolio.in_sync(PATIENCE)
        assert watcher.status.source == "poll"
        pod = engine.run_pod("shop")
        await check.until(lambda: story(check) == [("started", pod)])
        assert watcher.stats.outages == 2
        late.undo()
    assert len([r for r in caplog.records if "listing every" in r.getMessage()]) == 1


async def test_end_of_two_streams_that_overlap_speaks_once_against_pod_events(engine: FakeCRI) -> None:
    adapter = cri.CRIEngine(engine.address)
    for source in ("pod-events", "pod-events", "poll", "pod-events"):  # which have another chance
        await adapter.connect()
        assert adapter.source == source
        if source == "poll":
            continue
        streams = [adapter.signals(), adapter.signals()]
        for stream in streams:
            await anext(stream)
        await eventually(lambda: engine.subscribers == 2)
        engine.faults.end_streams()
        for stream in streams:
            assert await anext(stream, None) is None
    await adapter.close()


async def test_restarts_of_an_engine_that_is_idle_do_not_speak_against_its_pod_events(
    engine: FakeCRI,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("whalewatch.cri.engine.STABLE_AFTER", 0.0)
    async with following(engine) as check:
        watcher = check.watcher
        for restarts in range(1, 5):
            await eventually(lambda: engine.subscribers == 1)
            await watcher.portfolio.in_sync(PATIENCE)
            engine.faults.end_streams()
            await outages(watcher, restarts)
        await watcher.portfolio.in_sync(PATIENCE)
        assert watcher.status.source == "pod-events"


@pytest.mark.parametrize("refusal", ["UNIMPLEMENTED", "PERMISSION_DENIED", "UNAUTHENTICATED"])
async def test_containerd_that_lets_nobody_but_the_cri_through_is_polled(containerd: Containerd, refusal: str) -> None:
    containerd.native.faults.fail("server", refusal)
    async with following(containerd) as check:
        assert check.watcher.status.source == "poll"
        assert {c.id for c in check.watcher.portfolio.snapshot()} == {containerd.pod, containerd.web}
    adapter = cri.CRIEngine(containerd.address, source="native")
    with pytest.raises(UnsupportedEngine, match="needs containerd's own API"):
        await adapter.connect()
    await adapter.close()


@pytest.mark.parametrize(
    ("events", "fault", "source", "error", "why"),
    [
        ("broadcast", (), "native", UnsupportedEngine, "needs containerd's own API"),
        ("ended", (), "pod-events", UnsupportedEngine, "ends at once"),
        ("unimplemented", (), "pod-events", UnsupportedEngine, "does not know this call"),
        ("broadcast", ("version", "UNAVAILABLE"), None, EngineUnavailable, "told to fail"),
        ("broadcast", ("events", "UNAVAILABLE"), None, EngineUnavailable, "told to fail"),
        (
            "broadcast",
            ("version", "UNIMPLEMENTED"),
            None,
            UnsupportedEngine,
            r"the CRI \(runtime.v1\).*disabled_plugins",
        ),
    ],
)
async def test_engine_that_cannot_be_followed_so_is_refused_with_a_reason(
    events: Any, fault: tuple[str, str], source: Any, error: type[EngineError], why: str
) -> None:
    async with FakeCRI(pod_events=events) as engine:
        if fault:
            engine.faults.fail(*fault)
        adapter = cri.CRIEngine(engine.address, source=source)
        with pytest.raises(error, match=why):
            await adapter.connect()
        assert adapter.source == (source or "")
        await adapter.close()
        engine.faults.clear()
        async with following(engine, source="poll") as check:
            assert check.watcher.status.source == "poll"


def test_addresses_and_options_that_make_no_sense_are_refused() -> None:
    for nothing in ((), (None,), ("",)):
        with pytest.raises(AddressError, match=r"no default.*/run/containerd/containerd.sock.*/run/crio/crio.sock"):
            cri.watch(*nothing)
    with pytest.raises(ValueError, match="native, pod-events, poll"):
        cri.watch("/run/x.sock", source="events")  # type: ignore[arg-type]
    for poll in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="poll must be positive"):
            cri.watch("/run/x.sock", poll=poll)


async def test_engine_tells_of_itself() -> None:
    async with FakeCRI(version="v1.28.4") as engine:
        adapter = cri.CRIEngine(engine.address)
        assert (adapter.source, adapter.pid, adapter.runtime, adapter.client) == ("", None, None, None)
        assert (await adapter.version(), await adapter.id()) == ("1.28.4", "cri-o")
        assert adapter.runtime == "cri-o"
        with pytest.raises(EngineUnavailable, match="not connected"):
            await adapter.listing()
        with pytest.raises(EngineUnavailable, match="not connected"):
            await adapter.ping()
        await adapter.close()


# ---- what both sources have in common


BOTH = pytest.mark.parametrize("source", ["pod-events", "poll"])

EACH = pytest.mark.parametrize("source", ["native", "pod-events", "poll"])


@BOTH
async def test_one_status_is_asked_of_each_that_runs_which_the_application_may_pack(
    engine: FakeCRI, source: str
) -> None:
    def pack(container: Container, inspection: cri.Inspection) -> tuple[str, int]:
        return (inspection.sandbox_id, inspection.info["pid"])

    pod = engine.run_pod("shop")
    ids = [engine.run(pod, f"c{number}") for number in range(5)]
    engine.exit(ids[4])
    async with following(engine, source=source, poll=60, pack=pack) as check:
        await engine.until(lambda: asked(engine, "container_list", "pod_list") == 4)  # and again to confirm
        packed = {c.id: c.rucksack for c in check.watcher.portfolio.snapshot()}
        assert packed == {pod: ("", 5001)} | {id: (pod, 5002 + number) for number, id in enumerate(ids[:4])}
        assert (engine.requests["container_status"], engine.requests["pod_status"]) == (4, 1)


@pytest.mark.slow
@BOTH
async def test_audits_find_nothing_new_and_ask_for_no_status(engine: FakeCRI, source: str) -> None:
    pod = engine.run_pod("shop")
    engine.run(pod, "c1")
    async with following(engine, source=source, audit=0.1) as check:
        before = asked(engine, "container_status", "pod_status")
        c2 = engine.run(pod, "c2")
        await engine.until(lambda: engine.requests["container_list"] > 8)
        engine.exit(c2)
        await check.until(lambda: ("exited", c2) in story(check))
        await engine.until(lambda: engine.requests["container_list"] > 16)
        assert check.watcher.stats.drift == 0
        assert asked(engine, "container_status", "pod_status") == before + 1


INFOS = [
    *(None, b"{}", b"[]", b"no JSON", b'{"pid": 0}', b'{"pid": "7"}', b'{"pid": -7}', b"\xff"),
    *(b"[" * 10_000, b"1" * 10_000),
]
"""Verbose information that tells no PID."""


@BOTH
async def test_container_without_a_pid_is_alive_told_once_and_counted(
    engine: FakeCRI, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    pod = bare(engine)
    ids = [engine.run(pod, f"c{number}") for number in range(len(INFOS))]
    for id, info in zip(ids, INFOS, strict=True):
        engine.faults.tell_info(info, id)
    sound = engine.run(pod, "sound")
    async with following(engine, source=source) as check:
        alive = {c.id: c.pid for c in check.watcher.portfolio.snapshot()}
        assert alive == dict.fromkeys(ids) | {sound: engine.containers[sound].pid}
        adapter = check.watcher.engine
        assert isinstance(adapter, cri.CRIEngine)
        assert adapter.without_pid == len(INFOS)
        engine.exit(ids[0])
        await check.until(lambda: ("exited", ids[0]) in story(check))
    warned = [r.getMessage() for r in caplog.records if "no PID" in r.getMessage()]
    assert len(warned) == 1


@BOTH
async def test_pid_that_is_told_late_is_found_by_an_audit(engine: FakeCRI, source: str) -> None:
    c1 = engine.run(bare(engine), "c1")
    untold = engine.faults.tell_info(None, c1)
    async with following(engine, source=source, audit=0.1) as check:
        assert pids(check) == {c1: None}
        untold.undo()
        await check.until(lambda: story(check)[-1:] == [("updated", c1)])
        assert pids(check) == {c1: engine.containers[c1].pid}


@EACH
async def test_what_has_exited_is_forgotten(containerd: Containerd, source: str) -> None:
    async with connected(containerd, source) as adapter:
        signals = adapter.signals()
        await anext(signals)
        await adapter.listing()
        for id in (containerd.web, containerd.pod):
            assert await adapter.inspect(id) is not None
        containerd.native.exit(containerd.web, namespace=NAMESPACE)
        containerd.exit(containerd.web)
        async with asyncio.timeout(PATIENCE):
            signal = await anext(signals)
        assert (signal.type.value, signal.id) == ("exited", containerd.web)
        if source == "poll":
            containerd.remove(containerd.web)
            await adapter.listing()
        records = adapter._current_source._link.records  # type: ignore[attr-defined]
        assert [id for id, entry in records.entries() if entry.record or entry.read] == [containerd.pod]
        await signals.aclose()  # type: ignore[attr-defined]


@BOTH
async def test_sandbox_without_a_pid_is_not_in_the_picture(
    engine: FakeCRI, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    pods = [engine.run_pod("shop", uid=f"u{number}") for number in range(len(INFOS))]
    for id, info in zip(pods, INFOS, strict=True):
        engine.faults.tell_info(info, id)
    c1 = engine.run(pods[1], "web")
    async with following(engine, source=source) as check:
        assert [c.id for c in check.watcher.portfolio.snapshot()] == [c1]
        pod = await check.watcher.portfolio.pod("u1")
        assert pod is not None
        assert (pod.sandbox, pod.name, pod.container_names) == (None, "shop", ("web",))
        assert check.watcher.stats.unresolved == 0
    assert not caplog.records


@pytest.mark.slow
@BOTH
async def test_container_in_an_unknown_state_keeps_what_is_known(engine: FakeCRI, source: str) -> None:
    pod = bare(engine)
    c1 = engine.run(pod, "c1")
    engine.faults.unknown(engine.run(pod, "never"))
    async with following(engine, source=source, audit=0.1) as check:
        unknown = engine.faults.unknown(c1)
        looks = engine.requests["container_list"]
        await engine.until(lambda: engine.requests["container_list"] > looks + 6)
        assert [c.id for c in check.watcher.portfolio.snapshot()] == [c1]
        assert check.watcher.stats.unresolved >= 1
        assert check.watcher.stats.outages == 0
        unknown.undo()
        engine.exit(c1, 1)
        await check.until(lambda: story(check)[-1:] == [("exited", c1)])


@BOTH
async def test_status_of_something_else_is_not_believed(engine: FakeCRI, source: str) -> None:
    other = wire.ListContainersResponse(containers=[wire.Container(id=b"other", state=wire.CONTAINER_RUNNING)])
    status = wire.ContainerStatusResponse(status=wire.ContainerStatus(id=b"other", state=wire.CONTAINER_RUNNING))
    c1 = engine.run(bare(engine), "")
    async with connected(engine, source) as adapter:
        engine.faults.garble("container_list", other.SerializeToString(), id="c2")
        assert await adapter.inspect("c2") is None, "there is none of that id"
        await adapter.listing()
        engine.faults.garble("container_status", status.SerializeToString(), id=c1)
        with pytest.raises(ProtocolViolation, match=f"asked about {c1}, it answers about 'other'"):
            await adapter.inspect(c1)


@BOTH
async def test_what_has_stopped_since_it_was_listed_is_gone_and_so_is_a_part_of_an_id(
    engine: FakeCRI, source: str
) -> None:
    pod = engine.run_pod("shop")
    c1 = engine.run(pod, "c1")
    async with connected(engine, source) as adapter:
        assert [await adapter.inspect(id) for id in (c1[:32], pod[:32], "nothing")] == [None] * 3
        assert (await adapter.listing()).containers.keys() == {pod, c1}
        engine.stop_pod(pod)
        engine.faults.tell_info('{"pid": 7}')  # as it was
        assert [await adapter.inspect(id) for id in (c1, pod)] == [None] * 2


@BOTH
async def test_container_that_cannot_be_read_is_unresolved_and_like_hostile_text_hides_nobody_else(
    engine: FakeCRI, source: str
) -> None:
    pod = engine.run_pod("shop")
    c1, c2 = engine.run(pod, "c1"), engine.run(pod, "c2", labels={b"\xff": b"\xfe\x1b[2J"})
    engine.faults.fail("container_status", "INTERNAL", id=c1)
    async with following(engine, source=source) as check:
        assert {c.id for c in check.watcher.portfolio.snapshot()} == {pod, c2}
        assert check.watcher.stats.unresolved == 1
        engine.faults.clear()
        await check.until(lambda: ("started", c1) in story(check))
        assert check.watcher.stats.unresolved == 0
        assert check.fold.alive[c2].labels["\ufffd"] == "\ufffd\x1b[2J"


@EACH
async def test_what_has_no_id_is_not_there(containerd: Containerd, source: str) -> None:
    running = wire.Container(state=wire.CONTAINER_RUNNING)
    task = containerd_pb2.Task(pid=7, status=containerd_pb2.RUNNING)
    containerd.faults.garble("container_list", wire.ListContainersResponse(containers=[running]).SerializeToString())
    containerd.faults.garble("pod_list", wire.ListPodSandboxResponse(items=[wire.PodSandbox()]).SerializeToString())
    containerd.native.faults.garble("task_list", containerd_pb2.ListTasksResponse(tasks=[task]).SerializeToString())
    async with connected(containerd, source) as adapter:
        assert (await adapter.listing()).containers == {}


@EACH
@pytest.mark.parametrize("kind", ["container_list", "pod_list"])
async def test_listing_that_is_refused_is_never_an_empty_one(containerd: Containerd, kind: str, source: str) -> None:
    async with connected(containerd, source) as adapter:
        containerd.faults.fail(kind, "NOT_FOUND")
        with pytest.raises(EngineError, match="not found"):
            await adapter.listing()


@BOTH
async def test_new_connection_reads_everything_anew(engine: FakeCRI, source: str) -> None:
    c1 = engine.run(bare(engine), "c1")
    adapter = cri.CRIEngine(engine.address, source=source)  # type: ignore[arg-type]
    for pid in (engine.containers[c1].pid, 6000):
        await adapter.connect()
        assert (await adapter.listing()).containers[c1].container is None
        found = await adapter.inspect(c1)
        assert found is not None
        assert found.pid == pid
        assert (await adapter.listing()).containers[c1].container == found
        engine.faults.tell_info(b'{"pid": 6000}', c1)
    await adapter.close()


# ---- pod events


async def test_backlog_costs_nothing_and_changes_nothing(engine: FakeCRI) -> None:
    with engine.faults.silently():
        c1 = engine.run(bare(engine), "c1")
    for number in range(BACKLOG - 1):
        engine.tell("STARTED", f"old{number}", timestamp=10**9 + number)
    engine.tell("STOPPED", c1, timestamp=10**9)
    async with following(engine, source=None) as check:
        assert [c.id for c in check.watcher.portfolio.snapshot()] == [c1]
        assert engine.requests["container_status"] == 1


async def test_backlog_of_a_stream_that_was_not_tried_out_is_stale_too() -> None:
    """On containerd the first stream is the one that is followed."""
    async with FakeCRI(runtime="containerd", version="2.1.0") as engine:
        with engine.faults.silently():
            pod = bare(engine)
            c1 = engine.run(pod, "c1")
        for number in range(300):
            engine.tell("STARTED", f"old{number}", timestamp=10**9 + number)
        async with following(engine, source="pod-events") as check:
            c2 = engine.run(pod, "c2")
            await check.until(lambda: ("started", c2) in story(check))
            assert check.watcher.stats.signals == 1
            assert engine.requests["container_status"] == 2
            assert check.watcher.stats.calls.get("container", 0) <= 1, "nobody asks for what was before"
            assert check.types(c1) == []


async def test_events_that_look_old_because_the_clock_was_set_back_are_heeded(engine: FakeCRI) -> None:
    async with following(engine) as check:
        c1 = engine.run(bare(engine), "c1")
        await check.until(lambda: ("started", c1) in story(check))
        with engine.faults.silently():
            engine.exit(c1)
        engine.tell("STOPPED", c1, timestamp=10**9)
        await check.until(lambda: story(check)[-1:] == [("exited", c1)])


async def test_what_looks_old_long_after_the_beginning_is_no_backlog(
    engine: FakeCRI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_events, "BACKLOG_TIMEOUT", -1.0)
    c1 = engine.run(bare(engine), "c1")
    async with following(engine, audit=None) as check:
        await engine.until(lambda: engine.requests["pod_list"] == 2)  # all is confirmed
        with engine.faults.silently():
            engine.exit(c1)
        engine.tell("STOPPED", c1, timestamp=10**9)
        await check.until(lambda: story(check)[-1:] == [("exited", c1)])
        assert check.fold.events[-1].origin is Origin.ENGINE


async def test_garbage_on_the_stream_is_told_once_and_repaired(
    engine: FakeCRI, caplog: pytest.LogCaptureFixture
) -> None:
    async with following(engine) as check:
        for garbage in (b"\xff\xff", b"", b"\x0a\x05ab"):
            engine.publish(garbage)
        pod = bare(engine)
        c1 = engine.run(pod, "c1")
        await check.until(lambda: ("started", c1) in story(check))
        assert check.watcher.stats.lost == 3
        assert check.watcher.stats.outages == 0
        with engine.faults.silently():
            c2 = engine.run(pod, "c2")
        engine.publish(b"\xff\xff\xff")
        await check.until(lambda: ("started", c2) in story(check))
        assert check.watcher.stats.drift == 1
    assert len([r for r in caplog.records if "makes no sense" in r.getMessage()]) == 1


async def test_event_told_twice_costs_one_inspect(engine: FakeCRI) -> None:
    async with following(engine) as check:
        pod = bare(engine)
        c1 = engine.run(pod, "c1")
        await check.until(lambda: ("started", c1) in story(check))
        with engine.faults.silently():
            c2 = engine.run(pod, "c2")
        now = time.time_ns()
        engine.tell("STARTED", c2, timestamp=now)
        await check.until(lambda: ("started", c2) in story(check))
        engine.tell("STARTED", c2, timestamp=now)
        marker = engine.run(pod, "marker")
        await check.until(lambda: ("started", marker) in story(check))
        assert engine.requests["container_status"] == 3


async def test_deletion_stands_in_for_a_stop_that_is_lost_and_a_late_one_tells_its_exit_code(engine: FakeCRI) -> None:
    pod = bare(engine)
    c1, c2 = engine.run(pod, "c1"), engine.run(pod, "c2")
    async with following(engine, audit=None) as check:
        await engine.until(lambda: engine.requests["pod_list"] == 2)  # all is confirmed
        with engine.faults.drop(lambda event: event.type == "STOPPED"):
            engine.remove(c1)
        await check.until(lambda: story(check)[-1:] == [("exited", c1)])
        assert check.fold.events[-1].origin is Origin.ENGINE
        with engine.faults.reorder(2):
            engine.exit(c2, 5)
            engine.remove(c2)
        await check.until(lambda: story(check)[-1:] == [("exited", c2)])
        assert check.fold.events[-1].exit_code == 5


async def test_start_of_a_sandbox_is_read_as_such(engine: FakeCRI) -> None:
    async with following(engine) as check:
        pod = engine.run_pod("shop")
        await check.until(lambda: story(check) == [("started", pod)])
        calls = check.watcher.stats.calls
        assert (calls.get("container", 0), calls["sandbox"], calls["sandbox-status"]) == (0, 1, 1)


async def test_engine_that_serves_its_events_once_is_read_by_one_stream_only(caplog: pytest.LogCaptureFixture) -> None:
    """A containerd 1.7 notices that a reader has gone when it has lost an event to it."""
    engine = FakeCRI(runtime="containerd", version="1.7.24", pod_events="shared")
    async with engine, following(engine, source="pod-events", audit=0.1) as check:
        await engine.until(lambda: engine.requests["container_list"] > 6)
        pod = bare(engine)
        for number in range(5):
            id = engine.run(pod, f"c{number}")
            await check.until(lambda started=("started", id): started in story(check))  # type: ignore[misc]
        assert check.watcher.stats.audits > 3
        assert check.watcher.stats.drift == 0
        assert engine.requests["events"] == 1
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warned) == 1
    assert "takes events from a kubelet" in warned[0]


async def test_engine_that_says_in_its_own_way_that_there_is_no_such_container_is_understood(engine: FakeCRI) -> None:
    c1 = engine.run(bare(engine), "c1")
    async with connected(engine) as adapter:
        await adapter.listing()
        engine.faults.fail("container_status", "UNKNOWN", "as told")
        with pytest.raises(EngineError, match="as told"):
            await adapter.inspect(c1)
        engine.remove(c1)
        assert await adapter.inspect(c1) is None


# ---- containerd's own events


NAMESPACE = "k8s.io"


class Containerd(FakeCRI):
    """A containerd with its CRI, which runs one pod with one container: two fakes at the socket of one of them.

    Attributes:
        native: the containerd, where the tasks are; what the CRI says of them is apart from that.
        pod, web: the ids of the sandbox and the container.
        pids: their PIDs.
    """

    def __init__(self) -> None:
        super().__init__(runtime="containerd", version="1.7.24", pod_events="shared")
        self.native = FakeContainerd()
        self._server._service = _Either(self._server._service, self.native._server._service)
        self.pod = self.run_pod("shop", "prod", uid="u1")
        self.web = self.run(self.pod, "web")
        self.pids = {self.pod: self.task(self.pod, "sandbox"), self.web: self.task(self.web)}

    def task(self, id: str, kind: str = "container") -> int:
        """Run a task, of what is to the CRI a "container", a "sandbox", or "" for none of its own; return its PID."""
        return self.native.run(id, NAMESPACE, labels={"io.cri-containerd.kind": kind} if kind else {})

    def task_of_late_pod(self, uid: str) -> tuple[str, Callable[[], object]]:
        """Run the task of a sandbox that the CRI does not know before the second value is called."""
        id = self.run_pod("late", uid=uid)
        pod = self._state.pods.pop(id)
        self.task(id, "sandbox")
        return id, lambda: self._state.pods.update({id: pod})


class _Either(grpc.GenericRpcHandler):
    def __init__(self, *services: grpc.GenericRpcHandler) -> None:
        self._services = services

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        found = (service.service(handler_call_details) for service in self._services)
        return next((handler for handler in found if handler is not None), None)


def pids(check: Checked) -> dict[str, int | None]:
    return {container.id: container.pid for container in check.watcher.portfolio.snapshot()}


async def test_containerds_own_api_is_preferred_and_no_status_is_asked(containerd: Containerd) -> None:
    server = containerd_pb2.ServerResponse(uuid=b"uuid", pid=7)
    containerd.native.faults.garble("server", server.SerializeToString())
    async with following(containerd) as check:
        assert (check.watcher.status.source, pids(check)) == ("native", containerd.pids)
        adapter = check.watcher.engine
        assert (await adapter.id(), adapter.pid) == ("uuid", 7)
        c2 = containerd.run(containerd.pod, "c2")
        containerd.task(c2)
        await check.until(lambda: ("started", c2) in story(check))
        containerd.native.pause(c2, NAMESPACE)
        await check.until(lambda: ("paused", c2) in story(check))
        assert check.fold.alive[c2].paused
        containerd.native.exit(c2, 5, namespace=NAMESPACE)
        await check.until(lambda: ("exited", c2) in story(check))
        assert check.fold.events[-1].exit_code == 5
        assert asked(containerd, "container_status", "pod_status", "events") == 0
        assert (containerd.native.requests["task_list"], containerd.native.requests["task_get"]) == (2, 1)


@pytest.mark.parametrize("nonsense", [0, 2**31, 2**32 - 1])
async def test_task_without_a_pid_is_as_with_the_other_sources(
    containerd: Containerd, nonsense: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Its container is alive, which is told once and counted; a sandbox is not."""

    def task(id: str) -> containerd_pb2.Task:
        return containerd_pb2.Task(id=id.encode(), pid=nonsense, status=containerd_pb2.RUNNING)

    listed = containerd_pb2.ListTasksResponse(tasks=[task(containerd.pod), task(containerd.web)])
    containerd.native.faults.garble("task_list", listed.SerializeToString())
    read = containerd_pb2.GetTaskResponse(process=task(containerd.pod))
    containerd.native.faults.garble("task_get", read.SerializeToString(), id=containerd.pod)
    async with following(containerd) as check:
        assert pids(check) == {containerd.web: None}
        (pod,) = await check.watcher.portfolio.pods()
        assert (pod.sandbox, pod.container_names) == (None, ("web",))
        c2 = containerd.run(containerd.pod, "c2")
        read = containerd_pb2.GetTaskResponse(process=task(c2))
        containerd.native.faults.garble("task_get", read.SerializeToString(), id=c2)
        containerd.task(c2)
        await check.until(lambda: ("started", c2) in story(check))
        assert pids(check)[c2] is None
        adapter = check.watcher.engine
        assert isinstance(adapter, cri.CRIEngine)
        assert adapter.without_pid >= 2
    assert len([r for r in caplog.records if "no PID" in r.getMessage()]) == 1


async def test_state_that_the_cri_shows_does_not_decide_about_life(containerd: Containerd) -> None:
    """A shim tells of a start before the CRI notes it, and the CRI notes an exit only when it is told."""
    c1 = containerd.create(containerd.pod, "c1")
    alive = containerd.pids | {c1: containerd.task(c1)}
    dead = containerd.run(containerd.pod, "dead")
    containerd.task(dead)
    containerd.native.exit(dead, namespace=NAMESPACE)
    async with following(containerd) as check:
        assert pids(check) == alive
        c2 = containerd.create(containerd.pod, "c2")
        containerd.task(c2)
        await check.until(lambda: ("started", c2) in story(check))


async def test_sandbox_that_the_cri_learns_late_is_waited_for(containerd: Containerd) -> None:
    _, learn = containerd.task_of_late_pod("u2")  # found by the listing
    async with cri.watch(containerd.address, **QUICK) as watcher:
        await containerd.until(lambda: containerd.requests["pod_list"] >= 3)
        learn()
        await watcher.ready(PATIENCE)
        assert await watcher.portfolio.pod("u2") is not None
        s3, learn = containerd.task_of_late_pod("u3")  # told by an event
        before = containerd.requests["pod_list"]
        await containerd.until(lambda: containerd.requests["pod_list"] >= before + 2)
        learn()
        found = await watcher.portfolio.wait_for(s3, PATIENCE)
        assert found.pid == containerd.native.tasks[NAMESPACE, s3].pid


async def test_sandbox_that_the_cri_never_learns_is_unresolved(
    containerd: Containerd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "RECORD_DELAYS", (0.01,))
    containerd.task_of_late_pod("u2")
    async with following(containerd) as check:
        assert pids(check) == containerd.pids
        assert check.watcher.stats.unresolved == 1
        assert check.watcher.stats.outages == 0


async def test_containers_of_others_in_the_namespace_are_not_seen(containerd: Containerd) -> None:
    def envelope(namespace: bytes, topic: bytes, event: Any) -> bytes:
        told = containerd_pb2.Any(
            type_url=f"containerd.events.{type(event).DESCRIPTOR.name}".encode(), value=event.SerializeToString()
        )
        now = containerd_pb2.Timestamp(seconds=int(time.time()))
        return containerd_pb2.Envelope(timestamp=now, namespace=namespace, topic=topic, event=told).SerializeToString()

    containerd.task("foreign", "")
    async with following(containerd) as check:
        containerd.task("another", "")
        start = containerd_pb2.TaskStart(container_id=b"c9", pid=1)
        containerd.native.publish(envelope(b"moby", b"/tasks/start", start))
        web = containerd.web.encode()
        end = containerd_pb2.TaskExit(container_id=web, id=web, pid=containerd.pids[containerd.web])
        containerd.native.publish(envelope(b"moby", b"/tasks/exit", end))
        paused = containerd_pb2.TaskPaused(container_id=web)
        containerd.native.publish(envelope(NAMESPACE.encode(), b"/tasks/oom", paused))
        marker = containerd.run(containerd.pod, "marker")
        alive = containerd.pids | {marker: containerd.task(marker)}
        await check.until(lambda: ("started", marker) in story(check))
        assert pids(check) == alive
        assert check.watcher.stats.lost == check.watcher.stats.unresolved == 0


async def test_task_whose_shim_is_silent_keeps_what_is_known(containerd: Containerd) -> None:
    async with following(containerd, audit=0.1) as check:
        tasks = containerd.native._state.tasks
        containerd.native.faults.hang_shim(containerd.web, NAMESPACE, timeout=0)
        former = tasks.pop((NAMESPACE, containerd.pod))  # left out, as containerd 2 does
        containerd.native.faults.fail("task_get", "DEADLINE_EXCEEDED")
        looks = containerd.native.requests["task_list"]
        await containerd.native.until(lambda: containerd.native.requests["task_list"] > looks + 3)
        assert pids(check) == containerd.pids
        assert check.watcher.stats.unresolved == 2
        containerd.native.faults.clear()
        tasks[NAMESPACE, containerd.pod] = former
        containerd.native.exit(containerd.web, namespace=NAMESPACE)
        await check.until(lambda: ("exited", containerd.web) in story(check))
        assert pids(check) == {containerd.pod: containerd.pids[containerd.pod]}


async def test_task_of_which_a_silent_shim_leaves_the_state_unknown_is_not_taken_for_dead(
    containerd: Containerd,
) -> None:
    unknown = containerd_pb2.GetTaskResponse(process=containerd_pb2.Task(status=containerd_pb2.UNKNOWN))
    async with connected(containerd) as adapter:
        containerd.native.faults.garble("task_get", unknown.SerializeToString(), id=containerd.web)
        with pytest.raises(EngineTimeout, match=f"the shim of {containerd.web} does not answer"):
            await adapter.inspect(containerd.web)


async def test_task_that_is_left_out_of_the_listing_of_an_outage_is_not_taken_for_dead(containerd: Containerd) -> None:
    async with following(containerd) as check:
        tasks = containerd.native._state.tasks
        former = tasks.pop((NAMESPACE, containerd.pod))  # as containerd 2 does while a shim is silent
        containerd.native.faults.fail("task_get", "DEADLINE_EXCEEDED", id=containerd.pod)
        containerd.faults.cut_streams()
        await eventually(lambda: check.watcher.stats.syncs == 2)
        assert pids(check) == containerd.pids
        assert story(check) == [("started", containerd.pod), ("started", containerd.web)]
        containerd.native.faults.clear()
        tasks[NAMESPACE, containerd.pod] = former
        await eventually(lambda: check.watcher.stats.unresolved == 0)
        assert pids(check) == containerd.pids


async def test_garbage_among_the_events_of_containerd_is_repaired_once(containerd: Containerd) -> None:
    async with following(containerd) as check:
        for _ in range(2):
            containerd.native.publish(b"\xff\xff\xff")
        c1 = containerd.run(containerd.pod, "c1")
        containerd.task(c1)
        await check.until(lambda: ("started", c1) in story(check))
        assert check.watcher.stats.lost == 1
        assert check.watcher.stats.outages == 0


# ---- polling


async def test_poll_that_fails_or_hangs_while_other_calls_are_answered_is_an_outage(
    engine: FakeCRI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "POLL_TIMEOUT", 0.2)
    c1 = engine.run(bare(engine), "c1")
    async with following(engine, source="poll") as check:
        with engine.faults.fail("pod_list", "INTERNAL"):
            await lost(check.watcher, EngineError)
            engine.remove(c1)
        await check.until(lambda: story(check)[-1:] == [("exited", c1)])
        assert check.fold.events[-1].origin is Origin.RESYNC
        with engine.faults.hang("container_list"):
            await lost(check.watcher, EngineTimeout)
        await check.watcher.portfolio.in_sync(PATIENCE)


async def test_poll_that_fails_says_nothing_of_pod_events() -> None:
    async with FakeCRI(pod_events="ended") as engine:
        adapter = cri.CRIEngine(engine.address, poll=0.01)
        for _ in range(2):
            await adapter.connect()
            signals = adapter.signals()
            await anext(signals)
            with engine.faults.fail("pod_list", "INTERNAL"), pytest.raises(EngineError, match="INTERNAL"):
                await anext(signals)
            assert adapter._empty_streams == 0
        await adapter.close()


async def test_differences_are_told_once_a_change_of_what_runs_as_an_update(engine: FakeCRI) -> None:
    pod = bare(engine)
    async with following(engine, source="poll") as check:
        c1 = engine.run(pod, "c1")
        await check.until(lambda: ("started", c1) in story(check))
        labels = [wire.Entry(key=b"a", value=b"b")]
        changed = wire.Container(id=c1.encode(), state=wire.CONTAINER_RUNNING, labels=labels)
        listing = wire.ListContainersResponse(containers=[changed])
        with engine.faults.garble("container_list", listing.SerializeToString()):
            await check.until(lambda: story(check)[-1:] == [("updated", c1)])
            assert check.fold.alive[c1].labels["a"] == "b"
            engine.exit(c1)
        await check.until(lambda: ("exited", c1) in story(check))
        looks = engine.requests["pod_list"]
        await engine.until(lambda: engine.requests["pod_list"] > looks + 3)
        assert check.watcher.stats.signals == 3


async def test_container_of_a_pod_that_is_no_longer_listed_keeps_the_labels_of_its_pod(engine: FakeCRI) -> None:
    pod = engine.run_pod("shop", uid="u1")
    c1 = engine.run(pod, "c1")
    async with following(engine, source="poll") as check:
        engine.faults.garble("pod_list", b"")
        await check.until(lambda: ("exited", pod) in story(check))
        looks = engine.requests["pod_list"]
        await engine.until(lambda: engine.requests["pod_list"] > looks + 3)
        assert check.fold.alive[c1].labels["io.kubernetes.pod.uid"] == "u1"
        assert ("updated", c1) not in story(check)


async def test_looks_never_overlap() -> None:
    class Calls:
        under_way = 0

        async def containers(self) -> list[wire.Container]:
            assert not self.under_way
            self.under_way += 1
            await asyncio.sleep(0)
            return []

        async def sandboxes(self) -> list[wire.PodSandbox]:
            await asyncio.sleep(0)
            self.under_way -= 1
            return []

    records = Records(Calls())  # type: ignore[arg-type]
    await asyncio.gather(*(records.refresh() for _ in range(3)))


async def test_what_happens_between_the_first_listing_and_the_first_poll_is_told(engine: FakeCRI) -> None:
    pod = bare(engine)
    c1 = engine.run(pod, "c1")
    async with connected(engine, source="poll", poll=0.05) as adapter:
        signals = adapter.signals()
        assert (await anext(signals)).type.value == "subscribed"
        await adapter.listing()
        engine.exit(c1)
        c2 = engine.run(pod, "c2")
        async with asyncio.timeout(PATIENCE):
            told = {(s.type.value, s.id) for s in [await anext(signals), await anext(signals)]}
        assert told == {("exited", c1), ("started", c2)}
        await signals.aclose()  # type: ignore[attr-defined]


async def test_stream_that_takes_over_leaves_out_no_difference(engine: FakeCRI) -> None:
    pod = bare(engine)
    async with connected(engine, source="poll", poll=0.05) as adapter:
        former = adapter.signals()
        await anext(former)
        await adapter.listing()
        c1 = engine.run(pod, "c1")
        latter = adapter.signals()
        await anext(latter)
        await former.aclose()  # type: ignore[attr-defined]
        async with asyncio.timeout(PATIENCE):
            signal = await anext(latter)
        assert (signal.type.value, signal.id) == ("started", c1)
        await latter.aclose()  # type: ignore[attr-defined]
