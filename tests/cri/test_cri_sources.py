"""Following a CRI engine by its pod events or by polling, whatever the engine says; the source is chosen to fit it."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import nullcontext
from typing import Any

import pytest

from tests.support.cri_followed import NAMESPACE, QUICK, Containerd, bare, connected, following, pids, story
from tests.support.followed import eventually
from tests.support.outage import lost
from tests.support.scripted import PATIENCE
from whalewatch import (
    AddressError,
    Container,
    Dead,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    Origin,
    ProtocolViolation,
    UnsupportedEngine,
    WatchState,
    cri,
)
from whalewatch._wire import containerd_pb2
from whalewatch._wire import cri_pb2 as wire
from whalewatch.cri import native, pod_events, polling, verbose
from whalewatch.testing import FakeCRI

BACKLOG = 1000
"""Events that an engine keeps for the first who asks for them."""


def logged(caplog: pytest.LogCaptureFixture, words: str) -> list[int]:
    """The levels of what was logged with these words."""
    return [record.levelno for record in caplog.records if words in record.getMessage()]


# ---- the choice of the source


@pytest.mark.parametrize(
    ("kind", "events", "source", "streams"),
    [
        # The stream that is tried is the one that is kept.
        ("cri-o 1.33.0", "broadcast", "pod-events", 1),
        ("cri-o 1.33.0", "ended", "poll", 1),
        ("cri-o 1.33.0", "unimplemented", "poll", 1),
        ("cri-dockerd 0.3.4", "UNKNOWN", "poll", 1),
        ("cri-o 1.33.0", "PERMISSION_DENIED", "poll", 1),
        ("cri-o 1.33.0", "UNAUTHENTICATED", "poll", 1),
        # Without its own API; from its pod events the kubelet would miss what we take.
        ("containerd 2.1.0", "broadcast", "poll", 0),
        # These do the same, or crash when a reader leaves.
        ("cri-o 1.27.8", "shared", "poll", 0),
        ("cri-o v1.31.13", "broadcast", "poll", 0),
        ("cri-o unknown", "broadcast", "poll", 0),
    ],
)
async def test_source_is_chosen_to_fit_the_engine(
    kind: str, events: Any, source: str, streams: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "whalewatch")
    (runtime, version), refused = kind.split(), events.isupper()
    async with FakeCRI(runtime=runtime, version=version, pod_events="broadcast" if refused else events) as engine:
        if refused:
            engine.faults.fail("events", events, "not implemented")
        pod = engine.run_pod("shop")
        async with following(engine) as follow:
            assert follow.watcher.status.source == source
            await follow.until_taken(engine.run(pod, "web"))
            assert (follow.stats.outages, follow.watcher.status.state) == (0, WatchState.SYNCED)
        assert engine.requests["events"] == streams
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert logged(caplog, "listing every") == ([logging.INFO] if source == "poll" else [])


async def test_missing_pod_events_are_told_once_and_looked_for_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "whalewatch.cri")
    async with FakeCRI(pod_events="ended") as engine, connected(engine, poll=0.01) as adapter:
        for events in ("ended", "unimplemented", "ended"):  # whatever the engine says about it
            engine._state.events.mode = events
            await adapter.connect()
            assert adapter.source == "poll"
            polls = adapter.signals()
            await anext(polls)
            with engine.faults.fail("pod_list", "INTERNAL"), pytest.raises(EngineError, match="INTERNAL"):
                await anext(polls)
            assert adapter._empty_streams == 0, "a poll that fails says nothing of pod events"
        assert len(caplog.records) == 1
        engine._state.events.mode = "broadcast"
        await adapter.connect()
        assert adapter.source == "pod-events"


@pytest.mark.slow
@pytest.mark.parametrize("status", ["OK", "UNIMPLEMENTED", "UNKNOWN", "PERMISSION_DENIED"])
async def test_stream_that_keeps_ending_late_without_an_event_is_given_up_for_polling(
    engine: FakeCRI, status: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "whalewatch.cri")
    async with following(engine) as follow:
        watcher = follow.watcher
        for outages in (1, 2):
            await engine.until(lambda: engine.subscribers == 1)
            await watcher.portfolio.in_sync(PATIENCE)
            assert watcher.status.source == "pod-events"

            def end(outages: int = outages) -> bool:
                engine.faults.end_streams(status)  # also those that are opened in its place
                return watcher.stats.outages == outages

            await eventually(end)
        await watcher.portfolio.in_sync(PATIENCE)
        assert watcher.status.source == "poll"
        await follow.until_taken(engine.run_pod("shop"))
        assert watcher.stats.outages == 2
    assert len(logged(caplog, "listing every")) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "stable_after", "sources"),
    [
        # Pod events that were given up have another chance.
        pytest.param("end", 60.0, ["pod-events", "pod-events", "poll", "pod-events"], id="ended by the engine"),
        pytest.param("end", 0.0, ["pod-events"] * 5, id="ended long after an idle engine began"),
        pytest.param("restart", 60.0, ["pod-events"] * 4, id="lost"),
    ],
)
async def test_end_of_empty_streams_that_overlap_speaks_once_against_pod_events(
    engine: FakeCRI, monkeypatch: pytest.MonkeyPatch, end: str, stable_after: float, sources: list[str]
) -> None:
    monkeypatch.setattr("whalewatch.cri.engine.STABLE_AFTER", stable_after)
    async with connected(engine) as adapter:
        for source in sources:
            await adapter.connect()
            assert adapter.source == source
            if source == "poll":
                continue
            streams = [adapter.signals(), adapter.signals()]
            for stream in streams:
                await anext(stream)
            await eventually(lambda: engine.subscribers == 2)
            await engine.faults.restart() if end == "restart" else engine.faults.end_streams()
            for stream in streams:
                with pytest.raises(EngineUnavailable) if end == "restart" else nullcontext():
                    assert await anext(stream, None) is None


@pytest.mark.parametrize("refusal", ["UNIMPLEMENTED", "PERMISSION_DENIED", "UNAUTHENTICATED"])
async def test_containerd_that_lets_nobody_but_the_cri_through_is_polled(containerd: Containerd, refusal: str) -> None:
    containerd.native.faults.fail("server", refusal)
    async with following(containerd) as follow:
        assert follow.watcher.status.source == "poll"
        assert pids(follow).keys() == {containerd.pod, containerd.web}
    with pytest.raises(UnsupportedEngine, match="needs containerd's own API"):
        await cri.CRIEngine(containerd.address, source="native").connect()


@pytest.mark.parametrize(
    ("events", "fault", "source", "error", "why"),
    [
        ("broadcast", "", "native", UnsupportedEngine, "needs containerd's own API"),
        ("ended", "", "pod-events", UnsupportedEngine, "ends at once"),
        ("unimplemented", "", "pod-events", UnsupportedEngine, "does not know this call"),
        ("broadcast", "version UNAVAILABLE", None, EngineUnavailable, "told to fail"),
        ("broadcast", "events UNAVAILABLE", None, EngineUnavailable, "told to fail"),
        ("broadcast", "version UNIMPLEMENTED", None, ProtocolViolation, "is it of another kind"),
    ],
)
async def test_engine_that_cannot_be_followed_so_is_refused_with_a_reason(
    events: Any, fault: str, source: Any, error: type[EngineError], why: str
) -> None:
    async with FakeCRI(pod_events=events) as engine:
        if fault:
            engine.faults.fail(*fault.split())
        adapter = cri.CRIEngine(engine.address, source=source)
        with pytest.raises(error, match=why):
            await adapter.connect()
        assert adapter.source == (source or "")
        await adapter.close()
        engine.faults.clear()
        async with following(engine, source="poll") as follow:
            assert follow.watcher.status.source == "poll"


def test_addresses_and_options_that_make_no_sense_are_refused() -> None:
    for nothing in ((), (None,), ("",)):
        with pytest.raises(AddressError, match=r"no default.*/run/containerd/containerd.sock.*/run/crio/crio.sock"):
            cri.watch(*nothing)
    with pytest.raises(ValueError, match="native, pod-events, poll"):
        cri.watch("/run/x.sock", source="events")  # type: ignore[arg-type]
    for poll in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="poll must be positive"):
            cri.watch("/run/x.sock", poll=poll)


# ---- what the sources have in common


BOTH = pytest.mark.parametrize("source", ["pod-events", "poll"])

EACH = pytest.mark.parametrize("source", ["native", "pod-events", "poll"])


@pytest.mark.slow
@BOTH
async def test_one_status_is_asked_of_each_that_runs_which_the_application_may_pack(
    engine: FakeCRI, source: str
) -> None:
    def pack(container: Container, inspection: cri.Inspection) -> tuple[str, int]:
        return (inspection.sandbox_id, inspection.info["pid"])

    pod = engine.run_pod("shop")
    ids = [engine.run(pod, f"c{number}") for number in range(5)]
    engine.exit(ids[4])
    async with following(engine, source=source, audit=0.1, pack=pack) as follow:
        packed = {c.id: c.rucksack for c in follow.snapshot}
        assert packed == {pod: ("", 5001)} | {id: (pod, 5002 + number) for number, id in enumerate(ids[:4])}
        await eventually(lambda: follow.stats.audits > 2 and engine.requests["pod_list"] > 8)
        assert (engine.requests["container_status"], engine.requests["pod_status"]) == (4, 1)


INFOS = [
    *(None, b"{}", b"[]", b"no JSON", b'{"pid": 0}', b'{"pid": "7"}', b'{"pid": -7}', b"\xff"),
    *(b"[" * 10_000, b"1" * 10_000),
]
"""Verbose information that tells no PID."""


@BOTH
async def test_of_what_tells_no_pid_containers_are_alive_and_counted_and_sandboxes_are_not(
    engine: FakeCRI, source: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(verbose, "PID_DELAYS", (0.01,))
    pods = [engine.run_pod("shop", uid=f"u{number}") for number in range(len(INFOS))]
    ids = [engine.run(pod, "web") for pod in pods]
    for pod, id, info in zip(pods, ids, INFOS, strict=True):
        engine.faults.tell_info(info, pod)
        engine.faults.tell_info(info, id)
    sound = engine.run(bare(engine), "sound")
    async with following(engine, source=source) as follow:
        assert pids(follow) == dict.fromkeys(ids) | {sound: engine.containers[sound].pid}
        found = await follow.watcher.portfolio.pod("u1")
        assert found is not None
        assert (found.sandbox, found.name, found.container_names) == (None, "shop", ("web",))
        adapter = follow.watcher.engine
        assert isinstance(adapter, cri.CRIEngine)
        await eventually(lambda: adapter.without_pid == len(INFOS))
        assert (engine.requests["container_status"], follow.stats.unresolved) == (2 * len(INFOS) + 1, 0)
        # Of sandboxes, the one whose PID is 0 may have just started; the others have no process.
        assert engine.requests["pod_status"] == len(INFOS) + 2
        engine.exit(ids[0])
        await follow.until(lambda: ("exited", ids[0]) in story(follow))
    assert len(logged(caplog, "no PID")) == len(caplog.records) == 1


@pytest.mark.slow
@BOTH
async def test_pid_that_is_told_late_is_found_by_an_audit(engine: FakeCRI, source: str) -> None:
    c1 = engine.run(bare(engine), "c1")
    untold = engine.faults.tell_info(None, c1)
    async with following(engine, source=source, audit=0.1) as follow:
        assert pids(follow) == {c1: None}
        untold.undo()
        await follow.until(lambda: follow.types(c1) == ["updated"])
        assert pids(follow) == {c1: engine.containers[c1].pid}


@pytest.mark.slow
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


@pytest.mark.slow
@BOTH
async def test_container_in_an_unknown_state_keeps_what_is_known(engine: FakeCRI, source: str) -> None:
    pod = bare(engine)
    c1 = engine.run(pod, "c1")
    engine.faults.unknown(engine.run(pod, "never"))
    async with following(engine, source=source, audit=0.1) as follow:
        unknown = engine.faults.unknown(c1)
        looks = engine.requests["pod_list"]
        await engine.until(lambda: engine.requests["pod_list"] > looks + 6)
        assert pids(follow).keys() == {c1}
        assert follow.stats.unresolved >= 1
        assert follow.stats.outages == 0
        unknown.undo()
        engine.exit(c1, 1)
        await follow.until(lambda: follow.types(c1) == ["exited"])


@BOTH
async def test_answers_are_believed_as_far_as_they_are_about_what_was_asked(engine: FakeCRI, source: str) -> None:
    other = wire.ListContainersResponse(containers=[wire.Container(id=b"other", state=wire.CONTAINER_RUNNING)])
    status = wire.ContainerStatusResponse(status=wire.ContainerStatus(id=b"other", state=wire.CONTAINER_RUNNING))
    pod = engine.run_pod("shop")
    c1, c2 = engine.run(pod, ""), engine.run(pod, "c2")
    async with connected(engine, source) as adapter:
        engine.faults.garble("container_list", other.SerializeToString(), id="c3")
        assert [await adapter.inspect(id) for id in (c1[:32], pod[:32], "nothing", "c3")] == [None] * 4
        assert (await adapter.listing()).containers.keys() == {pod, c1, c2}
        engine.faults.garble("container_status", status.SerializeToString(), id=c1)
        with pytest.raises(ProtocolViolation, match=f"asked about {c1}, it answers about 'other'"):
            await adapter.inspect(c1)
        engine.faults.clear()
        with engine.faults.fail("container_status", "UNKNOWN", "as told"):
            with pytest.raises(EngineError, match="as told"):
                await adapter.inspect(c1)
            engine.remove(c1)
            assert await adapter.inspect(c1) is None, "an engine may say so in its own way"
        engine.stop_pod(pod)
        engine.faults.tell_info('{"pid": 7}')  # as it was
        dead = await adapter.inspect(c2)
        assert isinstance(dead, Dead), "it has stopped since it was listed"
        assert (dead.container.name, dead.container.pid, dead.exit_code, dead.oom) == ("c2", None, 137, False)
        assert await adapter.inspect(pod) is None


@pytest.mark.slow
@BOTH
async def test_container_that_cannot_be_read_is_unresolved_and_like_hostile_text_hides_nobody_else(
    engine: FakeCRI, source: str
) -> None:
    pod = engine.run_pod("shop")
    c1, c2 = engine.run(pod, "c1"), engine.run(pod, "c2", labels={b"\xff": b"\xfe\x1b[2J"})
    engine.faults.fail("container_status", "INTERNAL", id=c1)
    async with following(engine, source=source) as follow:
        assert pids(follow).keys() == {pod, c2}
        assert follow.stats.unresolved == 1
        engine.faults.clear()
        await follow.until(lambda: ("started", c1) in story(follow))
        assert follow.stats.unresolved == 0
        assert follow.fold.alive[c2].labels["\ufffd"] == "\ufffd\x1b[2J"


@EACH
async def test_listing_that_is_refused_is_no_empty_one_and_one_of_what_has_no_id_is(
    containerd: Containerd, source: str
) -> None:
    running = wire.Container(state=wire.CONTAINER_RUNNING)
    task = containerd_pb2.Task(pid=7, status=containerd_pb2.RUNNING)
    async with connected(containerd, source) as adapter:
        for kind in ("container_list", "pod_list"):
            with containerd.faults.fail(kind, "NOT_FOUND"), pytest.raises(EngineError, match="not found"):
                await adapter.listing()
        for faults, kind, listed in (
            (containerd.faults, "container_list", wire.ListContainersResponse(containers=[running])),
            (containerd.faults, "pod_list", wire.ListPodSandboxResponse(items=[wire.PodSandbox()])),
            (containerd.native.faults, "task_list", containerd_pb2.ListTasksResponse(tasks=[task])),
        ):
            faults.garble(kind, listed.SerializeToString())
        assert (await adapter.listing()).containers == {}


@EACH
async def test_audit_whose_listing_is_too_large_to_be_sent_ends_no_watch(containerd: Containerd, source: str) -> None:
    poll = 3600.0  # a poll that cannot list has nothing to follow
    async with following(containerd, source=source, poll=poll, audit=0.1) as follow:
        with containerd.faults.fail("pod_list", "RESOURCE_EXHAUSTED", "larger than max (17400000 vs. 16777216)"):
            await follow.until_stats(lambda stats: stats.audits_failed)
        audits = follow.stats.audits
        await follow.until_stats(lambda stats: stats.audits > audits)
        assert (follow.stats.outages, follow.stats.syncs) == (0, 1)


@BOTH
async def test_new_connection_reads_everything_anew(engine: FakeCRI, source: str) -> None:
    c1 = engine.run(bare(engine), "c1")
    async with connected(engine, source) as adapter:
        for pid in (engine.containers[c1].pid, 6000):
            await adapter.connect()
            assert (await adapter.listing()).containers[c1].container is None
            found = await adapter.inspect(c1)
            assert isinstance(found, Container)
            assert found.pid == pid
            assert (await adapter.listing()).containers[c1].container == found
            engine.faults.tell_info(b'{"pid": 6000}', c1)


# ---- pod events


@pytest.mark.parametrize(
    ("runtime", "version", "source"),
    # On containerd the first stream is the one that is followed.
    [("cri-o", "1.33.0", None), ("containerd", "2.1.0", "pod-events")],
)
async def test_backlog_costs_nothing_and_changes_nothing(runtime: str, version: str, source: Any) -> None:
    async with FakeCRI(runtime=runtime, version=version) as engine:
        with engine.faults.silently():
            pod = bare(engine)
            c1 = engine.run(pod, "c1")
        for number in range(BACKLOG - 1):
            engine.tell("STARTED", f"old{number}", timestamp=10**9 + number)
        engine.tell("STOPPED", c1, timestamp=10**9)
        async with following(engine, source=source) as follow:
            assert (list(pids(follow)), engine.requests["container_status"]) == ([c1], 1)
            await eventually(lambda: engine.requests["pod_list"] >= 2)  # else the audit may find c2 first
            c2 = engine.run(pod, "c2")
            await follow.until_taken(c2)
            assert (follow.stats.signals, engine.requests["container_status"]) == (1, 2)
            assert follow.stats.calls.get("container", 0) <= 1, "nobody asks for what was before"
            assert story(follow) == [("started", c1), ("started", c2)]


@pytest.mark.parametrize("newer", [True, False], ids=["behind a newer event", "long after the beginning"])
async def test_events_that_look_old_because_the_clock_was_set_back_are_no_backlog(
    engine: FakeCRI, monkeypatch: pytest.MonkeyPatch, newer: bool
) -> None:
    pod = bare(engine)
    c1 = engine.run(pod, "c1")
    if not newer:
        monkeypatch.setattr(pod_events, "BACKLOG_TIMEOUT", -1.0)
    async with following(engine, audit=None) as follow:
        await engine.until(lambda: engine.requests["pod_list"] == 2)  # all is confirmed
        if newer:
            await follow.until_taken(engine.run(pod, "newer"))
        with engine.faults.silently():
            engine.exit(c1)
        engine.tell("STOPPED", c1, timestamp=10**9)
        await follow.until(lambda: follow.types(c1) == ["exited"])
        assert follow.fold.events[-1].origin is Origin.ENGINE


@pytest.mark.slow
async def test_garbage_on_the_stream_is_told_once_and_repaired_and_what_comes_twice_is_read_once(
    engine: FakeCRI, caplog: pytest.LogCaptureFixture
) -> None:
    async with following(engine) as follow:
        for garbage in (b"\xff\xff", b"", b"\x0a\x05ab"):
            engine.publish(garbage)
        pod = bare(engine)
        await follow.until_taken(engine.run(pod, "c1"))
        assert (follow.stats.lost, follow.stats.outages) == (3, 0)
        with engine.faults.silently():
            c2, c3 = engine.run(pod, "c2"), engine.run(pod, "c3")
        now = time.time_ns()
        for _ in range(2):
            engine.tell("STARTED", c3, timestamp=now)
            await follow.until_taken(c3)
        await follow.until_taken(engine.run(pod, "marker"))
        assert engine.requests["container_status"] == 3
        engine.publish(b"\xff\xff\xff")
        await follow.until_taken(c2)
        assert follow.stats.drift == 1
    assert len(logged(caplog, "makes no sense")) == 1


async def test_deletion_stands_in_for_a_stop_that_is_lost_and_a_late_one_tells_its_exit_code(engine: FakeCRI) -> None:
    pod = bare(engine)
    c1, c2 = engine.run(pod, "c1"), engine.run(pod, "c2")
    async with following(engine, audit=None) as follow:
        await engine.until(lambda: engine.requests["pod_list"] == 2)  # all is confirmed
        with engine.faults.drop(lambda event: event.type == "STOPPED"):
            engine.remove(c1)
        await follow.until(lambda: follow.types(c1) == ["exited"])
        assert follow.fold.events[-1].origin is Origin.ENGINE
        with engine.faults.reorder(2):
            engine.exit(c2, 5)
            engine.remove(c2)
        await follow.until(lambda: follow.types(c2) == ["exited"])
        assert follow.fold.events[-1].exit_code == 5


async def test_start_of_a_sandbox_is_read_as_such(engine: FakeCRI) -> None:
    async with following(engine) as follow:
        await follow.until_taken(engine.run_pod("shop"))
        calls = follow.stats.calls
        assert (calls.get("container", 0), calls["sandbox"], calls["sandbox-status"]) == (0, 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runtime", "version", "events", "why"),
    [
        ("containerd", "1.7.24", "shared", "containerd 1.7 gives each pod event to one reader only"),
        ("cri-o", "1.27.8", "shared", "CRI-O before 1.28 gives each pod event to one reader only"),
        ("cri-o", "1.31.13", "broadcast", "CRI-O before 1.33 can crash when a reader of its pod events leaves"),
    ],
)
async def test_engine_that_suffers_from_its_readers_is_read_by_one_stream_only(
    runtime: str, version: str, events: Any, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Some notice that a reader has gone when they have lost an event to it, others may crash when it leaves."""
    engine = FakeCRI(runtime=runtime, version=version, pod_events=events)
    async with engine, following(engine, source="pod-events", audit=0.1) as follow:
        await engine.until(lambda: engine.requests["pod_list"] > 6)
        pod = bare(engine)
        for number in range(5):
            await follow.until_taken(engine.run(pod, f"c{number}"))
        assert follow.stats.audits > 3
        assert (follow.stats.drift, engine.requests["events"]) == (0, 1)
    assert logged(caplog, why) == [logging.WARNING]
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


# ---- containerd's own events


async def test_containerds_own_api_is_preferred_and_no_status_is_asked(containerd: Containerd) -> None:
    server = containerd_pb2.ServerResponse(uuid=b"uuid", pid=7)
    containerd.native.faults.garble("server", server.SerializeToString())
    async with following(containerd) as follow:
        assert (follow.watcher.status.source, pids(follow)) == ("native", containerd.pids)
        adapter = follow.watcher.engine
        assert (await adapter.id(), adapter.pid) == ("uuid", 7)
        c2 = containerd.run_task("c2")
        await follow.until_taken(c2)
        containerd.native.pause(c2, NAMESPACE)
        await follow.until(lambda: follow.types(c2) == ["started", "paused"])
        assert follow.fold.alive[c2].paused
        containerd.native.exit(c2, 5, namespace=NAMESPACE)
        await follow.until(lambda: follow.types(c2) == ["started", "paused", "exited"])
        assert follow.fold.events[-1].exit_code == 5
        assert containerd.requests.keys() & {"container_status", "pod_status", "events"} == set()
        assert (containerd.native.requests["task_list"], containerd.native.requests["task_get"]) == (2, 1)


@pytest.mark.parametrize("nonsense", [0, 2**31, 2**32 - 1])
async def test_task_without_a_pid_is_as_with_the_other_sources(
    containerd: Containerd, nonsense: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Its container is alive, which is told once and counted; a sandbox is not."""

    def spoil(id: str) -> str:
        containerd.native.tasks[NAMESPACE, id].pid = nonsense
        return id

    spoil(containerd.pod)
    spoil(containerd.web)
    async with following(containerd) as follow:
        assert pids(follow) == {containerd.web: None}
        (pod,) = await follow.watcher.portfolio.pods()
        assert (pod.sandbox, pod.container_names) == (None, ("web",))
        c2 = spoil(containerd.run_task("c2"))
        await follow.until_taken(c2)
        assert pids(follow)[c2] is None
        adapter = follow.watcher.engine
        assert isinstance(adapter, cri.CRIEngine)
        assert adapter.without_pid >= 2
    assert len(logged(caplog, "no PID")) == 1


@pytest.mark.slow
async def test_state_that_the_cri_shows_does_not_decide_about_life(
    containerd: Containerd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shim tells of a start before the CRI notes it, and the CRI notes an exit only when it is told."""
    monkeypatch.setattr(native, "RECORD_DELAYS", (0.01,))
    c1 = containerd.create(containerd.pod, "c1")
    alive = containerd.pids | {c1: containerd.task(c1)}
    containerd.native.exit(containerd.run_task("dead"), namespace=NAMESPACE)
    containerd.task_of_late_pod("u2")  # which it never learns
    async with following(containerd) as follow:
        assert (pids(follow), follow.stats.unresolved) == (alive, 1)
        c2 = containerd.create(containerd.pod, "c2")
        containerd.task(c2)
        await follow.until_taken(c2)
        assert follow.stats.outages == 0


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


async def test_containers_of_others_in_the_namespace_are_not_seen_and_garbage_does_no_harm(
    containerd: Containerd,
) -> None:
    def publish(namespace: bytes, topic: bytes, event: Any) -> None:
        told = containerd_pb2.Any(
            type_url=f"containerd.events.{type(event).DESCRIPTOR.name}".encode(), value=event.SerializeToString()
        )
        now = containerd_pb2.Timestamp(seconds=int(time.time()))
        envelope = containerd_pb2.Envelope(timestamp=now, namespace=namespace, topic=topic, event=told)
        containerd.native.publish(envelope.SerializeToString())

    containerd.task("foreign", "")
    web = containerd.web.encode()
    async with following(containerd) as follow:
        containerd.task("another", "")
        publish(b"moby", b"/tasks/start", containerd_pb2.TaskStart(container_id=b"c9", pid=1))
        end = containerd_pb2.TaskExit(container_id=web, id=web, pid=containerd.pids[containerd.web])
        publish(b"moby", b"/tasks/exit", end)
        publish(NAMESPACE.encode(), b"/tasks/checkpointed", containerd_pb2.TaskPaused(container_id=web))
        await follow.until_taken(containerd.run_task("marker"))
        assert pids(follow) == containerd.pids
        assert follow.stats.lost == follow.stats.unresolved == 0
        for _ in range(2):
            containerd.native.publish(b"\xff\xff\xff")
        await follow.until_taken(containerd.run_task("next"))
        assert (follow.stats.lost, follow.stats.outages) == (1, 0)


@pytest.mark.slow
async def test_task_whose_shim_is_silent_keeps_what_is_known_also_through_an_outage(containerd: Containerd) -> None:
    faults, tasks = containerd.native.faults, containerd.native._state.tasks
    containerd.run_task("other"), containerd.run_task("another")
    async with following(containerd, audit=0.1, call_timeout=1.0) as follow:
        faults.hang_shim(containerd.web, NAMESPACE, timeout=0)  # its state is unknown, as containerd 1 tells it
        former = tasks.pop((NAMESPACE, containerd.pod))  # left out, as containerd 2 does
        faults.fail("task_get", "DEADLINE_EXCEEDED", id=containerd.pod)
        looks = containerd.native.requests["task_list"]
        await containerd.native.until(lambda: containerd.native.requests["task_list"] > looks + 3)
        assert (pids(follow), follow.stats.unresolved) == (containerd.pids, 2)
        with pytest.raises(EngineTimeout, match=f"the shim of {containerd.web} does not answer"):
            await follow.watcher.engine.inspect(containerd.web)
        containerd.faults.cut_streams()
        await eventually(lambda: follow.stats.syncs == 2)
        assert (pids(follow), follow.types()) == (containerd.pids, [])
        faults.clear()
        tasks[NAMESPACE, containerd.pod] = former
        await eventually(lambda: follow.stats.unresolved == 0)
        containerd.native.exit(containerd.web, namespace=NAMESPACE)
        await follow.until(lambda: follow.types() == ["exited"])
        del containerd.pids[containerd.web]
        assert pids(follow) == containerd.pids


# ---- polling


async def test_poll_that_fails_or_hangs_while_other_calls_are_answered_is_an_outage(
    engine: FakeCRI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "POLL_TIMEOUT", 0.2)
    c1 = engine.run(bare(engine), "c1")
    async with following(engine, source="poll") as follow:
        with engine.faults.fail("pod_list", "INTERNAL"):
            await lost(follow.watcher, EngineError)
            engine.remove(c1)
        await follow.until(lambda: follow.types(c1) == ["exited"])
        assert follow.fold.events[-1].origin is Origin.RESYNC
        with engine.faults.hang("container_list"):
            await lost(follow.watcher, EngineTimeout)
        await follow.watcher.portfolio.in_sync(PATIENCE)


async def test_differences_are_told_once_a_change_of_what_runs_as_an_update(engine: FakeCRI) -> None:
    pod = bare(engine)
    async with following(engine, source="poll") as follow:
        c1 = engine.run(pod, "c1")
        await follow.until_taken(c1)
        labels = [wire.Entry(key=b"a", value=b"b")]
        changed = wire.Container(id=c1.encode(), state=wire.CONTAINER_RUNNING, labels=labels)
        listing = wire.ListContainersResponse(containers=[changed])
        with engine.faults.garble("container_list", listing.SerializeToString()):
            await follow.until(lambda: follow.types(c1) == ["started", "updated"])
            assert follow.fold.alive[c1].labels["a"] == "b"
            engine.exit(c1)
        await follow.until(lambda: follow.types(c1) == ["started", "updated", "exited"])
        looks = engine.requests["pod_list"]
        await engine.until(lambda: engine.requests["pod_list"] > looks + 3)
        assert follow.stats.signals == 3


async def test_container_of_a_pod_that_is_no_longer_listed_keeps_the_labels_of_its_pod(engine: FakeCRI) -> None:
    pod = engine.run_pod("shop", uid="u1")
    c1 = engine.run(pod, "c1")
    async with following(engine, source="poll") as follow:
        engine.faults.garble("pod_list", b"")
        await follow.until(lambda: follow.types(pod) == ["exited"])
        looks = engine.requests["pod_list"]
        await engine.until(lambda: engine.requests["pod_list"] > looks + 3)
        assert follow.fold.alive[c1].labels["io.kubernetes.pod.uid"] == "u1"
        assert follow.types(c1) == []


async def test_looks_never_overlap(engine: FakeCRI) -> None:
    async with connected(engine, "poll") as adapter:
        gate = engine.faults.pause_at("pod_list")
        looks = [asyncio.create_task(adapter.listing()) for _ in range(3)]
        for count in (1, 2, 3):
            await engine.until(lambda: engine.requests["pod_list"] == count)  # noqa: B023 - awaited at once
            assert (gate.held, engine.requests["container_list"]) == (1, 2 * count)
            gate.step()
        await asyncio.gather(*looks)


@pytest.mark.parametrize("taken_over", [False, True], ids=["by one stream", "by one that takes over"])
async def test_what_happens_after_the_first_listing_is_told(engine: FakeCRI, taken_over: bool) -> None:
    pod = bare(engine)
    c1 = engine.run(pod, "c1")
    async with connected(engine, source="poll", poll=0.05) as adapter:
        signals = adapter.signals()
        assert (await anext(signals)).type.value == "subscribed"
        await adapter.listing()
        engine.exit(c1)
        c2 = engine.run(pod, "c2")
        if taken_over:
            former, signals = signals, adapter.signals()
            await anext(signals)
            await former.aclose()  # type: ignore[attr-defined]
        async with asyncio.timeout(PATIENCE):
            told = {(signal.type.value, signal.id) for signal in [await anext(signals), await anext(signals)]}
        assert told == {("exited", c1), ("started", c2)}
        await signals.aclose()  # type: ignore[attr-defined]
