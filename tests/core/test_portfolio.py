"""What applications ask, and the values that they get."""

from __future__ import annotations

import asyncio
import copy
import pickle
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from ipaddress import ip_address
from re import fullmatch
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.followed import eventually
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
from tests.support.stepping import in_no_time
from whalewatch import (
    Container,
    EngineUnavailable,
    EventType,
    FrozenMapping,
    Health,
    NotHealthy,
    NotSynced,
    Pod,
    Port,
    Portfolio,
    Project,
    Snapshot,
    WatchEnded,
    Watcher,
    WatchState,
)

pytestmark = pytest.mark.promise(7)

Wanted = str | Callable[[Container], bool]

SHOP: dict[str, Any] = {"project": "shop"}


def portfolio(*containers: Container) -> Portfolio:
    return Portfolio(Publisher(*containers).feed)


# ---- queries


ID = "0123456789abcdef" * 4
ZOO, WEB, TAKEN, LATE, LAST = (
    box("z", project="zoo", labels={"io.kubernetes.pod.uid": "u"}),
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
        (("pods",), (Pod("", "", "u", None, (ZOO,)),)),
        (("pod", "u"), Pod("", "", "u", None, (ZOO,))),
        (("pod", "zoo"), None),
        (("total",), 5),
        (("container", ID), WEB),
        (("container", "web"), WEB),
        (("container", "taken"), TAKEN),
        *((("container", begin), WEB) for begin in (ID[:12], ID[:13], ID[:-1])),
        *((("container", part), None) for part in (ID[:11], ID[:12] + "x", ID.upper(), ID + "0", "we", "/web", "")),
    ],
)
async def test_portfolio_and_its_snapshots_answer_alike(query: tuple[str, ...], expected: object) -> None:
    """In order of first sight, or of a project by name; an id wins over a name, a name over the beginning of an id."""
    asked, (name, *arguments) = portfolio(ZOO, WEB, TAKEN, LATE, LAST), query
    assert await getattr(asked, name)(*arguments) == getattr(asked.snapshot(), name)(*arguments) == expected


@pytest.mark.parametrize(
    "query",
    [
        *((name,) for name in ("names", "projects", "containers", "pods", "total", "in_sync")),
        *(("project", "shop"), ("project", ""), ("pod", "u"), ("container", "a")),
        *(("wait_for", "a"), ("wait_gone", "b")),
    ],
)
async def test_queries_wait_for_the_first_synchronisation_and_never_ask_the_engine(query: tuple[str, ...]) -> None:
    engine, (name, *arguments) = ScriptedEngine(box("a", **SHOP)), query
    with engine.hold("inspect") as hold:
        async with Watcher(engine) as watcher:
            ask = getattr(watcher.portfolio, name)
            await hold.reached()
            waiting = [await begun(ask(*arguments)), await begun(watcher.ready())]
            await turns(5)
            assert not any(one.done() for one in waiting)
            snapshot = watcher.portfolio.snapshot()
            assert (len(snapshot), snapshot.revision, snapshot.synced) == (0, 0, False), "which does not wait"
            hold.release()
            await within(asyncio.gather(*waiting))
            assert "a" in watcher.portfolio.snapshot()
            await engine.until(lambda: engine.calls["listing"] == 2)
            before = dict(engine.calls)
            for _ in range(10):
                await ask(*arguments)
            assert engine.calls == before


@pytest.mark.parametrize("error", [None, lost_engine()], ids=["closed", "engine lost"])
async def test_queries_after_the_end_answer_from_the_last_picture(error: EngineUnavailable | None) -> None:
    engine = ScriptedEngine(box("a", **SHOP))
    async with Watcher(engine, retry=None) as watcher:
        await watcher.ready(PATIENCE)
        if error is not None:
            engine.end(error)
            await eventually(lambda: watcher.status.state is WatchState.CLOSED)
            assert watcher.status.error is error
    asked = watcher.portfolio
    assert (await asked.names(), await asked.container("a")) == (("shop",), box("a", **SHOP))
    assert await asked.wait_for("a") == box("a", **SHOP)
    await asked.wait_gone("b")
    await watcher.ready(0)
    assert not asked.snapshot().synced
    for never in (asked.wait_for("b"), asked.wait_gone("a"), asked.in_sync()):
        with pytest.raises(WatchEnded if error is None else EngineUnavailable):
            await within(never)


@pytest.mark.parametrize(
    ("wait", "says"),
    [
        (lambda watcher, timeout: watcher.ready(timeout), "scripted://engine"),
        (lambda watcher, timeout: watcher.portfolio.wait_for("web", timeout=timeout), "'web'"),
        (lambda watcher, timeout: watcher.portfolio.wait_gone("web", timeout=timeout), "'web'"),
        (lambda watcher, timeout: watcher.portfolio.wait_healthy("web", timeout=timeout), "'web'"),
        (lambda watcher, timeout: watcher.portfolio.in_sync(timeout=timeout), "in sync"),
    ],
    ids=["ready", "wait_for", "wait_gone", "wait_healthy", "in_sync"],
)
async def test_wait_in_vain_says_for_what_and_why_if_there_was_an_error(
    wait: Callable[[Watcher, float], Awaitable[object]], says: str
) -> None:
    engine = ScriptedEngine()
    with engine.fail("connect", lost_engine()):
        async with Watcher(engine) as watcher:
            await engine.until(lambda: engine.calls["connect"])
            with pytest.raises(NotSynced, match=rf"{says}.* within 0\.05 s") as caught:
                await wait(watcher, 0.05)
            assert isinstance(caught.value, TimeoutError)
            assert caught.value.__cause__ is watcher.status.error is not None
            assert fullmatch(
                rf".* within 0\.05 s( \(no container is alive\))?: {watcher.status.error}", str(caught.value)
            )
            assert watcher.status.state is not WatchState.CLOSED, "only the caller's patience has ended"
    with engine.hold("connect"):
        async with Watcher(engine) as watcher:
            with pytest.raises(NotSynced) as caught:
                await wait(watcher, 0.01)
            assert caught.value.__cause__ is None
            assert fullmatch(r".* within 0\.01 s( \(no container is alive\))?", str(caught.value))


# ---- waits

THERE, OTHER = box("id", name="name", pid=7), box("other")
A, B = box("a", pid=1), box("b", **SHOP)
Revisions = Sequence[Mapping[str, Container | None]]


async def passes(publisher: Publisher, waiting: asyncio.Task[Any], in_vain: Revisions, then: Revisions) -> Any:
    """Let these revisions come, which do not end a wait, then those, which do; return what it was for."""
    for revision in in_vain:
        publisher.publish(revision)
        await turns(3)
        assert not waiting.done()
    for revision in then:
        publisher.publish(revision)
    return await within(waiting)


def one_of_the_shop(container: Container) -> bool:
    return container.project == "shop"


@pytest.mark.parametrize("wanted", ["id", "name", lambda c: c.pid == 7], ids=["id", "name", "predicate"])
async def test_waits_take_an_id_a_name_or_a_predicate_and_end_at_once_if_they_can(wanted: Wanted) -> None:
    publisher = Publisher(OTHER)
    asked = Portfolio(publisher.feed)
    await asked.wait_gone(wanted, timeout=0)
    coming = await begun(asked.wait_for(wanted))
    assert await passes(publisher, coming, [{"another": box("another")}], [{"id": THERE}]) == THERE
    assert await asked.wait_for(wanted, timeout=0) == THERE
    going = await begun(asked.wait_gone(wanted))
    await passes(publisher, going, [{"id": attrs.evolve(THERE, paused=True)}, {"other": None}], [{"id": None}])


@pytest.mark.parametrize(
    ("wanted", "in_vain", "then", "found"),
    [
        (lambda c: c.health is Health.HEALTHY, [], [{"a": attrs.evolve(A, health=Health.HEALTHY)}], "a"),
        ("brief", [], [{"brief": box("brief")}, {"brief": None}], "brief"),
        (lambda c: c.name == "b" or c.pid == 2, [{"a": None}], [{"a": box("a", pid=2)}], "a"),
    ],
    ids=["a change", "a brief life", "no exit"],
)
async def test_wait_for_is_satisfied_by(wanted: Wanted, in_vain: Revisions, then: Revisions, found: str) -> None:
    publisher = Publisher(attrs.evolve(A, health=Health.STARTING))
    waiting = await begun(Portfolio(publisher.feed).wait_for(wanted))
    assert await passes(publisher, waiting, in_vain, then) == then[0][found]


@pytest.mark.parametrize(
    ("wanted", "in_vain", "then"),
    [
        ("a", [], [{"a": None}, {"a": box("a", pid=2)}]),
        ("web", [], [{"one": None}, {"two": box("two", name="web")}]),
        ("web", [{"one": box("one", name="new", **SHOP)}, {"a": None}], [{"one": None}]),
        (one_of_the_shop, [{"one": None}, {"c": box("c", **SHOP)}, {"a": None}], [{"b": None}]),
    ],
    ids=[
        *("a restart under the same id", "a rebirth under the same name", "the exit of what was renamed"),
        "the last of several that matched, and no newcomer",
    ],
)
async def test_wait_gone_is_satisfied_by(wanted: Wanted, in_vain: Revisions, then: Revisions) -> None:
    publisher = Publisher(A, B, box("one", name="web", **SHOP))
    await passes(publisher, await begun(Portfolio(publisher.feed).wait_gone(wanted)), in_vain, then)


async def test_wait_gone_returns_the_last_exit() -> None:
    publisher = Publisher(A, B)
    waiting = await begun(Portfolio(publisher.feed).wait_gone(lambda _: True))
    publisher.exit("a", exit_code=3)
    publisher.exit("b", exit_code=4)
    found = await within(waiting)
    assert found is not None
    assert (found.type, found.container, found.exit_code) == (EventType.EXITED, B, 4)
    assert await Portfolio(publisher.feed).wait_gone("a") is None


STARTING, HEALTHY, UNHEALTHY = (box("w", name="web", health=health) for health in Health)
PAUSED, UNCHECKED = box("w", name="web", paused=True), box("w", name="web")


@pytest.mark.parametrize(
    ("before", "then", "why"),
    [
        (HEALTHY, [], None),
        (STARTING, [HEALTHY], None),
        (None, [STARTING, HEALTHY], None),
        (None, [HEALTHY], None),
        (PAUSED, [STARTING, PAUSED, HEALTHY], None),
        (STARTING, [PAUSED, UNCHECKED, UNHEALTHY, HEALTHY], None),
        (PAUSED, [UNCHECKED, UNHEALTHY, None], "it exited with code 9 at 00:00:05 UTC"),
        (UNHEALTHY, [], "it is unhealthy"),
        (STARTING, [UNHEALTHY], "it is unhealthy"),
        (UNCHECKED, [], "it has no health check"),
        (None, [UNCHECKED], "it has no health check"),
        (STARTING, [None], "it exited with code 9 at 00:00:02 UTC"),
        (PAUSED, [None], "it exited with code 9 at 00:00:02 UTC"),
        (STARTING, [box("w", name="other", health=Health.STARTING), UNHEALTHY], "it is unhealthy"),
    ],
)
async def test_wait_healthy(before: Container | None, then: list[Container | None], why: str | None) -> None:
    publisher = Publisher(*([before] if before else []), box("bystander"))
    waiting = await begun(Portfolio(publisher.feed).wait_healthy("web"))
    publisher.change("bystander", name="by")
    for number, container in enumerate(then, 1):
        assert not waiting.done(), number
        publisher.publish({"w": container}, exit_code=None if container else 9)
        await turns(3)
    if why is None:
        assert await within(waiting) == HEALTHY
        return
    with pytest.raises(NotHealthy) as raised:
        await within(waiting)
    assert str(raised.value).startswith("container 'web' is not healthy: ")
    assert raised.value.container == next((one for one in reversed(then) if one is not None), before)
    assert (raised.value.event is None) == (not then)
    again = pickle.loads(pickle.dumps(raised.value))  # noqa: S301 - our own
    assert (str(again), again.container) == (str(raised.value), raised.value.container)
    assert why.partition(" at ")[0] in str(raised.value)


@pytest.mark.parametrize(
    ("wait", "events", "seen"),
    [
        (("wait_for", "web"), [], "(alive: 'a')"),
        (
            ("wait_for", lambda _: False),
            [{str(n): box(str(n)) for n in range(6)}],
            "(alive: 'a', '0', '1', '2', '3' and 2 more)",
        ),
        (("wait_for", "web"), [{"a": None}], "(no container is alive)"),
        (("wait_gone", "a"), [{"b": box("b")}], "(alive: 'a')"),
        (("wait_healthy", "web"), [], "(alive: 'a')"),
        (("wait_healthy", "web"), [{"w": STARTING}], "(it is starting)"),
        (("wait_healthy", "web"), [{"w": STARTING}, {"w": PAUSED}], "(it is paused)"),
        (("wait_for", "\x1b[2J"), [], "(alive: 'a')"),
    ],
)
async def test_time_out_says_what_was_seen_last(wait: tuple[str, Wanted], events: Revisions, seen: str) -> None:
    publisher, (name, wanted) = Publisher(box("a")), wait
    waiting = await begun(getattr(Portfolio(publisher.feed), name)(wanted, timeout=0.05))
    for changes in events:
        publisher.publish(changes)
        await turns(3)
    with pytest.raises(NotSynced) as raised:
        await waiting
    assert str(raised.value).endswith(f" within 0.05 s {seen}")
    assert str(raised.value).isprintable()


async def test_time_out_of_wait_for_tells_of_the_last_exit() -> None:
    publisher = Publisher(box("w", name="web", paused=True))
    waiting = await begun(
        Portfolio(publisher.feed).wait_for(lambda one: one.name == "web" and not one.paused, timeout=0.05)
    )
    publisher.publish({"w": box("w", name="web", paused=True, pid=2)})  # restarted, paused
    with pytest.raises(NotSynced) as raised:
        await waiting
    assert "alive: 'web'" in str(raised.value)
    publisher = Publisher(box("w", name="web"))
    waiting = await begun(
        Portfolio(publisher.feed).wait_for(lambda one: one.name == "web" and one.pid == 7, timeout=0.05)
    )
    publisher.publish({"w": box("w", name="web", pid=7)}, exit_code=1)
    assert (await within(waiting)).pid == 7


@pytest.mark.parametrize("entered", [False, True])
async def test_watcher_that_was_not_entered_says_so(entered: bool) -> None:
    watcher = Watcher(ScriptedEngine())
    portfolio = watcher.portfolio
    if entered:
        await watcher.__aenter__()
        await watcher.aclose()
    asked: list[Awaitable[object]]
    asked = [watcher.ready(), portfolio.in_sync(), portfolio.wait_for("a"), portfolio.wait_gone("a")]
    asked += [portfolio.wait_healthy("a"), portfolio.names(), portfolio.container("a"), anext(portfolio.changes())]
    for one in asked:
        with pytest.raises(WatchEnded if entered else RuntimeError, match="closed" if entered else "async with"):
            await within(one)
    assert (len(portfolio.snapshot()), watcher.events().revision) == (0, 0)
    await watcher.aclose()


# ---- changes


async def newest(pictures: AsyncIterator[Snapshot]) -> Snapshot:
    return await within(anext(pictures))


@in_no_time
async def test_changes_are_given_in_time_though_waits_for_them_are_cancelled_again_and_again() -> None:
    publisher, loop = Publisher(A), asyncio.get_running_loop()
    pictures = Portfolio(publisher.feed).changes(debounce=1.0)
    await anext(pictures)
    publisher.change("a", name="new")
    while True:
        try:
            picture = await asyncio.wait_for(anext(pictures), 0.3)
            break
        except TimeoutError:
            assert loop.time() < 2
    assert picture.containers()[0].name == "new"
    assert loop.time() == pytest.approx(1.0)


@pytest.mark.parametrize("debounce", [-1.0, float("nan"), float("inf")])
def test_changes_wait_for_a_sensible_time(debounce: float) -> None:
    with pytest.raises(ValueError, match="debounce must be 0 or more seconds"):
        portfolio().changes(debounce=debounce)


async def test_changes_begin_in_sync_and_not_after_the_end() -> None:
    publisher = Publisher(A)
    publisher.lose()
    waiting = await begun(newest(Portfolio(publisher.feed).changes()))
    await turns(3)
    assert not waiting.done()
    publisher.start(B)
    assert (await within(waiting)).synced
    publisher.lose()
    publisher.feed.end(None)
    with pytest.raises(StopAsyncIteration):
        await anext(Portfolio(publisher.feed).changes())


async def test_changes_begin_with_the_first_synchronised_picture_and_go_on_with_the_newest() -> None:
    publisher = Publisher()
    pictures = Portfolio(publisher.feed).changes()
    assert len(await newest(pictures)) == 0
    waiting = await begun(newest(pictures))
    publisher.lose()
    publisher.start(A)
    assert [*await within(waiting)] == [A]
    for number in range(5):
        publisher.change("a", name=f"n{number}")
    assert await newest(pictures) is publisher.snapshot
    waiting = await begun(newest(pictures))
    waiting.cancel()
    await asyncio.wait({waiting})
    publisher.start(B)
    assert "b" in await newest(pictures), "a wait that is cancelled ends nothing"
    publisher.exit("b")
    publisher.feed.end(None)
    assert "b" not in await newest(pictures), "the last picture is given"
    with pytest.raises(StopAsyncIteration):
        await anext(pictures)
    failed = Publisher()
    pictures = Portfolio(failed.feed).changes()
    await anext(pictures)
    failed.feed.end(lost_engine())
    with pytest.raises(EngineUnavailable):
        await anext(pictures)


@pytest.mark.parametrize(
    ("gaps", "given"),
    [
        ([3.0, 3.0], [("1", 4.0), ("2", 7.0)]),
        ([0.5, 0.5, 0.5], [("3", 2.5)]),
        ([0.5] * 40, [("21", 10.5), ("40", 21.0)]),
    ],
    ids=["after quiet seconds", "a batch once", "after ten times that at most"],
)
@in_no_time
async def test_changes_wait_for_quiet(gaps: list[float], given: list[tuple[str, float]]) -> None:
    publisher, loop = Publisher(A), asyncio.get_running_loop()
    pictures = Portfolio(publisher.feed).changes(debounce=1.0)
    await anext(pictures)

    async def change() -> None:
        for number, gap in enumerate(gaps, 1):
            await asyncio.sleep(gap)
            publisher.change("a", name=str(number))

    changing = asyncio.create_task(change())
    for name, moment in given:
        assert (await anext(pictures)).containers()[0].name == name
        assert loop.time() == pytest.approx(moment)
    await changing


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
    for in_vain in (asked.wait_for("b", timeout=0.01), asked.wait_gone("a", timeout=0.01)):
        with pytest.raises(NotSynced) as caught:
            await in_vain
        assert caught.value.__cause__ is None
    waiting = await begun(asked.wait_for("c"))
    waiting.cancel()
    await asyncio.wait({waiting})
    assert waiting.cancelled()
    assert (publisher.feed._subscribers, publisher.feed._waiting) == ([], set())
    assert publisher.feed.changed._sleepers == set()


async def test_waits_survive_more_events_than_their_buffer_holds() -> None:
    publisher = Publisher(A)
    asked = Portfolio(publisher.feed)
    gone, came = await begun(asked.wait_gone("a")), await begun(asked.wait_for("b"))
    publisher.restart("a", pid=2)
    for number in range(3000):
        publisher.change("a", name=f"n{number}")
    publisher.start(B)
    await within(gone)
    assert await within(came) == B


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
    pod = Pod("shop", "prod", "u")
    for value, name in (
        *((one, "name") for one in (container, project, pod)),
        (snapshot, "revision"),
        (Port(80), "port"),
    ):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(value, name, "changed")
    for slotted in (container, container.labels, project, pod, snapshot):
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


IDS, NAMES = "abcdef", ("one", "two", "three")
GROUPS = {"": ("", ""), "p": ("z", "dev"), "q": ("b", "prod"), "r": ("a", "prod")}
"""Projects, which are pods too, by uid: with the names and namespaces of these pods."""


def member(id: str, group: str, *, sandbox: bool = False, **attributes: Any) -> Container:
    """A container of a project and of a pod, made of nothing but Kubernetes' own labels."""
    name, namespace = GROUPS[group]
    pod = {"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": namespace, "io.kubernetes.pod.uid": group}
    return box(id, project=group, labels=pod | ({"io.kubernetes.sandbox": ""} if sandbox else {}), **attributes)


containers_of_few = st.builds(
    member,
    st.sampled_from(IDS),
    st.sampled_from([*GROUPS]),
    sandbox=st.booleans(),
    name=st.sampled_from(NAMES),
    start=st.none() | st.integers(0, 3),
    pid=st.integers(1, 3),
)


@given(st.lists(st.lists(st.tuples(st.booleans(), containers_of_few), max_size=4, unique_by=lambda one: one[1].id)))
def test_indexes_agree_with_a_naive_search_whatever_changes(steps: list[list[tuple[bool, Container]]]) -> None:
    snapshot = Snapshot(revision=0, as_of=at(0))
    model: dict[str, Container] = {}
    _agrees(snapshot, model)
    for step in steps:
        changes = [(model.get(one.id), one if stays else None) for stays, one in step if stays or one.id in model]
        for stays, container in step:
            if stays:
                model[container.id] = container
            else:
                model.pop(container.id, None)
        pods = {pod.uid: pod for pod in snapshot.pods()}
        snapshot = snapshot._changed(changes, revision=snapshot.revision + 1, as_of=at(1), synced=True)
        _agrees(snapshot, model)
        touched = {container.project for change in changes for container in change if container is not None}
        assert all(snapshot.pod(uid) is pod for uid, pod in pods.items() if uid not in touched)


def _agrees(snapshot: Snapshot, model: dict[str, Container]) -> None:
    everything = list(model.values())
    assert (list(snapshot), len(snapshot), snapshot.total()) == (everything, len(everything), len(everything))
    assert snapshot.containers() == tuple(everything), "in order of first sight"
    projects, pods = [], []
    for group, (name, namespace) in GROUPS.items():
        members = tuple(sorted((c for c in everything if c.project == group), key=lambda c: (c.name, c.id)))
        assert snapshot.containers(group) == members
        project = Project(group, members) if members or not group else None
        assert snapshot.project(group) == project
        projects += [] if project is None else [project]
        sandbox = next((c for c in members if "io.kubernetes.sandbox" in c.labels), None)
        pod = Pod(name, namespace, group, sandbox, tuple(c for c in members if c is not sandbox))
        assert snapshot.pod(group) == (pod if group and members else None)
        assert snapshot.pod(name) is None
        pods += [pod] if group and members else []
    assert (snapshot.projects(), snapshot.names()) == (tuple(projects), tuple(p.name for p in projects if p.name))
    assert snapshot.pods() == tuple(sorted(pods, key=lambda pod: (pod.namespace, pod.name)))
    for id in IDS:
        assert snapshot.container(id) == model.get(id)
    for name in NAMES:
        named = [c for c in everything if c.name == name]
        named.sort(key=lambda c: (c.started_at is None, c.started_at or datetime.min.replace(tzinfo=UTC), c.id))
        assert snapshot.container(name) == (named[0] if named else None)
    assert set(snapshot._by_name.groups) == {c.name for c in everything}, "nothing is kept of what has gone"
    assert set(snapshot._projects.groups) == {c.project for c in everything}
    assert set(snapshot._pods.groups) == {c.project for c in everything} - {""}


@pytest.mark.slow
def test_many_containers_of_one_name_are_no_burden() -> None:
    """Under Kubernetes all replicas of a deployment bear the same container name."""
    pods = {f"u{number}": {"io.kubernetes.pod.uid": f"u{number}"} for number in range(100)}
    many = {str(n): box(str(n), name="app", start=n, labels=pods[f"u{n % 100}"]) for n in range(20_000)}
    began = time.process_time()
    publisher = Publisher(*many.values())
    publisher.publish(dict.fromkeys(many))
    assert time.process_time() - began < 20, "it should take a second"
    assert publisher.snapshot.total() == 0


# ---- projects and pods

FIRST, SECOND, EARLIEST = box("1", name="db"), box("2", name="web", start=5), box("3", name="web", start=1)
SIDE = box("s", name="shop")


@pytest.mark.parametrize(
    "group",
    [Project("shop", (FIRST, SECOND, EARLIEST)), Pod("shop", "prod", "u", SIDE, (FIRST, SECOND, EARLIEST))],
    ids=["project", "pod"],
)
def test_project_or_pod_finds_its_containers(group: Project | Pod) -> None:
    assert (len(group), list(group), group.container_names) == (3, [*group.containers], ("db", "web", "web"))
    assert [group.container(asked) for asked in ("1", "2", "web", "4", "s", "shop")] == [
        *(FIRST, SECOND, EARLIEST),
        *(None, None, None),
    ]
    clash = box("web", name="zzz", start=9)
    assert attrs.evolve(group, containers=(*group, clash)).container("web") == clash, "an id wins over a name"
    for one in ("1", "web", FIRST):
        assert one in group
    for stranger in ("4", "dbx", box("1", name="db", pid=9), SIDE, 7, None):
        assert stranger not in group
    assert not attrs.evolve(group, containers=())


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


async def test_values_survive_pickling_and_copying() -> None:
    publisher = Publisher(rich())
    events = publisher.events(replay=False)
    publisher.change("a", name="b")
    event = await anext(events)
    container, project, pod = rich(), Project("shop", (rich(),)), Pod("shop", "prod", "u", SIDE, (rich(),))
    assert project.container("a") == rich()  # its index is made
    for value in (container, project, Project("shop", (rich(),)), pod, container.labels, Port(80), event):
        for twin in (pickle.loads(pickle.dumps(value)), copy.copy(value), copy.deepcopy(value)):  # noqa: S301 - our own
            assert twin == value
            assert hash(twin) == hash(value)
    twin, other, snapshot = pickle.loads(pickle.dumps((project, container, publisher.snapshot)))  # noqa: S301 - our own
    assert (twin.container("a"), other.rucksack) == (rich(), {"anything": 1})
    assert (alive(snapshot), snapshot.container("a")) == (alive(publisher.snapshot), event.container)


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
