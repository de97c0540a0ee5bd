"""Exits that the kernel tells: applied at once and for good, whatever the engine says, and amended by what it says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest

from tests.support.followed import AT_ONCE, Followed, eventually, followed
from tests.support.scripted import ScriptedEngine, at, box, turns
from whalewatch import Container, ContainerEvent, EventType, ListedContainer, Listing, Origin, SignalType, Watcher
from whalewatch._core import kernel
from whalewatch._linux import processes
from whalewatch._linux.processes import Refusal

pytestmark = [pytest.mark.promise(2), pytest.mark.promise(3)]

KERNEL, ENGINE = Origin.KERNEL, Origin.ENGINE


class Processes:
    """Stands for the kernel's: knows what is watched, and tells what a test says."""

    made: ClassVar[list[Processes]] = []
    refusal: ClassVar[Refusal | None] = None

    def __init__(self, died: Callable[[Any, int | None, bool], None]) -> None:
        self.died = died
        self.watched: dict[Any, str] = {}
        self.dead: set[Any] = set()
        self.closed = False
        self.made.append(self)

    def __len__(self) -> int:
        return len(self.watched)

    def watch(self, key: Any, pid: int, id: str) -> Refusal | None:
        refusal = Refusal.GONE if key in self.dead else self.refusal
        if refusal is None:
            self.watched[key] = id
        return refusal

    def forget(self, key: Any) -> None:
        self.watched.pop(key, None)

    def close(self) -> None:
        self.closed = True
        self.watched.clear()

    def die(self, id: str, pid: int, code: int | None = None, *, final: bool = True) -> None:
        assert (id, pid) in self.watched
        self.dead.add((id, pid))
        self.died((id, pid), code, final)


@pytest.fixture(autouse=True)
def simulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Simulate the kernel, and take every engine for one of this machine."""
    monkeypatch.setattr("os.pidfd_open", None, raising=False)
    monkeypatch.setattr(processes, "Processes", Processes)
    monkeypatch.setattr(processes, "is_local", lambda _: True)
    yield
    Processes.made.clear()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for exit codes as long as a test may."""
    monkeypatch.setattr(kernel, "CODE_DELAY", 0.05)
    monkeypatch.setattr(kernel, "REAP_DELAY", 0.02)


@asynccontextmanager
async def watching(*containers: Container, **options: Any) -> AsyncIterator[tuple[ScriptedEngine, Followed, Processes]]:
    engine = ScriptedEngine(*(containers or [box("a")]))
    async with followed(Watcher(engine, retry=AT_ONCE, audit=None, **options)) as follow:
        yield engine, follow, Processes.made[-1]


async def told(follow: Followed, count: int = 1) -> list[ContainerEvent]:
    """Wait for so many events after the synchronisation, and see that there are no more."""
    await follow.until(lambda: len(follow.news()) >= count)
    await turns(20)
    assert len(follow.news()) == count, follow.news()
    return follow.news()


async def die_while_synchronising(engine: ScriptedEngine, follow: Followed, system: Processes) -> None:
    with engine.hold("listing") as hold:
        engine.end()
        await hold.reached()
        system.die("a", 1, 9)
        del engine.alive["a"]
    await follow.until(lambda: follow.snapshot.synced)


def short(event: ContainerEvent) -> tuple[Any, ...]:
    return event.type, event.origin, event.exit_code, event.requested, event.oom


# ---- an exit, and what the engine says of it


AMENDED = {
    "nothing": ([], (9, None, None)),
    "the exit": ([(SignalType.EXITED, {"pid": 1, "exit_code": 9})], (9, None, None)),
    "another code": ([(SignalType.EXITED, {"pid": 1, "exit_code": 0})], (9, None, None)),
    "a stop, then the exit": ([(SignalType.STOPPING, {}), (SignalType.EXITED, {"pid": 1})], (9, True, None)),
    "that memory ran out": ([(SignalType.OOM, {}), (SignalType.EXITED, {"pid": 1})], (9, None, True)),
    "both with the exit": ([(SignalType.EXITED, {"pid": 1, "oom": True, "requested": True})], (9, True, True)),
    "a stop long after the exit": (
        [(SignalType.EXITED, {"pid": 1}), (SignalType.STOPPING, {"moment": 9})],
        (9, None, None),
    ),
    "a stop after the exit": ([(SignalType.EXITED, {"pid": 1}), (SignalType.STOPPING, {})], (9, True, None)),
    "the exit twice": ([(SignalType.EXITED, {"pid": 1, "oom": False})] * 2, (9, None, False)),
    "the exit of another process": ([(SignalType.EXITED, {"pid": 8, "oom": True})], (9, None, None)),
}


@pytest.mark.parametrize(("signals", "known"), AMENDED.values(), ids=AMENDED)
async def test_exit_is_told_at_once_and_what_the_engine_says_of_it_later_amends_the_endings(
    signals: list[tuple[SignalType, dict[str, Any]]], known: tuple[Any, ...]
) -> None:
    async with watching(clock=lambda: at(1.5)) as (engine, follow, system):
        system.die("a", 1, 9)
        assert "a" not in follow.snapshot, "at once"
        del engine.alive["a"]
        (exited,) = await told(follow)
        assert short(exited) == (EventType.EXITED, KERNEL, 9, None, None)
        before = follow.stats.signals
        for type_, more in signals:
            engine.tell(type_, "a", **{"moment": 1, **more})
        await follow.until_stats(lambda stats: stats.signals == before + len(signals))
        await told(follow)
        (ending,) = follow.watcher.endings
        assert (ending.exit_code, ending.requested, ending.oom) == known
        assert (ending.container, ending.revision, ending.timestamp) == (
            *(exited.container, exited.revision, exited.timestamp),
        )
        assert (follow.stats.kernel.first, follow.stats.drift, len(system)) == (1, 0, 0)


async def test_what_the_engine_has_told_before_goes_with_the_exit() -> None:
    async with watching() as (engine, follow, system):
        engine.tell(SignalType.STOPPING, "a", moment=1)
        await follow.until_stats(lambda stats: stats.signals == 1)
        system.die("a", 1, 0)
        assert short((await told(follow))[0]) == (EventType.EXITED, KERNEL, 0, True, None)


async def test_engine_that_is_first_tells_it_and_the_kernel_adds_nothing() -> None:
    async with watching() as (engine, follow, system):
        engine.exit("a", 3)
        (exited,) = await told(follow)
        system.die("a", 1, 9)
        assert await told(follow) == [exited]
        assert short(exited) == (EventType.EXITED, ENGINE, 3, None, None)
        assert (follow.stats.kernel.first, len(system)) == (0, 0)


async def test_restart_under_the_same_id_is_told_as_exit_and_start() -> None:
    async with watching() as (engine, follow, system):
        system.die("a", 1, 9)
        engine.start(box("a", pid=2, start=1))
        await told(follow, 2)
        engine.tell(SignalType.EXITED, "a", moment=0.5, pid=1, exit_code=9)
        await turns(20)
        assert follow.types() == ["exited", "started"]
        assert system.watched == {("a", 2): "a"}


async def test_restart_that_the_engine_tells_first_leaves_the_new_run_alone() -> None:
    async with watching() as (engine, follow, system):
        engine.start(box("a", pid=2, start=1))
        await told(follow, 2)
        system.die("a", 1, 9)
        assert (await told(follow, 2))[-1].container.pid == 2
        assert follow.stats.kernel.first == 0


# ---- without exit codes


@pytest.mark.parametrize("final", [True, False], ids=["older kernel", "not reaped"])
async def test_in_sync_the_code_of_the_engine_is_awaited(final: bool) -> None:
    async with watching() as (engine, follow, system):
        system.die("a", 1, None, final=final)
        await turns(20)
        assert "a" in follow.snapshot
        engine.exit("a", 4)
        assert short((await told(follow))[0]) == (EventType.EXITED, ENGINE, 4, None, None)
        assert follow.stats.kernel.first == 0


async def test_code_of_a_process_that_is_reaped_soon_is_told() -> None:
    async with watching() as (_, follow, system):
        system.die("a", 1, None, final=False)
        await turns(20)
        assert not follow.news()
        system.die("a", 1, 7)
        assert short((await told(follow))[0]) == (EventType.EXITED, KERNEL, 7, None, None)


async def test_engine_that_says_nothing_is_awaited_for_a_while_only(quick: None) -> None:
    async with watching() as (engine, follow, system):
        del engine.alive["a"]
        system.die("a", 1, None)
        assert not follow.news()
        (exited,) = await told(follow)
        assert short(exited) == (EventType.EXITED, KERNEL, None, None, None)
        engine.tell(SignalType.EXITED, "a", moment=1, exit_code=4)
        await eventually(lambda: follow.watcher.endings[0].exit_code == 4)
        assert await told(follow) == [exited]


@pytest.mark.parametrize("final", [True, False], ids=["older kernel", "not reaped"])
@pytest.mark.parametrize("polled", [True, False])
async def test_engine_that_is_polled_or_lost_is_not_awaited(
    monkeypatch: pytest.MonkeyPatch, final: bool, polled: bool
) -> None:
    monkeypatch.setattr(kernel, "CODE_DELAY", 600.0)
    engine = ScriptedEngine(box("a"))
    if polled:
        engine.source = "poll"
    async with followed(Watcher(engine, retry=AT_ONCE, audit=None)) as follow:
        with engine.hold("connect") as hold:
            if not polled:
                engine.end()
                await hold.reached()
            Processes.made[-1].die("a", 1, None, final=final)
            assert short((await told(follow))[0]) == (EventType.EXITED, KERNEL, None, None, None)
            del engine.alive["a"]
        await eventually(lambda: follow.snapshot.synced)
        await told(follow)


# ---- readings and listings that are out of date


async def test_reading_from_before_the_exit_does_not_raise_the_dead() -> None:
    async with watching() as (engine, follow, system):
        with engine.hold("after inspect a") as hold:
            engine.tell(SignalType.CHANGED, "a", moment=1)
            await hold.reached()
            system.die("a", 1, 9)
            assert "a" not in follow.snapshot
            del engine.alive["a"]
        await turns(20)
        assert follow.types() == ["exited"]
        assert follow.stats.drift == 0


async def test_listing_from_before_the_exit_does_not_raise_the_dead() -> None:
    async with watching(box("a"), box("b", pid=2)) as (engine, follow, system):
        stale = {id: ListedContainer(container) for id, container in engine.alive.items()}
        engine.listings = [Listing(containers=stale, absence_is_death=True)] * 2
        with engine.hold("connect") as hold:
            engine.end()
            await hold.reached()
            system.die("a", 1, 9)
            (exited,) = await told(follow)
            assert "a" not in follow.snapshot
            assert not follow.snapshot.synced
            del engine.alive["a"]
        await eventually(lambda: follow.snapshot.synced)
        assert await told(follow) == [exited]
        assert follow.watcher.stats.drift == 0


async def test_signal_from_before_the_exit_does_not_raise_the_dead_with_what_it_brings_along() -> None:
    async with watching() as (engine, follow, system):
        run = engine.alive["a"]
        system.die("a", 1, 9)
        del engine.alive["a"]
        engine.tell(SignalType.STARTED, "a", moment=1, container=run)
        await follow.until_stats(lambda stats: stats.signals == 1)
        await told(follow)


async def test_start_that_the_engine_tells_after_the_exit_is_no_other_run() -> None:
    async with watching() as (engine, follow, system):
        system.die("a", 1, 9)
        run = engine.alive.pop("a")
        engine.tell(SignalType.STARTED, "a", moment=0.1, facts=run)
        engine.tell(SignalType.EXITED, "a", moment=0.2, exit_code=9)
        await follow.until_stats(lambda stats: stats.signals == 2)
        await told(follow)


async def test_next_run_is_found_by_the_synchronisation_in_which_the_kernel_tells_the_end_of_the_last() -> None:
    async with watching() as (engine, follow, system):
        with engine.hold("listing") as hold:
            engine.end()
            await hold.reached()
            engine.alive["a"] = box("a", pid=2, start=1)
            system.die("a", 1, 9)
        await told(follow, 2)
        assert [event.container.pid for event in follow.news()] == [1, 2]
        await follow.until_stats(lambda stats: stats.audits == 2)
        assert follow.stats.drift == 0


async def test_exit_while_synchronising_is_told_at_once_and_once() -> None:
    async with watching(box("a"), box("b", pid=2)) as (engine, follow, system):
        with engine.hold("listing") as hold:
            engine.end()
            await hold.reached()
            system.die("a", 1, 9)
            (exited,) = await told(follow)
            assert (exited.container.id, follow.snapshot.synced) == ("a", False)
            del engine.alive["a"]
        await eventually(lambda: follow.snapshot.synced)
        with engine.hold("after inspect b") as hold:
            engine.end()
            await hold.reached()
            system.die("b", 2, 9)
            await told(follow, 2)
            del engine.alive["b"]
        await eventually(lambda: follow.snapshot.synced)
        await told(follow, 2)


async def test_reading_is_believed_again_if_the_process_lives_or_after_a_minute_if_that_is_not_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with watching() as (engine, follow, system):
        run = engine.alive["a"]
        known = follow.watcher._kernel
        system.die("a", 1, 9)
        assert known.has_ended(run)
        assert not known.has_ended(box("a", pid=1, start=5)), "another run with the same PID"
        assert not known.has_ended(box("a", pid=None))
        moment = asyncio.get_running_loop().time()
        monkeypatch.setattr(known, "_loop_time", lambda: moment + 3600)
        assert known.has_ended(run), "an engine that was frozen for an hour still says so"
        system.dead.clear()
        monkeypatch.setattr(Processes, "refusal", Refusal.LIMIT)
        monkeypatch.setattr(known, "_loop_time", lambda: moment + 59)
        assert known.has_ended(run)
        monkeypatch.setattr(known, "_loop_time", lambda: moment + 61)
        assert not known.has_ended(run)
        monkeypatch.setattr(known, "_loop_time", lambda: moment)
        assert not known.has_ended(run), "it was forgotten"
        monkeypatch.setattr(Processes, "refusal", None)
        engine.alive["a"] = box("a", pid=2, start=1)
        engine.tell(SignalType.STARTED, "a", moment=1)
        await told(follow, 2)
        system.die("a", 2, 9)
        system.dead.clear()
        assert not known.has_ended(engine.alive["a"]), "its process can be watched: another one, with its PID"


async def test_what_waits_for_an_inspect_goes_with_the_exit_that_the_kernel_tells() -> None:
    async with watching() as (engine, follow, system):
        with engine.hold("inspect a") as hold:
            engine.tell(SignalType.CHANGED, "a", moment=1)
            await hold.reached()
            engine.tell(SignalType.STOPPING, "a", moment=2)
            engine.tell(SignalType.EXITED, "a", moment=3, exit_code=9, oom=True)
            await follow.until_stats(lambda stats: stats.signals == 3)
            del engine.alive["a"]
            system.die("a", 1, None)
            await turns(20)
            follow.watcher._kernel._tell(("a", 1))  # a second later
            assert short((await told(follow))[0]) == (EventType.EXITED, KERNEL, 9, True, True)
        await turns(20)
        await told(follow)
        assert follow.watcher.stats.unresolved == 0


async def test_what_is_told_of_a_later_run_does_not_amend_a_former_one() -> None:
    async with watching() as (engine, follow, system):
        await die_while_synchronising(engine, follow, system)
        engine.start(box("a", pid=2, start=1))
        await told(follow, 2)
        engine.tell(SignalType.EXITED, "a", moment=2, exit_code=3, oom=True, requested=True)
        await told(follow, 3)
        assert [(event.container.pid, event.oom) for event in follow.watcher.endings] == [(1, None), (2, True)]


async def test_brief_life_after_an_exit_while_synchronising_is_told() -> None:
    async with watching() as (engine, follow, system):
        await die_while_synchronising(engine, follow, system)
        engine.tell(SignalType.STARTED, "a", moment=2, facts=box("a"))
        engine.tell(SignalType.EXITED, "a", moment=3, exit_code=0)
        assert [event.brief for event in await told(follow, 3)] == [False, True, True]


async def test_that_no_stop_was_asked_for_is_not_known_of_an_exit_out_of_sync() -> None:
    async with watching() as (engine, follow, system):
        await die_while_synchronising(engine, follow, system)
        engine.tell(SignalType.EXITED, "a", moment=3, exit_code=9, requested=False, oom=False)
        await eventually(lambda: [event.oom for event in follow.watcher.endings] == [False])
        assert [event.requested for event in follow.watcher.endings] == [None]


async def test_only_so_many_ends_are_kept_in_mind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "MAX_ENDED", 3)
    async with watching(*(box(f"c{pid}", pid=pid) for pid in range(1, 6))) as (engine, follow, system):
        runs = [*engine.alive.values()]
        for run in runs:
            system.die(run.id, run.pid or 0, 9)
        await told(follow, 5)
        assert [follow.watcher._kernel.has_ended(run) for run in runs] == [False, False, True, True, True]


# ---- what is watched


async def test_switched_off_nothing_is_watched() -> None:
    async with followed(Watcher(ScriptedEngine(box("a")), kernel=False)) as follow:
        assert Processes.made == []
        stats = follow.stats.kernel
        assert (stats.watched, dict(stats.refused), stats.first) == (0, {}, 0)


async def test_where_there_is_no_pidfd_nothing_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.pidfd_open")
    async with followed(Watcher(ScriptedEngine(box("a")))) as follow:
        assert Processes.made == []
        assert follow.stats.kernel.watched == 0


async def test_engine_of_another_machine_is_looked_at_once_in_each_session(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def not_local(address: str) -> bool:
        asked.append(address)
        return False

    monkeypatch.setattr(processes, "is_local", not_local)
    async with watching(box("a"), box("b", pid=2)) as (engine, follow, system):
        assert (asked, dict(follow.stats.kernel.refused), len(system)) == ([engine.address], {"engine": 2}, 0)


async def test_refusals_are_counted_and_the_engine_tells_those_exits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Processes, "refusal", Refusal.FOREIGN)
    async with watching(box("a"), box("b", pid=None)) as (engine, follow, system):
        assert (dict(follow.stats.kernel.refused), len(system)) == ({"foreign": 1}, 0)
        engine.exit("a", 3)
        assert short((await told(follow))[0]) == (EventType.EXITED, ENGINE, 3, None, None)


async def test_id_in_a_namespace_is_looked_for_without_it() -> None:
    async with watching(box("k8s.io/web")) as (_, follow, system):
        assert system.watched == {("k8s.io/web", 1): "web"}
        assert follow.stats.kernel.watched == 1


async def test_leaving_ends_what_waits_and_closes(quick: None) -> None:
    async with watching() as (_, _, system):
        system.die("a", 1, None, final=False)
    await asyncio.sleep(0.1)
    assert system.closed
    assert system.watched == {}
