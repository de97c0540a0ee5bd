"""Event streams that are cut while the engine lives on, and addresses at which another engine answers."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path

import pytest

from tests.promises.conftest import DOCKERS, Subject
from tests.support.checker import TOLD
from tests.support.engines.proxy import Proxy
from tests.support.followed import AT_ONCE, Followed, docker_followed, eventually, followed, following
from tests.support.outage import story
from whalewatch import Origin, WatchState, containerd, moby
from whalewatch.testing import FakeContainerd, FakeDocker

pytestmark = pytest.mark.promise(5)

Story = dict[str, list[str]]


def change(fake: FakeDocker) -> Story:
    """Change containers in all ways, and return what must be told of each, by name."""
    fake.kill("dies")
    fake.restart("restarts")
    fake.pause("pauses")
    fake.rename("renames", "anew")
    fake.run("newcomer")
    fake.kill(fake.run("brief"))
    fake.pause("flickers")
    fake.unpause("flickers")
    return {
        "dies": ["exited"],
        "restarts": ["exited", "started"],
        "pauses": ["paused"],
        "newcomer": ["started"],
        "anew": ["updated"],
        "flickers": ["paused", "unpaused"],
    }


ALIVE = ("dies", "restarts", "pauses", "renames", "flickers")


def told(follow: Followed, name: str) -> list[str]:
    return [event.type.value for event in follow.news() if event.container.name == name]


@pytest.mark.slow
@pytest.mark.parametrize("end", ["cut", "ended"])
@pytest.mark.parametrize("clock", [0, 3600], ids=["steady", "set forward"])
@pytest.mark.parametrize("when", ["before", "asked", "subscribed", "identity", "listing", "listed"])
async def test_what_happens_about_a_cut_is_told_once_by_the_engine_itself(
    end: str, clock: int, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whalewatch._core.audit.FIRST_DELAY", 0.01)
    async with docker_followed(*ALIVE, audit=None) as (fake, follow, _):
        await eventually(lambda: follow.stats.audits == 1)
        kinds = {"asked": "events", "subscribed": "subscribe", "identity": "info", "listing": "list", "listed": "list"}
        faults, kind = fake.faults, kinds.get(when, "")
        gate = (faults.pause_after if when == "listed" else faults.pause_at)(kind) if kind else None
        faults.shift_clock(clock)
        if gate is None:
            # Events on their way are lost with the connection.
            with faults.drop(from_ring=False):
                expected = change(fake)
        faults.cut_streams() if end == "cut" else faults.end_streams()
        if gate is not None:
            await gate.reached()
            expected = change(fake)
            gate.release()
        await follow.until(lambda: all(told(follow, name) == types for name, types in expected.items()))
        await eventually(lambda: follow.stats.audits == 2)
        await follow.until(lambda: follow.shows(fake))
        assert {event.origin for event in follow.news()} == {Origin.ENGINE}
        assert (follow.stats.reopened, follow.stats.outages, follow.stats.drift) == (1, 0, 0)
        assert follow.states[-1].state is WatchState.SYNCED


@pytest.mark.parametrize("status", ["OK", "UNAVAILABLE"])
async def test_listing_finds_what_containerd_does_not_replay(status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whalewatch._core.audit.FIRST_DELAY", 0.01)
    async with FakeContainerd() as fake:
        fake.run("dies")
        async with followed(containerd.watch(fake.address, audit=None)) as follow:
            await eventually(lambda: follow.stats.audits == 1)
            with fake.faults.silently():
                fake.exit("dies")
                fake.run("starts")
            fake.faults.end_streams(status)
            await follow.until(lambda: (told(follow, "dies"), told(follow, "starts")) == (["exited"], ["started"]))
            assert {event.origin for event in follow.news()} == {Origin.RESYNC}
            assert (follow.stats.reopened, follow.stats.outages, fake.requests["server"]) == (1, 0, 4)
            fake.exit("starts")
            await follow.until(lambda: follow.types("starts") == ["started", "exited"])
            assert follow.news("starts")[-1].origin is Origin.ENGINE


@pytest.mark.slow
async def test_clock_that_was_set_back_costs_what_is_told_at_the_first_cut_at_most() -> None:
    async with docker_followed("early", audit=None, heartbeat=0.1) as (fake, follow, _):
        await follow.until_taken(fake.run("newest"))
        fake.faults.shift_clock(-3600)
        for cuts in (1, 2, 3):
            with fake.faults.drop(from_ring=False):
                fake.run(f"c{cuts}")
            fake.faults.cut_streams()
            await follow.until(lambda cuts=cuts: told(follow, f"c{cuts}") == ["started"])  # type: ignore[misc]
            await eventually(lambda cuts=cuts: follow.stats.reopened == cuts)  # type: ignore[misc]
        origins = [event.origin for event in follow.news() if event.container.name != "newest"]
        assert origins[1:] == [Origin.ENGINE] * 2


# ---- an engine that was restarted, and others


async def test_engine_that_was_killed_and_is_back_at_once_is_an_outage() -> None:
    async with docker_followed("dies", "stays", retry=AT_ONCE, audit=None) as (fake, follow, (dies, stays)):
        await eventually(lambda: follow.stats.audits == 1)
        fake.faults.refuse()  # the engine forgets its events
        fake.kill(dies)
        await fake.faults.accept()
        await follow.until(lambda: follow.types(dies) == ["exited"])
        assert [(event.origin, event.revision) for event in follow.news()] == [(Origin.RESYNC, 2)]
        assert (follow.types(stays), follow.stats.outages, follow.stats.reopened) == ([], 1, 0)


@asynccontextmanager
async def two_engines() -> AsyncIterator[tuple[FakeDocker, FakeDocker]]:
    """Two engines of one host, which have the same ID on Docker 20.10."""
    options = {"version": "20.10.24", "api_version": "1.41", "engine_id": "twin", "host": "127.0.0.1"}
    async with FakeDocker(**options) as one, FakeDocker(**options, start_pid=9001) as other:  # type: ignore[arg-type]
        one.run("first")
        other.run("second")
        yield one, other


@pytest.mark.parametrize("cut", [True, False])
async def test_link_that_moves_to_another_engine_is_a_new_synchronisation(cut: bool, tmp_path: Path) -> None:
    async with two_engines() as (one, other):
        link = tmp_path / "docker.sock"
        link.symlink_to(one.address.removeprefix("unix://"))
        watcher = moby.watch(str(link), retry=AT_ONCE, audit=None if cut else 0.1)
        async with followed(watcher) as follow:
            await eventually(lambda: follow.stats.audits == 1)
            link.unlink()
            link.symlink_to(other.address.removeprefix("unix://"))
            if cut:
                one.faults.cut_streams()
            await follow.until(lambda: follow.shows(other))
            assert follow.types() == ["exited", "started"]
            assert {(event.origin, event.revision) for event in follow.news()} == {(Origin.RESYNC, 2)}
            assert (follow.stats.outages, follow.stats.drift) == (1, 0)


class Balancer(Proxy):
    """A proxy that gives each connection to another engine in turn, or all to the first while it is `steady`."""

    steady = False

    def __init__(self, *engines: FakeDocker, tcp: bool) -> None:
        super().__init__(Path(engines[0].address.removeprefix("unix://")), tcp=tcp)
        self._paths = [Path(engine.address.removeprefix("unix://")) for engine in engines]
        self._turns = count()

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        turn = 0 if self.steady else next(self._turns)
        return await asyncio.open_unix_connection(self._paths[turn % len(self._paths)])


@pytest.mark.parametrize("tcp", [True, False])
async def test_engines_that_answer_in_turn_at_one_address_are_found_by_the_first_audit(tcp: bool) -> None:
    async with (
        two_engines() as (one, other),
        Balancer(one, other, tcp=tcp) as balancer,
        followed(moby.watch(balancer.address, retry=AT_ONCE), ready=False) as follow,
    ):
        await follow.until(lambda: follow.watcher.status.error is not None)
        assert "another engine answers" in str(follow.watcher.status.error)
        assert follow.stats.audits <= 1
        balancer.steady = True
        await follow.until(lambda: follow.shows(one))


# ---- real engines behind a proxy that cuts what is idle


@pytest.mark.live
@pytest.mark.slow
@pytest.mark.parametrize("subject", DOCKERS, indirect=True)
async def test_proxy_that_cuts_idle_streams_is_no_outage(subject: Subject, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "whalewatch")
    await subject.run("stays")
    async with Proxy(subject.engine.socket) as proxy, subject.checked(proxy.address, heartbeat=2.0) as check:
        states = len(check.states)
        async with proxy.idle_cuts(1.0):
            for reopened in range(1, 8):
                await eventually(lambda reopened=reopened: check.stats.reopened >= reopened)  # type: ignore[misc]
                id = await subject.run(f"c{reopened}")
                await check.expect(id, "started")
                await subject.kill(id)
                events = await check.expect(id, "started", "exited")
                assert {event.origin for event in events} <= TOLD
        stats = check.stats
        assert (stats.outages, stats.syncs, stats.drift) == (0, 1, 0)
        assert {status.state for status in check.states[states:]} <= {WatchState.SYNCED}
        assert stats.audits <= stats.calls["ping"] + 2, "at most one for each heartbeat"
    shown = [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]
    assert len([line for line in shown if "event" in line or "lost" in line]) == 1, shown


class Patient(Proxy):
    """A proxy that keeps connections until the engine is there, as systemd does with its socket."""

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while True:
            with suppress(OSError):
                return await super()._dial()
            await asyncio.sleep(0.01)


@pytest.mark.live
@pytest.mark.parametrize("subject", [f"{docker} live-restore" for docker in DOCKERS], indirect=True)
async def test_restart_that_a_proxy_hides_is_made_up_for(subject: Subject) -> None:
    pids = await subject.run_mortals()
    survivor = await subject.run("survivor")
    async with Patient(subject.engine.socket) as proxy:
        watcher = subject.watch(proxy.address, call_timeout=30.0, heartbeat=60.0)
        async with following(subject.check(watcher)) as check:
            await eventually(lambda: check.stats.calls["info"] == 3)  # the last one of the audit
            await check.settled()
            await subject.control.aclose()
            await asyncio.to_thread(subject.engine.kill)
            for pid in pids.values():
                os.kill(pid, signal.SIGKILL)
            await asyncio.to_thread(subject.engine.start)
            await check.until(lambda: len(check.news()) == 3)
            await check.settled()
            assert story(check.news()) == [("exited", "phoenix"), ("exited", "victim"), ("started", "phoenix")]
            assert check.types(survivor) == []
            # Now and then the engine that dies accepts the new stream, and so the outage shows.
            assert check.stats.outages + check.stats.reopened == 1
