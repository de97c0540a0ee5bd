"""Outages and hangs: what happened meanwhile is told as the difference, once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.followed import AT_ONCE, docker_followed, eventually, followed, picture
from tests.support.scripted import ScriptedEngine, box, turns
from whalewatch import EngineTimeout, ListedContainer, Listing, Origin, Watcher, WatchState, moby
from whalewatch.testing import FakeDocker

pytestmark = pytest.mark.promise(3)


@pytest.mark.slow
async def test_engine_that_hangs_is_noticed_told_and_forgiven() -> None:
    options: dict[str, Any] = {"heartbeat": 0.8, "call_timeout": 1.2, "retry": AT_ONCE}
    async with docker_followed("kept", "doomed", **options) as (fake, follow, (kept, doomed)):
        begun = asyncio.get_running_loop().time()
        with fake.faults.freeze():
            await follow.until(lambda: follow.states[-1].error is not None)
            assert asyncio.get_running_loop().time() - begun < 6.0
            error = follow.watcher.status.error
            assert isinstance(error, EngineTimeout)
            assert fake.address in str(error)
            assert not follow.snapshot.synced
            assert set(picture(follow.snapshot)) == {kept, doomed}, "the old picture stays readable"
            fake.kill(doomed)
            born = fake.run("born")
        await follow.until(lambda: follow.shows(fake))
        assert [follow.types(id) for id in (kept, doomed, born)] == [[], ["exited"], ["started"]]
        status = follow.states[-1]
        assert (status, status.state, status.error) == (follow.watcher.status, WatchState.SYNCED, None)
        assert follow.stats.outages == 1


async def test_hang_of_an_engine_that_has_nothing_to_tell_is_noticed_by_the_heartbeat() -> None:
    engine = ScriptedEngine(box("a"))
    async with followed(Watcher(engine, heartbeat=0.1, call_timeout=0.1, retry=AT_ONCE, audit=None)) as follow:
        await engine.until(lambda: engine.calls["listing"] == 2)  # the confirming one, which would notice it too
        with engine.hold("ping"), engine.hold("connect"):
            await follow.until(lambda: follow.states[-1].error is not None)
            assert isinstance(follow.states[-1].error, EngineTimeout)
            assert not follow.snapshot.synced


async def outage(fake: FakeDocker, how: str, changes: Callable[[], None]) -> None:
    """Break the connection in some way, make changes that nobody is told of, and mend it."""
    fake.faults.refuse()
    changes()
    await (fake.faults.accept() if how == "refuse" else fake.faults.restart())


@pytest.mark.parametrize("how", ["refuse", "restart"])
async def test_outage_is_told_as_the_difference_in_one_revision(how: str) -> None:
    async with FakeDocker() as fake:
        ids = {name: fake.run(name) for name in ("dead", "restarted", "removed", "paused", "renamed")}
        ids |= {"survivor": fake.run("survivor", health="healthy"), "thawed": fake.run("thawed", paused=True)}

        def changes() -> None:
            fake.kill(ids["dead"])
            fake.restart(ids["restarted"])
            fake.remove(ids["removed"], force=True)
            ids["reborn"] = fake.run("removed")
            fake.pause(ids["paused"])
            fake.unpause(ids["thawed"])
            fake.rename(ids["renamed"], "anew")
            fake.remove(fake.run("brief"), force=True)

        async with followed(moby.watch(fake.address, retry=AT_ONCE, audit=None)) as follow:
            revision = follow.snapshot.revision
            await eventually(lambda: follow.stats.audits == 1)
            await outage(fake, how, changes)
            await follow.until(lambda: follow.stats.syncs == 2)
            await follow.until(lambda: follow.shows(fake))
            told = {"dead": ["exited"], "removed": ["exited"], "reborn": ["started"], "renamed": ["updated"]}
            told |= {"restarted": ["exited", "started"], "paused": ["paused"], "thawed": ["unpaused"], "survivor": []}
            assert {name: follow.types(id) for name, id in ids.items()} == told
            assert {(event.origin, event.revision) for event in follow.news()} == {(Origin.RESYNC, revision + 1)}
            assert (len(follow.news()), follow.stats.outages, follow.stats.drift) == (8, 1, 0)


async def test_what_is_told_while_an_outage_ends_outdoes_a_listing_from_before() -> None:
    engine = ScriptedEngine(box("a"), complete=True)
    async with followed(Watcher(engine, retry=AT_ONCE, audit=None)) as follow:
        await engine.until(lambda: engine.calls["listing"] == 2)  # the confirming one
        with engine.hold("listing") as listing:
            engine.end()
            await listing.reached()
            engine.listings.append(Listing(containers={"a": ListedContainer(box("a"))}, absence_is_death=True))
            engine.exit("a")
            engine.start(box("b"))
            await engine.until(lambda: engine.calls["inspect"] == 2)
            await turns(20)
        await follow.until(lambda: len(follow.types()) == 2)
        assert follow.types() == ["exited", "started"]
        assert len({event.revision for event in follow.news()}) == 1
