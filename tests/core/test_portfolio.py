"""What applications ask, and the values that they get."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.scripted import (
    PATIENCE,
    Publisher,
    ScriptedEngine,
    alive,
    at,
    begun,
    box,
    lost_engine,
    turns,
    within,
)
from whalewatch import (
    Container,
    EngineUnavailable,
    EventType,
    FrozenMapping,
    Health,
    NotSynced,
    Port,
    Portfolio,
    Project,
    Snapshot,
    WatchEnded,
    Watcher,
)
from whalewatch._core.feed import Feed

pytestmark = pytest.mark.promise(7)

Wanted = str | Callable[[Container], bool]

SHOP: dict[str, Any] = {"project": "shop"}


def portfolio(*containers: Container) -> Portfolio:
    return Portfolio(Publisher(*containers).feed)


# ---- queries


ID = "0123456789abcdef" * 4
ZOO, WEB, TAKEN, LATE, LAST = (
    box("z", project="zoo"),
    box(ID, name="web", **SHOP),
    box("taken", name="other"),
    box("late", name="taken", start=30, **SHOP),
    box("last", name="taken", start=None, **SHOP),
)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (("names",), ("shop", "zoo")),
        (("projects",), (Project("", (TAKEN,)), Project("shop", (LAST, LATE, WEB)), Project("zoo", (ZOO,)))),
        (("project", "shop"), Project("shop", (LAST, LATE, WEB))),
        (("project", ""), Project("", (TAKEN,))),
        (("project", "unknown"), None),
        (("containers",), (ZOO, WEB, TAKEN, LATE, LAST)),
        (("containers", "shop"), (LAST, LATE, WEB)),
        (("containers", ""), (TAKEN,)),
        (("containers", "unknown"), ()),
        (("total",), 5),
        (("container", ID), WEB),
        (("container", "web"), WEB),
        (("container", "taken"), TAKEN),
        *((("container", part), None) for part in (ID[:12], ID[:-1], ID.upper(), "we", "/web", "")),
    ],
)
async def test_portfolio_and_its_snapshots_answer_alike(query: tuple[str, ...], expected: object) -> None:
    """In order of first sight, or of a project by name; full ids and names only, and an id wins over a name."""
    asked, (name, *arguments) = portfolio(ZOO, WEB, TAKEN, LATE, LAST), query
    assert await getattr(asked, name)(*arguments) == getattr(asked.snapshot(), name)(*arguments) == expected


async def test_project_is_none_where_no_container_of_it_is_alive_except_the_nameless() -> None:
    publisher = Publisher(box("a", **SHOP))
    asked = Portfolio(publisher.feed)
    assert await asked.projects() == (Project(""), Project("shop", (box("a", **SHOP),)))
    publisher.exit("a")
    assert await asked.project("shop") is None
    publisher.start(box("b"))
    assert await asked.project("") == Project("", (box("b"),))


@pytest.mark.parametrize(
    "query",
    [
        lambda asked: asked.names(),
        lambda asked: asked.projects(),
        lambda asked: asked.project("shop"),
        lambda asked: asked.project(""),
        lambda asked: asked.containers(),
        lambda asked: asked.container("a"),
        lambda asked: asked.total(),
        lambda asked: asked.wait_gone("b"),
        lambda asked: asked.in_sync(),
    ],
)
async def test_queries_wait_for_the_first_synchronisation_and_never_ask_the_engine(
    query: Callable[[Portfolio], Awaitable[Any]],
) -> None:
    engine = ScriptedEngine(box("a", **SHOP))
    with engine.hold("listing") as hold:
        async with Watcher(engine) as watcher:
            await hold.reached()
            waiting = asyncio.ensure_future(query(watcher.portfolio))
            await turns(5)
            assert not waiting.done()
            hold.release()
            await within(waiting)
            await engine.until(lambda: engine.calls["listing"] == 2)
            before = dict(engine.calls)
            for _ in range(10):
                await query(watcher.portfolio)
            assert engine.calls == before


async def test_snapshot_does_not_wait() -> None:
    snapshot = Portfolio(Feed()).snapshot()
    assert (len(snapshot), snapshot.revision, snapshot.synced) == (0, 0, False)


async def test_query_that_waits_is_told_of_the_end() -> None:
    for error, expected in ((None, WatchEnded), (lost_engine(), EngineUnavailable)):
        feed = Feed()
        asked = Portfolio(feed)
        waiting = [asyncio.create_task(asked.names()), asyncio.create_task(asked.names())]
        await asyncio.sleep(0)
        feed.end(error)
        raised = await within(asyncio.gather(*waiting, return_exceptions=True))
        assert [type(one) for one in raised] == [expected] * 2
        assert raised[0] is not raised[1]
        with pytest.raises(expected):
            await asked.total()


async def test_queries_after_the_end_answer_from_the_last_picture() -> None:
    async with Watcher(ScriptedEngine(box("a", **SHOP))) as watcher:
        await watcher.ready(PATIENCE)
    asked = watcher.portfolio
    assert (await asked.names(), await asked.container("a")) == (("shop",), box("a", **SHOP))
    assert await asked.wait_for("a") == box("a", **SHOP)
    await asked.wait_gone("b")
    assert not asked.snapshot().synced
    for never in (asked.wait_for("b"), asked.wait_gone("a"), asked.in_sync()):
        with pytest.raises(WatchEnded):
            await within(never)


# ---- wait_for


ways_to_ask = pytest.mark.parametrize("wanted", ["id", "name", lambda c: c.pid == 7], ids=["id", "name", "predicate"])


@ways_to_ask
async def test_wait_for_what_is_there_returns_at_once(wanted: Wanted) -> None:
    there = box("id", name="name", pid=7)
    assert await portfolio(box("other"), there).wait_for(wanted, timeout=0) == there


async def test_wait_for_waits_for_the_first_synchronisation_too() -> None:
    engine = ScriptedEngine(box("a"))
    with engine.hold("listing") as hold:
        async with Watcher(engine) as watcher:
            waiting = asyncio.create_task(watcher.portfolio.wait_for("a"))
            await hold.reached()
            assert not waiting.done()
            hold.release()
            assert await within(waiting) == box("a")


Deeds = tuple[tuple[Any, ...], ...]


async def passes(publisher: Publisher, waiting: asyncio.Task[Any], in_vain: Deeds, then: Deeds) -> Any:
    """Let this happen, which does not end a wait, then that, which does; return what it was for."""
    for method, *arguments in in_vain:
        publisher.start(arguments[0]) if method == "start" else publisher.exit(arguments[0])
        await turns(3)
        assert not waiting.done()
    for method, *arguments in then:
        getattr(publisher, method)(*arguments)
    return await within(waiting)


@ways_to_ask
async def test_wait_for_what_comes_later(wanted: Wanted) -> None:
    publisher, there = Publisher(), box("id", name="name", pid=7)
    waiting = await begun(Portfolio(publisher.feed).wait_for(wanted))
    assert await passes(publisher, waiting, (("start", box("other")),), (("start", there),)) == there


async def test_wait_for_is_satisfied_by_a_change() -> None:
    publisher = Publisher(box("a", health=Health.STARTING))
    waiting = await begun(Portfolio(publisher.feed).wait_for(lambda c: c.health is Health.HEALTHY))
    publisher.change("a", health=Health.HEALTHY)
    assert (await within(waiting)).health is Health.HEALTHY


async def test_wait_for_is_told_of_a_brief_life_and_not_satisfied_by_an_exit() -> None:
    publisher = Publisher(box("a"))
    brief = await begun(Portfolio(publisher.feed).wait_for("brief"))
    assert await passes(publisher, brief, (), (("start", box("brief")), ("exit", "brief"))) == box("brief")
    reborn = await begun(Portfolio(publisher.feed).wait_for(lambda c: c.name == "b" or c.pid == 2))
    assert await passes(publisher, reborn, (("exit", "a"),), (("start", box("a", pid=2)),)) == box("a", pid=2)


async def test_wait_for_in_vain_says_what_and_why() -> None:
    engine = ScriptedEngine()
    with engine.fail("connect", lost_engine()):
        async with Watcher(engine) as watcher:
            await engine.until(lambda: engine.calls["connect"])
            with pytest.raises(NotSynced, match="'web'") as caught:
                await watcher.portfolio.wait_for("web", timeout=0.05)
            assert caught.value.__cause__ is watcher.status.error is not None
    publisher = Publisher(box("a"))
    with pytest.raises(NotSynced, match=r"0\.01 s") as caught:
        await Portfolio(publisher.feed).wait_for("web", timeout=0.01)
    assert caught.value.__cause__ is None
    assert isinstance(caught.value, TimeoutError)


async def test_predicate_runs_in_the_callers_task_and_its_error_reaches_the_caller() -> None:
    publisher = Publisher(box("a"))
    tasks = []

    def wanted(container: Container) -> bool:
        tasks.append(asyncio.current_task())
        return 1 // (container.pid or 0) < 0

    waiting = await begun(Portfolio(publisher.feed).wait_for(wanted))
    publisher.start(box("b", pid=0))
    with pytest.raises(ZeroDivisionError):
        await within(waiting)
    assert tasks == [waiting, waiting]


async def test_time_out_of_the_callers_own_predicate_is_not_taken_for_ours() -> None:
    def wanted(container: Container) -> bool:
        raise TimeoutError("the application's own")

    with pytest.raises(TimeoutError, match="own") as caught:
        await portfolio(box("a")).wait_for(wanted, timeout=5)
    assert not isinstance(caught.value, NotSynced)


async def test_waits_leave_no_subscription_behind() -> None:
    publisher = Publisher(box("a"))
    asked = Portfolio(publisher.feed)
    await asked.wait_for("a")
    with pytest.raises(NotSynced):
        await asked.wait_for("b", timeout=0.01)
    with pytest.raises(NotSynced):
        await asked.wait_gone("a", timeout=0.01)
    waiting = await begun(asked.wait_for("c"))
    waiting.cancel()
    await asyncio.wait({waiting})
    assert waiting.cancelled()
    assert (publisher.feed._subscribers, publisher.feed._waiting) == ([], set())
    assert publisher.feed.changed._sleepers == set()


# ---- wait_gone


@pytest.mark.parametrize("wanted", ["b", lambda c: c.name == "b"], ids=["name", "predicate"])
async def test_wait_gone_returns_at_once_if_nothing_matches(wanted: Wanted) -> None:
    await portfolio(box("a")).wait_gone(wanted, timeout=0)


@ways_to_ask
async def test_wait_gone_waits_for_the_exit(wanted: Wanted) -> None:
    publisher = Publisher(box("other"), box("id", name="name", pid=7))
    waiting = await begun(Portfolio(publisher.feed).wait_gone(wanted))
    publisher.change("id", paused=True)
    await passes(publisher, waiting, (("exit", "other"),), (("exit", "id"),))


async def test_restart_under_the_same_id_counts_as_gone_and_so_does_rebirth_under_the_same_name() -> None:
    publisher = Publisher(box("a", pid=1), box("one", name="web"))
    by_id, by_name = [await begun(Portfolio(publisher.feed).wait_gone(one)) for one in ("a", "web")]
    await passes(publisher, by_id, (), (("restart", "a", 2),))
    await passes(publisher, by_name, (), (("exit", "one"), ("start", box("two", name="web"))))


async def test_renamed_container_is_not_gone() -> None:
    publisher = Publisher(box("a", name="web"), box("other"))
    waiting = await begun(Portfolio(publisher.feed).wait_gone("web"))
    publisher.change("a", name="new")
    await passes(publisher, waiting, (("exit", "other"),), (("exit", "a"),))


async def test_of_several_that_match_all_must_go_and_newcomers_do_not_count() -> None:
    publisher = Publisher(box("a", **SHOP), box("b", **SHOP), box("c"))
    waiting = await begun(Portfolio(publisher.feed).wait_gone(lambda c: c.project == "shop"))
    in_vain = (("exit", "a"), ("start", box("d", **SHOP)), ("exit", "c"))
    await passes(publisher, waiting, in_vain, (("exit", "b"),))


async def test_wait_gone_in_vain_says_so() -> None:
    with pytest.raises(NotSynced, match="'a'"):
        await portfolio(box("a")).wait_gone("a", timeout=0.01)


async def test_waits_survive_more_events_than_their_buffer_holds() -> None:
    publisher = Publisher(box("a", pid=1))
    asked = Portfolio(publisher.feed)
    gone, came = asyncio.create_task(asked.wait_gone("a")), asyncio.create_task(asked.wait_for("b"))
    await asyncio.sleep(0)
    publisher.restart("a", pid=2)
    for number in range(3000):
        publisher.change("a", name=f"n{number}")
    publisher.start(box("b"))
    await within(gone)
    assert (await within(came)).id == "b"


# ---- in_sync


async def test_in_sync_waits_for_the_end_of_an_outage() -> None:
    engine = ScriptedEngine(box("a"))
    async with Watcher(engine) as watcher:
        await within(watcher.portfolio.in_sync())
        await watcher.portfolio.in_sync(timeout=0)
        with engine.hold("connect") as hold:
            engine.end()
            await hold.reached()
            waiting = await begun(watcher.portfolio.in_sync())
            assert not waiting.done()
            assert await within(watcher.portfolio.total()) == 1, "queries do not wait for it"
            with pytest.raises(NotSynced) as caught:
                await watcher.portfolio.in_sync(timeout=0.01)
            assert isinstance(caught.value.__cause__, EngineUnavailable)
            hold.release()
            await within(waiting)
        assert watcher.portfolio.snapshot().synced


async def test_in_sync_is_true_though_the_next_outage_follows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    publisher = Publisher(box("a"))
    until = publisher.feed.changed.until

    async def overtaken(condition: Callable[[], bool]) -> None:
        await until(condition)
        publisher.lose()

    monkeypatch.setattr(publisher.feed.changed, "until", overtaken)
    await within(Portfolio(publisher.feed).in_sync())
    assert not publisher.snapshot.synced


# ---- snapshots


def test_snapshot_contains_containers_ids_and_names() -> None:
    snapshot = Publisher(box("a", name="web"), box("b", name="db")).snapshot
    assert ([c.id for c in snapshot], len(snapshot)) == (["a", "b"], 2)
    assert all(one in snapshot for one in ("a", "web", box("a", name="web")))
    assert not any(one in snapshot for one in ("c", box("a", name="web", pid=99), 7)), "another run is another"


def test_empty_snapshot_is_false_and_answers() -> None:
    snapshot = Publisher().snapshot
    assert not snapshot
    assert snapshot.synced
    assert (snapshot.names(), snapshot.containers(), snapshot.container("a")) == ((), (), None)
    assert snapshot.projects() == (Project(""),)


def test_snapshot_that_was_taken_does_not_change() -> None:
    publisher = Publisher(box("a", name="web", **SHOP))
    taken = publisher.snapshot
    shop = taken.project("shop")
    publisher.start(box("b", name="web", **SHOP))
    publisher.change("a", name="www", project="other")
    publisher.exit("b")
    assert (alive(taken), taken.project("shop")) == ({"a": box("a", name="web", **SHOP)}, shop)
    assert taken.container("web") == box("a", name="web", **SHOP)
    assert taken.revision < publisher.snapshot.revision


def test_snapshot_tells_since_when_it_is_true() -> None:
    publisher = Publisher()
    publisher.seconds = 99
    publisher.start(box("a"))
    assert (publisher.snapshot.as_of, publisher.snapshot.as_of.tzinfo) == (at(100), UTC)


def test_values_cannot_be_changed() -> None:
    container = box("a", labels={"k": "v"})
    snapshot = Publisher(container).snapshot
    project = snapshot.project("")
    assert project is not None
    for value, name in ((container, "name"), (snapshot, "revision"), (project, "name"), (Port(80), "port")):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(value, name, "changed")
    for slotted in (container, container.labels, project, snapshot):
        with pytest.raises((AttributeError, attrs.exceptions.FrozenInstanceError)):
            setattr(slotted, "new_attribute", 1)  # noqa: B010 - mypy would see it
    with pytest.raises(TypeError):
        container.labels["k"] = "w"  # type: ignore[index]
    with pytest.raises(TypeError):
        del container.labels["k"]  # type: ignore[attr-defined]
    labels = {"k": "v"}
    container = box("a", labels=labels)
    labels["k"] = "w"
    assert container.labels == {"k": "v"}, "what was given may be changed later"


containers_of_few = st.builds(
    box,
    st.sampled_from("abcdef"),
    name=st.sampled_from(["one", "two", "three"]),
    project=st.sampled_from(["", "p", "q"]),
    start=st.none() | st.integers(0, 3),
    pid=st.integers(1, 3),
)


@given(st.lists(st.lists(st.tuples(st.booleans(), containers_of_few), max_size=4, unique_by=lambda one: one[1].id)))
def test_indexes_agree_with_a_naive_search_whatever_changes(steps: list[list[tuple[bool, Container]]]) -> None:
    snapshot = Snapshot(revision=0, as_of=at(0))
    model: dict[str, Container] = {}
    for step in steps:
        changes = []
        for stays, container in step:
            before, after = model.get(container.id), container if stays else None
            if before is None and after is None:
                continue
            changes.append((before, after))
            if after is None:
                del model[container.id]
            else:
                model[container.id] = after
        snapshot = snapshot._changed(changes, revision=snapshot.revision + 1, as_of=at(1), synced=True)
        _agrees(snapshot, model)


def _agrees(snapshot: Snapshot, model: dict[str, Container]) -> None:
    everything = list(model.values())
    assert list(snapshot) == everything, "in order of first sight"
    projects = sorted({c.project for c in everything})
    assert snapshot.names() == tuple(name for name in projects if name)
    for name in ("", "p", "q"):
        members = tuple(sorted((c for c in everything if c.project == name), key=lambda c: (c.name, c.id)))
        assert snapshot.containers(name) == members
        assert snapshot.project(name) == (Project(name, members) if members or not name else None)
    for id in "abcdef":
        assert snapshot.container(id) == model.get(id)
    for name in ("one", "two", "three"):
        named = [c for c in everything if c.name == name]
        named.sort(key=lambda c: (c.started_at is None, c.started_at or datetime.min.replace(tzinfo=UTC), c.id))
        assert snapshot.container(name) == (named[0] if named else None)
    assert set(snapshot._by_name) == {c.name for c in everything}, "nothing is kept of what has gone"
    assert set(snapshot._projects) == set(projects)


# ---- projects


def test_project_finds_its_containers() -> None:
    first, second = box("1", name="web", start=5), box("2", name="web", start=1)
    clash = box("web", name="zzz", start=9)
    project = Project("shop", (first, second))
    assert project.container("1") == first
    assert project.container("web") == second, "the earliest started"
    assert project.container("unknown") is None
    assert Project("shop", (first, second, clash)).container("web") == clash, "an id wins over a name"


def test_project_has_length_iteration_and_membership() -> None:
    first, second = box("1", name="db"), box("2", name="web")
    project = Project("shop", (first, second))
    assert (len(project), list(project), project.container_names) == (2, [first, second], ("db", "web"))
    for member in ("1", "web", first):
        assert member in project
    for stranger in ("3", "dbx", box("1", name="db", pid=9), 7, None):
        assert stranger not in project
    assert not Project("")


# ---- values


def rich() -> Container:
    return box(
        "a",
        labels={"k": "v", "l": "w"},
        health=Health.HEALTHY,
        ports=(Port(80, "tcp", ip_address("127.0.0.1"), 8080), Port(53, "udp")),
        addresses={"net": (ip_address("10.0.0.1"), ip_address("fd00::1"))},
        privileged=True,
        rucksack={"anything": 1},
    )


def test_containers_are_hashable_and_equal_by_value_without_the_rucksack() -> None:
    one, other = rich(), attrs.evolve(rich(), rucksack="other")
    assert one == other
    assert (hash(one), len({one, other, box("a")})) == (hash(other), 2)
    assert "anything" not in repr(one)


def test_values_survive_pickling_and_copying() -> None:
    publisher = Publisher(rich())
    project = Project("shop", (rich(),))
    assert project.container("a") == rich()  # its index is made
    for value in (rich(), project, Project("shop", (rich(),)), rich().labels, Port(80)):
        for twin in (pickle.loads(pickle.dumps(value)), copy.copy(value), copy.deepcopy(value)):  # noqa: S301 - our own
            assert twin == value
            assert hash(twin) == hash(value)
    twin = pickle.loads(pickle.dumps(project))  # noqa: S301 - our own
    assert twin.container("a") == rich()
    assert pickle.loads(pickle.dumps(rich())).rucksack == {"anything": 1}  # noqa: S301 - our own
    snapshot = pickle.loads(pickle.dumps(publisher.snapshot))  # noqa: S301 - our own
    assert (alive(snapshot), snapshot.container("a")) == (alive(publisher.snapshot), rich())


async def test_events_survive_pickling() -> None:
    publisher = Publisher(rich())
    events = publisher.events(replay=False)
    publisher.change("a", name="b")
    event = await anext(events)
    assert event.type is EventType.UPDATED
    assert pickle.loads(pickle.dumps(event)) == event  # noqa: S301 - our own


def test_frozen_mapping_is_a_mapping_with_a_hash() -> None:
    one, other = FrozenMapping({"a": 1, "b": 2}), FrozenMapping({"b": 2, "a": 1})
    assert one == other == {"a": 1, "b": 2}
    assert hash(one) == hash(other)
    assert one != {"a": 1}
    assert one != 7
    assert (one["a"], one.get("c"), len(one), list(one)) == (1, None, 2, ["a", "b"])
    assert "b" in one
    assert "c" not in one
    assert (dict(one), repr(one)) == ({"a": 1, "b": 2}, "{'a': 1, 'b': 2}")
    assert FrozenMapping[int]() == {}
    with pytest.raises(KeyError):
        one["c"]
