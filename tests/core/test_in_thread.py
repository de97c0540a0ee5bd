"""A watcher in a thread and loop of its own, for programs that have none."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from random import Random
from types import ModuleType
from typing import Any

import pytest

import whalewatch
from tests.conftest import Docker
from tests.support.programs import child
from tests.support.scripted import PATIENCE, ScriptedEngine, box, lost_engine
from tests.support.without_loop import WAITS, there, unsynced, until_waiting
from whalewatch import (
    BlockingSubscription,
    BlockingWatcher,
    ContainerEvent,
    EngineUnavailable,
    EventType,
    NotSynced,
    Portfolio,
    WatchEnded,
    Watcher,
    WatchState,
    containerd,
    cri,
    moby,
)
from whalewatch._core.subscription import MAX_IN_A_ROW
from whalewatch.testing import FakeContainerd, FakeCRI, FakeDocker

PROGRAMS = "tests.support.without_loop"

LEAVES = 30
"""How often a watcher is left while others call it."""


def outcome(wait: Callable[[BlockingWatcher], Any], watcher: BlockingWatcher) -> Any:
    """What a wait returns, or raises."""
    try:
        return wait(watcher)
    except Exception as error:  # noqa: BLE001 - the test tells which
        return error


def test_has_the_methods_of_the_watcher_and_of_the_portfolio_and_their_arguments() -> None:
    def methods(kind: type) -> dict[str, list[inspect.Parameter]]:
        found = {name: getattr(kind, name) for name in dir(kind) if not name.startswith("_")}
        return {n: list(inspect.signature(m).parameters.values()) for n, m in found.items() if inspect.isfunction(m)}

    def properties(kind: type) -> set[str]:
        return {name for name in dir(kind) if isinstance(getattr(kind, name), property)}

    expected = methods(Watcher) | methods(Portfolio)
    del expected["run"], expected["aclose"]  # leaving does it
    assert methods(BlockingWatcher) == expected
    assert properties(BlockingWatcher) == properties(Watcher)


async def test_program_without_a_loop_follows_an_engine(docker: Docker) -> None:
    await docker.control.run("web")
    waits = asyncio.Event()
    loop = asyncio.get_running_loop()

    def program() -> list[object]:
        before = threading.active_count()
        with whalewatch.in_thread(moby.watch(docker.address)) as watcher:
            watcher.ready(PATIENCE)
            found = watcher.container("web")
            pictures = watcher.changes()
            assert [container.name for container in next(pictures)] == ["web"]
            with watcher.events(replay=False) as events:
                loop.call_soon_threadsafe(waits.set)
                event = next(events)
            later = watcher.portfolio.wait_for(lambda container: container.name == "later", PATIENCE)
            assert "later" in next(pictures)
            told = [found and found.name, event.type, event.container.name, later.id, watcher.status.state]
        assert [*pictures] == [], "the iteration ends with the watch"
        return [*told, watcher.total(), watcher.status.state, threading.active_count() - before]

    running = asyncio.create_task(asyncio.to_thread(program))
    await waits.wait()
    later = await docker.control.run("later")
    async with asyncio.timeout(PATIENCE):
        assert await running == ["web", EventType.STARTED, "later", later, WatchState.SYNCED, 2, WatchState.CLOSED, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fake", "adapter"),
    [(FakeDocker, moby), (FakeContainerd, containerd), (FakeCRI, cri)],
    ids=["moby", "containerd", "cri"],
)
async def test_every_engine_can_be_watched_from_a_thread_and_forgotten(fake: Any, adapter: ModuleType) -> None:
    def program(address: str) -> bool:
        with whalewatch.in_thread(adapter.watch(address)) as watcher:
            watcher.ready(PATIENCE)
            return "web" in watcher.snapshot()

    async with fake() as engine:
        engine.run(*([engine.run_pod("pod")] if adapter is cri else []), "web")
        assert await asyncio.to_thread(program, engine.address)
        async with child("-m", PROGRAMS, "forget", engine.address, adapter.__name__.rpartition(".")[2]) as forgetful:
            assert await forgetful.ended() == (0, "True\n", "")


QUERIES: dict[str, tuple[Any, ...]] = {
    "names": (),
    "projects": (),
    "project": ("shop",),
    "containers": ("shop",),
    "container": ("web",),
    "pods": (),
    "pod": ("uid",),
    "total": (),
}


def test_queries_wait_for_the_first_synchronisation_and_answer_from_the_last_picture_after_leaving() -> None:
    engine = ScriptedEngine(box("web", project="shop", labels={"io.kubernetes.pod.uid": "uid"}), box("lone"))
    watcher = whalewatch.in_thread(Watcher(engine))
    asked = {name: partial(getattr(watcher, name), *arguments) for name, arguments in QUERIES.items()}
    with ThreadPoolExecutor(len(asked)) as pool:
        with engine.hold("connect") as hold, watcher:
            assert watcher.snapshot() == watcher.portfolio.snapshot()
            assert not watcher.snapshot().synced
            early = {name: pool.submit(ask) for name, ask in asked.items()}
            until_waiting(watcher, *["first_picture"] * len(asked))
            there(watcher, hold.release)
            answers = {name: asking.result(PATIENCE) for name, asking in early.items()}
            synced = watcher.snapshot()
            calls = watcher.stats.calls
            now = {name: ask() for name, ask in asked.items()}
        assert watcher.stats.calls == {**calls, "close": 1}
        last = {name: ask() for name, ask in asked.items()}
    assert answers == {name: getattr(synced, name)(*more) for name, more in QUERIES.items()} == now == last
    assert answers["container"].project == answers["project"].name == "shop"
    assert (synced.synced, watcher.snapshot().synced) == (True, False)


def test_events_that_wait_are_given_after_leaving_however_many_they_are() -> None:
    many = 2 * MAX_IN_A_ROW + 1
    with whalewatch.in_thread(Watcher(ScriptedEngine(*(box(f"c{number}") for number in range(many))))) as watcher:
        watcher.ready(PATIENCE)
        events = watcher.events()
    told: list[ContainerEvent] = []
    reader = threading.Thread(target=lambda: told.extend(events), daemon=True)
    reader.start()
    reader.join(PATIENCE)
    assert (len(told), reader.is_alive()) == (many, False)


def test_time_outs_are_those_of_the_methods() -> None:
    with unsynced() as (watcher, hold):
        for wait in (watcher.ready, watcher.in_sync):
            with pytest.raises(NotSynced, match=r"within 0\.01 s"):
                wait(0.01)
        there(watcher, hold.release)
        watcher.ready(PATIENCE)
        with pytest.raises(NotSynced, match=r"no container matched 'other' within 0\.01 s"):
            watcher.wait_for("other", timeout=0.01)
        with pytest.raises(NotSynced, match="not gone: 'web'"):
            watcher.wait_gone("web", timeout=0.01)
        until_waiting(watcher)


def test_watch_that_ends_with_an_error_raises_it_in_each_caller_as_its_own() -> None:
    engine = ScriptedEngine()
    with ThreadPoolExecutor(2 * len(WAITS)) as pool:
        with engine.hold("connect") as hold, whalewatch.in_thread(Watcher(engine, retry=None)) as watcher:
            early = [pool.submit(outcome, wait, watcher) for wait, _ in WAITS.values() for _ in "ab"]
            until_waiting(watcher, *(coroutine for _, coroutine in WAITS.values() for _ in "ab"))
            with engine.fail("connect", lost_engine()):
                there(watcher, hold.release)
                raised = [one.result(PATIENCE) for one in early]
            raised += [outcome(wait, watcher) for wait, _ in WAITS.values()]
        raised += [outcome(wait, watcher) for wait, _ in WAITS.values()]
    statuses = [one for one in raised if isinstance(one, list)]
    errors = [one for one in raised if not isinstance(one, list)]
    assert [status[-1].state for status in statuses] == [WatchState.CLOSED] * 4
    assert [str(error) for error in errors] == [str(lost_engine())] * (4 * (len(WAITS) - 1))
    assert {type(error) for error in errors} == {EngineUnavailable}
    assert len({id(error) for error in errors}) == len(errors)


def test_leaving_ends_all_that_waits_in_other_threads() -> None:
    with ThreadPoolExecutor(len(WAITS)) as pool:
        with unsynced() as (watcher, _):
            waiting = {name: pool.submit(outcome, wait, watcher) for name, (wait, _) in WAITS.items()}
            until_waiting(watcher, *(coroutine for _, coroutine in WAITS.values()))
        ended = {name: wait.result(PATIENCE) for name, wait in waiting.items()}
    after = {name: outcome(wait, watcher) for name, (wait, _) in WAITS.items()}
    for found, states in (
        (ended, [WatchState.CONNECTING, WatchState.CLOSED]),
        (after, [WatchState.CLOSED]),
    ):
        assert found.pop("events") == []
        assert [status.state for status in found.pop("status_changes")] == states
        assert {name: type(error) for name, error in found.items()} == dict.fromkeys(found, WatchEnded)


def test_leaving_at_any_moment_leaves_nobody_waiting() -> None:
    dice = Random(1)
    waits = [wait for wait, _ in WAITS.values()]
    for _ in range(LEAVES):
        with ThreadPoolExecutor(4) as pool, unsynced() as (watcher, _):
            over = threading.Event()

            def call(watcher: BlockingWatcher = watcher, over: threading.Event = over) -> list[Any]:
                found = []
                while not over.is_set():
                    if isinstance(one := outcome(dice.choice(waits), watcher), Exception):
                        found.append(one)
                return found

            callers = [pool.submit(call) for _ in range(4)]
            watcher.__exit__(None, None, None)
            over.set()
            errors = [error for caller in callers for error in caller.result(PATIENCE)]
            assert {type(error) for error in errors} <= {WatchEnded}


def test_misuse_says_what_is_wrong_and_starts_no_thread() -> None:
    threads = threading.active_count()
    watcher = whalewatch.in_thread(Watcher(ScriptedEngine()))
    for wait, _ in WAITS.values():
        with pytest.raises(RuntimeError, match="`with`"):
            wait(watcher)
    assert watcher.snapshot() is watcher._feed.snapshot
    with watcher, pytest.raises(RuntimeError, match="`with` before"):
        watcher.__enter__()
    with pytest.raises(RuntimeError, match="`with` before"):
        watcher.__enter__()
    with pytest.raises(RuntimeError, match="one use only"):
        whalewatch.in_thread(watcher._watcher).__enter__()
    assert threading.active_count() == threads


def test_error_at_entering_is_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = threading.active_count()

    def refuse() -> None:
        raise OSError("too many open files")

    monkeypatch.setattr("asyncio.events.new_event_loop", refuse)
    with pytest.raises(OSError, match="too many open files"):
        whalewatch.in_thread(Watcher(ScriptedEngine())).__enter__()
    assert threading.active_count() == threads


def test_watchers_own_thread_may_not_wait_for_itself() -> None:
    with unsynced() as (watcher, hold):
        there(watcher, hold.release)
        with pytest.raises(RuntimeError, match="own thread"):
            watcher.wait_for(lambda _: bool(watcher.wait_for("web")))
        assert watcher.wait_for(lambda container: watcher.container("web") == container, PATIENCE) == box("web")
        with pytest.raises(ZeroDivisionError):
            watcher.wait_for(lambda _: bool(1 / 0))


@pytest.fixture
def synced() -> Any:
    with ExitStack() as stack:
        watcher, hold = stack.enter_context(unsynced())
        there(watcher, hold.release)
        watcher.ready(PATIENCE)
        yield watcher


def test_events_are_filtered_in_the_readers_thread_and_collapse_for_a_slow_one(
    synced: BlockingWatcher[ScriptedEngine],
) -> None:
    filtered_in = set()

    def where(event: whalewatch.ContainerEvent) -> bool:
        filtered_in.add(threading.current_thread())
        return event.container.name != "hidden"

    slow = synced.events(buffer=1)
    events = synced.events(types={EventType.STARTED}, where=where)
    for name in ("hidden", "a", "b"):
        there(synced, synced.engine.start, box(name))
        synced.wait_for(name, PATIENCE)
    there(synced, synced.engine.exit, "a")
    synced.wait_gone("a", PATIENCE)
    assert [next(events).container.name for _ in range(3)] == ["web", "a", "b"]
    assert filtered_in == {threading.main_thread()}
    told = [next(slow) for _ in range(3)]
    assert ([event.container.name for event in told], slow.stats.collapses) == (["web", "hidden", "b"], 1)
    assert slow.revision == synced.snapshot().revision


def test_subscription_has_one_reader_and_ends_when_another_thread_closes_it(
    synced: BlockingWatcher[ScriptedEngine],
) -> None:
    with synced.events(replay=False) as events, ThreadPoolExecutor(1) as pool:
        reader = pool.submit(list, events)
        until_waiting(synced, "Subscription._more")
        with pytest.raises(RuntimeError, match="has a reader already"):
            next(events)
        events.close()
        assert reader.result(PATIENCE) == []
        events.close()
        assert list(events) == []
    assert isinstance(events, BlockingSubscription)
    until_waiting(synced)


def test_interrupt_before_a_wait_has_its_future_leaves_nothing_waiting(
    synced: BlockingWatcher[ScriptedEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = asyncio.run_coroutine_threadsafe

    def interrupted(*arguments: Any) -> None:
        begin(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "run_coroutine_threadsafe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            synced.wait_for("never")
    until_waiting(synced)


async def test_interrupt_ends_a_wait_at_once_and_nothing_else() -> None:
    async with child("-m", PROGRAMS, "interrupt") as program:
        told = "".join(f"{name}\n" for name in WAITS)
        assert await program.ended() == (0, f"{told}leaving\nMainThread\n", "")


async def test_forked_child_is_told_and_its_parent_goes_on() -> None:
    async with FakeDocker() as fake, child("-W", "ignore", "-m", PROGRAMS, "fork", fake.address) as program:
        assert await program.line() == "child 0\n"
        fake.run("later")
        assert await program.ended() == (0, "1 stream, 0 outages, 0 reopened\n", "")
        assert fake.subscribers == 0
