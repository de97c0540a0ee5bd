"""Following a CRI engine by its pod events or by polling, whatever the engine says; the source is chosen to fit it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.checker import Checked
from tests.scripted_cri import Events, ScriptedCRI
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
from whalewatch._cri import native, polling
from whalewatch._wire import containerd_pb2
from whalewatch._wire import cri_pb2 as wire
from whalewatch.testing import FakeCRI

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from whalewatch import Container

PATIENCE = 10.0
"""Seconds after which something that should have come is missing."""

QUICK: dict[str, Any] = {"poll": 0.05, "retry": Retry(stable_after=0)}


@asynccontextmanager
async def following(engine: ScriptedCRI, **options: Any) -> AsyncIterator[Checked]:
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


def story(check: Checked) -> list[tuple[str, str]]:
    return [(e.type.value, e.container.id) for e in check.fold.events]


# ---- the choice of the source


@pytest.mark.parametrize(
    ("runtime", "events", "source"),
    [
        ("cri-o", "served", "pod-events"),
        ("cri-o", "end", "poll"),
        ("cri-o", "unimplemented", "poll"),
        ("cri-dockerd", "unknown", "poll"),
        # Without its own API; from its pod events the kubelet would miss what we take.
        ("containerd", "served", "poll"),
    ],
)
async def test_source_is_chosen_to_fit_the_engine(
    runtime: str, events: Events, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "whalewatch")
    async with ScriptedCRI(runtime=runtime, events=events) as engine:
        engine.run_pod("s1")
        async with following(engine) as check:
            assert check.watcher.status.source == source
            engine.run("c1")
            await check.until(lambda: ("started", "c1") in story(check))
            assert check.watcher.stats.outages == 0
            assert check.watcher.status.state is WatchState.SYNCED
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    told = [r for r in caplog.records if "listing every" in r.getMessage()]
    assert [r.levelno for r in told] == ([logging.INFO] if source == "poll" and runtime != "containerd" else [])


async def test_missing_pod_events_are_told_once_and_never_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "whalewatch.cri")
    async with ScriptedCRI(events="end") as engine:
        watcher = cri.watch(engine.address, **QUICK)
        for _ in range(3):
            await watcher.engine.connect()
            assert watcher.engine.source == "poll"
        await watcher.engine.close()
    assert len(caplog.records) == 1


async def test_engine_that_learns_pod_events_is_followed_by_them_after_it_comes_back() -> None:
    async with ScriptedCRI(events="end") as engine:
        adapter = cri.CRIEngine(engine.address)
        await adapter.connect()
        assert adapter.source == "poll"
        engine.events = "served"
        await adapter.connect()
        assert adapter.source == "pod-events"
        await adapter.close()


async def test_stream_that_keeps_ending_late_without_an_event_is_given_up_for_polling() -> None:
    async with ScriptedCRI() as engine, following(engine) as check:
        watcher = check.watcher
        for _ in range(2):
            await engine.until(lambda: engine.streams)
            async for status in watcher.status_changes():
                if status.state is WatchState.SYNCED:
                    break
            engine.publish(None)
            await engine.until(lambda: not engine.streams)
        async with asyncio.timeout(PATIENCE):
            async for status in watcher.status_changes():
                if status.state is WatchState.SYNCED and status.source == "poll":
                    break
        engine.run_pod("s1")
        await check.until(lambda: story(check) == [("started", "s1")])
        assert watcher.stats.outages == 2


async def test_forced_source_is_taken_or_refused_with_a_reason() -> None:
    for source, events, why in (
        ("native", "served", "needs containerd's own API"),
        ("pod-events", "end", "ends at once"),
        ("pod-events", "unimplemented", "does not know this call"),
    ):
        async with ScriptedCRI(events=events) as engine:  # type: ignore[arg-type]
            async with cri.watch(engine.address, source=source, retry=None) as watcher:  # type: ignore[arg-type]
                with pytest.raises(UnsupportedEngine, match=why):
                    await watcher.ready(PATIENCE)
            async with following(engine, source="poll") as check:
                assert check.watcher.status.source == "poll"


async def test_probe_of_an_engine_that_is_lost_is_an_outage_and_no_choice() -> None:
    async with ScriptedCRI() as engine:
        engine.refuse["Version"] = grpc.StatusCode.UNAVAILABLE
        adapter = cri.CRIEngine(engine.address)
        with pytest.raises(EngineUnavailable):
            await adapter.connect()
        assert adapter.source == ""
        await adapter.close()


async def test_engine_without_the_cri_is_told_with_a_remedy() -> None:
    async with ScriptedCRI() as engine:
        engine.refuse["Version"] = grpc.StatusCode.UNIMPLEMENTED
        adapter = cri.CRIEngine(engine.address)
        with pytest.raises(UnsupportedEngine, match=r"does not speak the CRI \(runtime.v1\).*disabled_plugins"):
            await adapter.connect()
        await adapter.close()


def test_address_has_no_default() -> None:
    for nothing in (None, ""):
        with pytest.raises(AddressError, match=r"no default.*/run/containerd/containerd.sock.*/run/crio/crio.sock"):
            cri.watch(nothing)
    with pytest.raises(AddressError, match="no default"):
        cri.watch()


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="native, pod-events, poll"):
        cri.watch("/run/x.sock", source="events")  # type: ignore[arg-type]
    for poll in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="poll must be positive"):
            cri.watch("/run/x.sock", poll=poll)


async def test_engine_tells_of_itself() -> None:
    async with ScriptedCRI() as engine:
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


@BOTH
async def test_pods_live_and_die(source: str) -> None:
    async with ScriptedCRI() as engine:
        engine.run_pod("s1")
        engine.run("c1", "web")
        engine.run("created", "later")
        engine.exit("created", state=wire.CONTAINER_CREATED)
        engine.run("dead", "web")
        engine.exit("dead")
        engine.run_pod("s0", "old", "u0")
        engine.stop_pod("s0")
        async with following(engine, source=source) as check:
            portfolio = check.watcher.portfolio
            (pod,) = await portfolio.pods()
            assert (pod.name, pod.namespace, pod.uid, pod.container_names) == ("shop", "prod", "u1", ("web",))
            assert pod.sandbox is not None
            assert (pod.sandbox.id, pod.sandbox.name, pod.sandbox.pid) == ("s1", "shop", 4001)
            web = pod.container("web")
            assert web is not None
            assert web.pid == 4002
            assert web.started_at is not None
            engine.exit("c1", 3)
            await check.until(lambda: ("exited", "c1") in story(check))
            engine.run("c2", "web")
            await check.until(lambda: ("started", "c2") in story(check))
            pod_now = await portfolio.pod("u1")
            assert pod_now is not None
            assert [c.id for c in pod_now] == ["c2"]
            engine.exit("c2")
            engine.stop_pod("s1")
            await check.until(lambda: not check.fold.alive)
            assert await portfolio.pods() == ()
            codes = {e.container.id: e.exit_code for e in check.fold.events if e.type.value == "exited"}
            assert codes == {
                "c1": 3 if source == "pod-events" else None,
                "c2": 0 if source == "pod-events" else None,
                "s1": None,
            }
            assert all(e.origin is Origin.ENGINE for e in check.fold.events if e.type.value == "exited")
            assert check.watcher.stats.drift == 0


@BOTH
async def test_one_listing_each_and_one_status_for_each_that_runs(source: str) -> None:
    async with ScriptedCRI() as engine:
        engine.run_pod("s1")
        for number in range(5):
            engine.run(f"c{number}")
        engine.exit("c4")
        async with following(engine, source=source, poll=60) as check:
            await engine.until(lambda: engine.asked("ListContainers", "ListPodSandbox") == 4)  # and again to confirm
            assert check.watcher.portfolio.snapshot().total() == 5
            assert engine.requests["ContainerStatus"] == 4
            assert engine.requests["PodSandboxStatus"] == 1


@BOTH
async def test_audits_find_nothing_new_and_ask_for_no_status(source: str) -> None:
    async with ScriptedCRI() as engine:
        engine.run_pod("s1")
        engine.run("c1")
        async with following(engine, source=source, audit=0.1) as check:
            asked = engine.asked("ContainerStatus", "PodSandboxStatus")
            engine.run("c2")
            await engine.until(lambda: engine.requests["ListContainers"] > 8)
            engine.exit("c2")
            await check.until(lambda: ("exited", "c2") in story(check))
            await engine.until(lambda: engine.requests["ListContainers"] > 16)
            assert check.watcher.stats.drift == 0
            assert engine.asked("ContainerStatus", "PodSandboxStatus") == asked + 1


INFOS = [
    None,
    b"{}",
    b"[]",
    b"no JSON",
    b'{"pid": 0}',
    b'{"pid": "7"}',
    b'{"pid": -7}',
    b"\xff",
    b"[" * 10_000,
    b"1" * 10_000,
]
"""Verbose information that tells no PID."""


@BOTH
async def test_container_without_a_pid_is_alive_told_once_and_counted(
    source: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with ScriptedCRI() as engine:
        for number, info in enumerate(INFOS):
            engine.run(f"c{number}", info=info)
        engine.run("sound")
        async with following(engine, source=source) as check:
            alive = {c.id: c.pid for c in check.watcher.portfolio.snapshot()}
            assert alive == {f"c{number}": None for number in range(len(INFOS))} | {"sound": 4001}
            adapter = check.watcher.engine
            assert isinstance(adapter, cri.CRIEngine)
            assert adapter.without_pid == len(INFOS)
            engine.exit("c0")
            await check.until(lambda: ("exited", "c0") in story(check))
    warned = [r.getMessage() for r in caplog.records if "no PID" in r.getMessage()]
    assert len(warned) == 1


@BOTH
async def test_sandbox_without_a_pid_is_not_in_the_picture(source: str, caplog: pytest.LogCaptureFixture) -> None:
    async with ScriptedCRI() as engine:
        for number, info in enumerate(INFOS):
            engine.run_pod(f"s{number}", uid=f"u{number}", info=info)
        engine.run("c1", sandbox="s1")
        async with following(engine, source=source) as check:
            assert [c.id for c in check.watcher.portfolio.snapshot()] == ["c1"]
            pod = await check.watcher.portfolio.pod("u1")
            assert pod is not None
            assert (pod.sandbox, pod.name, pod.container_names) == (None, "shop", ("web",))
            assert check.watcher.stats.unresolved == 0
    assert not caplog.records


@BOTH
async def test_container_in_an_unknown_state_keeps_what_is_known(source: str) -> None:
    async with ScriptedCRI() as engine:
        engine.run("c1")
        engine.run("never")
        engine.exit("never", state=wire.CONTAINER_UNKNOWN)
        async with following(engine, source=source, audit=0.1) as check:
            engine.exit("c1", state=wire.CONTAINER_UNKNOWN)
            looks = engine.requests["ListContainers"]
            await engine.until(lambda: engine.requests["ListContainers"] > looks + 6)
            assert [c.id for c in check.watcher.portfolio.snapshot()] == ["c1"]
            assert check.watcher.stats.unresolved >= 1
            assert check.watcher.stats.outages == 0
            engine.exit("c1", 1)
            await check.until(lambda: story(check)[-1:] == [("exited", "c1")])


@BOTH
async def test_status_of_something_else_is_not_believed(source: str) -> None:
    async with ScriptedCRI() as engine:
        engine.run("c1")
        adapter = cri.CRIEngine(engine.address, source=source)  # type: ignore[arg-type]
        await adapter.connect()
        engine.containers["c2"] = wire.Container(id=b"other", state=wire.CONTAINER_RUNNING)
        engine.containers["c3"] = wire.Container(id=b"c3", state=wire.CONTAINER_RUNNING)
        assert await adapter.inspect("c2") is None, "there is none of that id"
        await adapter.listing()
        engine.containers["c3"].id = b"other"
        with pytest.raises(ProtocolViolation, match="asked about c3, it tells of 'other'"):
            await adapter.inspect("c3")
        await adapter.close()


@BOTH
async def test_beginning_of_an_id_is_not_taken_for_the_id(source: str) -> None:
    async with ScriptedCRI() as engine:
        engine.run("c1234")
        engine.run_pod("s1234")
        adapter = cri.CRIEngine(engine.address, source=source)  # type: ignore[arg-type]
        await adapter.connect()
        assert await adapter.inspect("c12") is None
        assert await adapter.inspect("s12") is None
        assert await adapter.inspect("nothing") is None
        await adapter.close()


@BOTH
async def test_container_that_cannot_be_read_is_unresolved_while_others_are_seen(source: str) -> None:
    async with ScriptedCRI() as engine:
        engine.run_pod("s1")
        engine.run("c1")
        engine.refuse["ContainerStatus"] = grpc.StatusCode.INTERNAL
        async with following(engine, source=source) as check:
            assert [c.id for c in check.watcher.portfolio.snapshot()] == ["s1"]
            assert check.watcher.stats.unresolved == 1
            engine.refuse.clear()
            await check.until(lambda: ("started", "c1") in story(check))
            assert check.watcher.stats.unresolved == 0


@BOTH
async def test_hostile_text_hides_nothing(source: str) -> None:
    async with ScriptedCRI() as engine:
        engine.run("c1", labels=[wire.Entry(key=b"\xff", value=b"\xfe\x1b[2J")])
        engine.run("c2")
        async with following(engine, source=source) as check:
            found = await check.watcher.portfolio.container("c1")
            assert found is not None
            assert found.labels["\ufffd"] == "\ufffd\x1b[2J"
            assert "c2" in check.watcher.portfolio.snapshot()


@BOTH
async def test_rucksack_holds_what_the_application_packs(source: str) -> None:
    def pack(container: Container, inspection: cri.Inspection) -> tuple[str, int]:
        return (inspection.sandbox_id, inspection.info["pid"])

    async with ScriptedCRI() as engine:
        engine.run_pod("s1")
        engine.run("c1")
        async with following(engine, source=source, pack=pack) as check:
            packed = {c.id: c.rucksack for c in check.watcher.portfolio.snapshot()}
            assert packed == {"s1": ("", 4001), "c1": ("s1", 4002)}


@BOTH
async def test_new_connection_reads_everything_anew(source: str) -> None:
    async with ScriptedCRI() as engine:
        engine.run("c1")
        adapter = cri.CRIEngine(engine.address, source=source)  # type: ignore[arg-type]
        for pid in (4001, 5000):
            await adapter.connect()
            assert (await adapter.listing()).sightings["c1"].container is None
            found = await adapter.inspect("c1")
            assert found is not None
            assert found.pid == pid
            assert (await adapter.listing()).sightings["c1"].container == found
            engine.info["c1"] = b'{"pid": 5000}'
        await adapter.close()


# ---- pod events


async def test_backlog_costs_nothing_and_changes_nothing() -> None:
    async with ScriptedCRI() as engine:
        engine.run("c1")
        for number in range(1000):
            engine.backlog.append(engine.event(f"old{number}", wire.CONTAINER_STARTED_EVENT, at=10**9 + number))
        engine.backlog.append(engine.event("c1", wire.CONTAINER_STOPPED_EVENT, at=1_000_000_000))
        async with following(engine, source=None) as check:
            assert [c.id for c in check.watcher.portfolio.snapshot()] == ["c1"]
            assert engine.requests["ContainerStatus"] == 1


async def test_backlog_of_a_stream_that_was_not_tried_out_is_stale_too() -> None:
    """On containerd the first stream is the one that is followed."""
    async with ScriptedCRI(runtime="containerd") as engine:
        engine.run("c1")
        engine.backlog = [
            engine.event(f"old{number}", wire.CONTAINER_STARTED_EVENT, at=10**9 + number) for number in range(300)
        ]
        async with following(engine, source="pod-events") as check:
            engine.run("c2")
            await check.until(lambda: ("started", "c2") in story(check))
            assert check.watcher.stats.signals == 1
            assert engine.requests["ContainerStatus"] == 2
            assert check.watcher.stats.calls.get("container", 0) <= 1, "nobody asks for what was before"
            assert check.types("c1") == []


async def test_events_that_look_old_because_the_clock_was_set_back_are_heeded() -> None:
    async with ScriptedCRI() as engine, following(engine) as check:
        engine.run("c1")
        await check.until(lambda: ("started", "c1") in story(check))
        engine.containers["c1"].state = wire.CONTAINER_EXITED
        engine.publish(engine.event("c1", wire.CONTAINER_STOPPED_EVENT, at=10**9))
        await check.until(lambda: story(check)[-1:] == [("exited", "c1")])


async def test_garbage_on_the_stream_is_told_once_and_repaired(caplog: pytest.LogCaptureFixture) -> None:
    async with ScriptedCRI() as engine, following(engine) as check:
        engine.publish(b"\xff\xff", b"", b"\x0a\x05ab")
        engine.run("c1")
        await check.until(lambda: ("started", "c1") in story(check))
        assert check.watcher.stats.lost == 3
        assert check.watcher.stats.outages == 0
        lost = engine.streams.copy()
        engine.streams.clear()
        engine.run("c2")  # of which nothing is told
        engine.streams.extend(lost)
        engine.publish(b"\xff\xff\xff")
        await check.until(lambda: ("started", "c2") in story(check))
        assert check.watcher.stats.drift == 1
    assert len([r for r in caplog.records if "makes no sense" in r.getMessage()]) == 1


async def test_event_told_twice_costs_one_inspect() -> None:
    async with ScriptedCRI() as engine, following(engine) as check:
        engine.run("c1")
        await check.until(lambda: ("started", "c1") in story(check))
        deaf = engine.streams.copy()
        engine.streams.clear()
        engine.run("c2")
        engine.streams.extend(deaf)
        twice = engine.event("c2", wire.CONTAINER_STARTED_EVENT)
        engine.publish(twice)
        await check.until(lambda: ("started", "c2") in story(check))
        engine.publish(twice)
        engine.run("marker")
        await check.until(lambda: ("started", "marker") in story(check))
        assert engine.requests["ContainerStatus"] == 3


async def test_deletion_stands_in_for_a_stop_that_was_lost() -> None:
    async with ScriptedCRI() as engine:
        engine.run("c1")
        async with following(engine) as check:
            del engine.containers["c1"]
            engine.tell("c1", wire.CONTAINER_DELETED_EVENT)
            await check.until(lambda: story(check)[-1:] == [("exited", "c1")])


async def test_stop_after_its_deletion_still_tells_its_exit_code() -> None:
    async with ScriptedCRI() as engine:
        engine.run("c1")
        async with following(engine) as check:
            stop = engine.event("c1", wire.CONTAINER_STOPPED_EVENT, 5)
            engine.tell("c1", wire.CONTAINER_DELETED_EVENT)
            engine.publish(stop)
            await check.until(lambda: story(check)[-1:] == [("exited", "c1")])
            assert check.fold.events[-1].exit_code == 5


async def test_dropped_event_is_found_by_an_audit() -> None:
    async with ScriptedCRI() as engine, following(engine, audit=0.1) as check:
        deaf = engine.streams.copy()
        engine.streams.clear()
        engine.run("c1")
        engine.streams.extend(deaf)
        await check.until(lambda: ("started", "c1") in story(check))
        assert check.fold.events[-1].origin is Origin.RESYNC


async def test_engine_that_serves_its_events_once_is_read_by_one_stream_only(caplog: pytest.LogCaptureFixture) -> None:
    """A containerd 1.7 notices that a reader has gone when it has lost an event to it."""
    engine = ScriptedCRI(runtime="containerd")
    engine.version = "1.7.24"
    async with engine, following(engine, source="pod-events", audit=0.1) as check:
        await engine.until(lambda: engine.requests["ListContainers"] > 6)
        for number in range(5):
            engine.run(f"c{number}")
            await check.until(lambda number=number: ("started", f"c{number}") in story(check))  # type: ignore[misc]
        assert check.watcher.stats.audits > 3
        assert check.watcher.stats.drift == 0
        assert engine.requests["GetContainerEvents"] == 1
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warned) == 1
    assert "takes events from a kubelet" in warned[0]


async def test_engine_that_says_in_its_own_way_that_there_is_no_such_container_is_understood() -> None:
    async with ScriptedCRI() as engine:
        engine.run("c1")
        adapter = cri.CRIEngine(engine.address)
        await adapter.connect()
        await adapter.listing()
        engine.refuse["ContainerStatus"] = grpc.StatusCode.UNKNOWN
        with pytest.raises(EngineError, match="as told"):
            await adapter.inspect("c1")
        del engine.containers["c1"]
        assert await adapter.inspect("c1") is None
        await adapter.close()


# ---- containerd's own events


@asynccontextmanager
async def containerd() -> AsyncIterator[ScriptedCRI]:
    """A containerd that runs one pod with one container."""
    async with ScriptedCRI(runtime="containerd") as engine:
        engine.native = True
        engine.run_pod("s1")
        engine.task("s1", 11, kind="sandbox")
        engine.run("c1")
        engine.task("c1", 12, kind="container")
        yield engine


def pids(check: Checked) -> dict[str, int | None]:
    return {container.id: container.pid for container in check.watcher.portfolio.snapshot()}


async def test_containerds_own_api_is_preferred_and_no_status_is_asked() -> None:
    async with containerd() as engine, following(engine) as check:
        assert (check.watcher.status.source, pids(check)) == ("native", {"s1": 11, "c1": 12})
        adapter = check.watcher.engine
        assert (await adapter.id(), adapter.pid) == ("uuid", 7)
        engine.run("c2")
        engine.task("c2", 13, kind="container")
        await check.until(lambda: ("started", "c2") in story(check))
        engine.task_exit("c2", 5)
        await check.until(lambda: ("exited", "c2") in story(check))
        assert check.fold.events[-1].exit_code == 5
        assert engine.asked("ContainerStatus", "PodSandboxStatus", "GetContainerEvents") == 0
        assert (engine.requests["TasksList"], engine.requests["TasksGet"]) == (2, 1)


async def test_state_that_the_cri_shows_does_not_decide_about_life() -> None:
    """A shim tells of a start before the CRI notes it, and the CRI notes an exit only when it is told."""
    async with containerd() as engine:
        engine.containers["c1"].state = wire.CONTAINER_CREATED
        engine.run("dead")
        engine.task("dead", 14, kind="container")
        engine.tasks["dead"].status = containerd_pb2.STOPPED
        async with following(engine) as check:
            assert pids(check) == {"s1": 11, "c1": 12}
            engine.run("c2")
            engine.containers["c2"].state = wire.CONTAINER_CREATED
            engine.task("c2", 15, kind="container")
            await check.until(lambda: ("started", "c2") in story(check))


async def test_sandbox_that_the_cri_learns_late_is_waited_for() -> None:
    async with containerd() as engine:
        engine.task("s2", 21, kind="sandbox")  # found by the listing
        async with cri.watch(engine.address, **QUICK) as watcher:
            await engine.until(lambda: engine.requests["ListPodSandbox"] >= 3)
            engine.run_pod("s2", "late", "u2")
            await watcher.ready(PATIENCE)
            assert await watcher.portfolio.pod("u2") is not None
            engine.task("s3", 22, kind="sandbox")  # told by an event
            asked = engine.requests["ListPodSandbox"]
            await engine.until(lambda: engine.requests["ListPodSandbox"] >= asked + 2)
            engine.run_pod("s3", "later", "u3")
            found = await watcher.portfolio.wait_for("s3", PATIENCE)
            assert found.pid == 22


async def test_sandbox_that_the_cri_never_learns_is_unresolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "PATIENCE", (0.01,))
    async with containerd() as engine:
        engine.task("s2", 21, kind="sandbox")
        async with following(engine) as check:
            assert pids(check) == {"s1": 11, "c1": 12}
            assert check.watcher.stats.unresolved == 1
            assert check.watcher.stats.outages == 0


async def test_containers_of_others_in_the_namespace_are_not_seen() -> None:
    async with containerd() as engine:
        engine.task("foreign", 31)
        async with following(engine) as check:
            engine.task("another", 32)
            engine.publish(
                engine.envelope("start", containerd_pb2.TaskStart(container_id=b"c9", pid=1), "moby"),
                engine.envelope("oom", containerd_pb2.TaskPaused(container_id=b"c1")),
            )
            engine.run("marker")
            engine.task("marker", 33, kind="container")
            await check.until(lambda: ("started", "marker") in story(check))
            assert pids(check) == {"s1": 11, "c1": 12, "marker": 33}
            assert check.watcher.stats.lost == check.watcher.stats.unresolved == 0


async def test_task_whose_shim_is_silent_keeps_what_is_known() -> None:
    async with containerd() as engine, following(engine, audit=0.1) as check:
        engine.tasks["c1"].status = containerd_pb2.UNKNOWN
        former = engine.tasks.pop("s1")  # left out, as containerd 2 does
        engine.refuse["TasksGet"] = grpc.StatusCode.DEADLINE_EXCEEDED
        looks = engine.requests["TasksList"]
        await engine.until(lambda: engine.requests["TasksList"] > looks + 3)
        assert pids(check) == {"s1": 11, "c1": 12}
        assert check.watcher.stats.unresolved == 2
        engine.refuse.clear()
        engine.tasks["s1"] = former
        engine.task_exit("c1")
        await check.until(lambda: ("exited", "c1") in story(check))
        assert pids(check) == {"s1": 11}


async def test_pause_of_a_task_is_told() -> None:
    async with containerd() as engine, following(engine) as check:
        engine.tasks["c1"].status = containerd_pb2.PAUSED
        engine.publish(engine.envelope("paused", containerd_pb2.TaskPaused(container_id=b"c1")))
        await check.until(lambda: ("paused", "c1") in story(check))
        assert check.fold.alive["c1"].paused


# ---- polling


async def test_poll_that_fails_is_an_outage() -> None:
    async with ScriptedCRI() as engine:
        engine.run("c1")
        async with following(engine, source="poll") as check:
            engine.refuse["ListPodSandbox"] = grpc.StatusCode.INTERNAL
            async with asyncio.timeout(PATIENCE):
                async for status in check.watcher.status_changes():
                    if status.state is WatchState.DISCONNECTED:
                        break
            assert isinstance(check.watcher.status.error, EngineError)
            del engine.containers["c1"]
            engine.refuse.clear()
            await check.until(lambda: story(check)[-1:] == [("exited", "c1")])
            assert check.fold.events[-1].origin is Origin.RESYNC


async def test_poll_that_hangs_while_other_calls_are_answered_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "LOOK_TIMEOUT", 0.2)
    async with FakeCRI(pod_events="ended") as fake, cri.watch(fake.address, **QUICK) as watcher:
        await watcher.ready(PATIENCE)
        with fake.faults.hang("container_list"):
            async with asyncio.timeout(PATIENCE):
                async for status in watcher.status_changes():
                    if status.state is WatchState.DISCONNECTED:
                        break
            assert isinstance(watcher.status.error, EngineTimeout)
        await watcher.portfolio.in_sync(PATIENCE)


async def test_what_happens_between_the_first_listing_and_the_first_poll_is_told() -> None:
    async with ScriptedCRI() as engine:
        engine.run("c1")
        adapter = cri.CRIEngine(engine.address, source="poll", poll=0.05)
        await adapter.connect()
        signals = adapter.signals()
        assert (await anext(signals)).type.value == "subscribed"
        await adapter.listing()
        engine.exit("c1")
        engine.run("c2")
        async with asyncio.timeout(PATIENCE):
            told = {(s.type.value, s.id) for s in [await anext(signals), await anext(signals)]}
        assert told == {("exited", "c1"), ("started", "c2")}
        await signals.aclose()  # type: ignore[attr-defined]
        await adapter.close()


async def test_stream_that_takes_over_leaves_out_no_difference() -> None:
    async with ScriptedCRI() as engine:
        adapter = cri.CRIEngine(engine.address, source="poll", poll=0.05)
        await adapter.connect()
        former = adapter.signals()
        await anext(former)
        await adapter.listing()
        engine.run("c1")
        latter = adapter.signals()
        await anext(latter)
        await former.aclose()  # type: ignore[attr-defined]
        async with asyncio.timeout(PATIENCE):
            signal = await anext(latter)
        assert (signal.type.value, signal.id) == ("started", "c1")
        await latter.aclose()  # type: ignore[attr-defined]
        await adapter.close()
