"""An engine that floods a watcher: memory stays bounded, the loop goes on, and afterwards the picture is right."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.support.followed import AT_ONCE, followed
from tests.support.programs import child
from tests.support.scripted import ScriptedEngine, alive, box
from tests.support.stepping import in_no_time
from whalewatch import ListedContainer, Listing, SignalType, Watcher, WatchState
from whalewatch._core import tracker

pytestmark = pytest.mark.promise(9)


async def flooded(*arguments: str) -> dict[str, Any]:
    async with child("-m", "tests.support.flooding", *arguments) as program:
        code, out, err = await program.ended()
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hang", "fail"])
async def test_starts_that_cannot_be_read_take_bounded_memory_and_hide_nothing_for_long(kind: str) -> None:
    found = await flooded(kind, "100000", "50")
    assert found["grown"] < 20, "MB; a flood of 100,000 took 42"
    assert found["kept"] <= tracker.MAX_UNRESOLVED
    assert found["lost"] >= 100_000 - 2 * tracker.MAX_UNRESOLVED
    assert found["outages"] == 0


@pytest.mark.slow
async def test_flood_of_valid_signals_about_many_containers_stops_no_loop_and_fills_no_subscription() -> None:
    found = await flooded("valid", "500", "20000")
    assert found["stall"] < 0.2, "seconds of computing"
    assert (found["grown"] < 20, found["lost"]) == (True, 1)
    assert found["pending"] <= 20_002 + 1024


class Limited(ScriptedEngine):
    """Follows three containers at most."""

    max_containers = 3


@in_no_time
async def test_starts_beyond_the_most_containers_count_as_lost_and_are_found_when_there_is_room(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = Limited(box("a"), box("b"))
    async with followed(Watcher(engine, retry=AT_ONCE)) as follow:
        for id in "cde":
            engine.start(box(id))
        await follow.until_taken("c")
        await follow.until_stats(lambda stats: stats.audits_failed)
        assert alive(follow.snapshot).keys() == {"a", "b", "c"}
        assert (follow.stats.lost, follow.snapshot.synced) == (2, True)
        engine.exit("a")
        engine.exit("d")
        await follow.until(lambda: alive(follow.snapshot) == engine.alive)
    logged = [record.getMessage() for record in caplog.records]
    assert [text for text in logged if "3 containers (max_containers) are followed" in text][1:] == [], "once"
    assert any("it lists 5 containers, and at most 3 are followed: give a greater max_containers" in t for t in logged)


@in_no_time
async def test_listing_of_too_many_containers_is_no_synchronisation() -> None:
    engine = Limited(*map(box, "abcd"))
    async with followed(Watcher(engine), ready=False) as follow:
        await follow.until(lambda: any(status.state is WatchState.DISCONNECTED for status in follow.states))
        assert "it lists 4 containers, and at most 3 are followed" in str(follow.watcher.status.error)
        del engine.alive["d"]
        await follow.until(lambda: alive(follow.snapshot) == engine.alive)


@in_no_time
async def test_listings_of_ever_others_that_cannot_be_read_take_bounded_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "MAX_UNRESOLVED", 2)
    engine = Limited(box("a"))
    async with followed(Watcher(engine, retry=AT_ONCE, audit=1)) as follow:
        with engine.fail("inspect"):
            for number in range(10):
                ids = ["a", f"x{number}", f"y{number}"]
                engine.listings.append(Listing(containers=dict.fromkeys(ids, ListedContainer()), absence_is_death=True))
                await engine.until(lambda: not engine.listings)
                await follow.until_stats(lambda stats, number=number: stats.audits > number + 1)  # type: ignore[misc]
            assert len(follow.watcher._tracker._states) <= 5
        engine.alive["b"] = box("b")
        await asyncio.sleep(100)
        assert alive(follow.snapshot) == engine.alive


@in_no_time
async def test_signals_kept_during_an_inspect_keep_no_containers() -> None:
    engine = ScriptedEngine(box("a"))
    async with followed(Watcher(engine, retry=AT_ONCE)) as follow:
        with engine.hold("inspect a") as hold:
            engine.tell(SignalType.CHANGED, "a")
            await hold.reached()
            for moment in range(50):
                engine.tell(SignalType.CHANGED, "a", moment, container=box("a", labels={"large": "x" * 1000}))
            await follow.until_stats(lambda stats: stats.signals == 51)
            kept = follow.watcher._tracker._states["a"].kept
            assert kept is not None
            assert [signal.container for signal in kept] == [None] * 50
