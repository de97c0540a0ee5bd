"""Connections that are cut time and again, as proxies and firewalls do: nobody but the log is told."""

from __future__ import annotations

import logging

import pytest
from tenacity import wait_fixed

from tests.promises.conftest import CONTAINERDS, DOCKERS, Subject
from tests.support.checker import PATIENCE
from tests.support.engines.proxy import Proxy
from tests.support.followed import eventually
from whalewatch import Origin, Retry, WatchState

pytestmark = [pytest.mark.live, pytest.mark.promise(4), pytest.mark.promise(5)]

CUTS = 10

RETRY = Retry(wait=wait_fixed(0.1))

CONNECTIONS = 6
"""How many connections containerd's watcher makes each time: for the calls, three to see who listens, and one for each
call that was cut."""


@pytest.fixture(autouse=True)
def _streams_that_are_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let streams be cut within a second, and still be no failure."""
    monkeypatch.setattr("whalewatch._core.stream.SHORT_STREAM", 0.0)


async def run_some(subject: Subject) -> None:
    await subject.run("one")
    # Docker replays these to each new stream.
    await subject.pause(await subject.run(f"{subject.elsewhere}paused"))
    await subject.kill(await subject.run("gone"))


@pytest.mark.parametrize("subject", DOCKERS, indirect=True)
@pytest.mark.parametrize("clean", [True, False])
async def test_cut_streams_are_continued_and_the_picture_stays_in_sync(
    subject: Subject, clean: bool, caplog: pytest.LogCaptureFixture
) -> None:
    await run_some(subject)
    caplog.set_level(logging.DEBUG, "whalewatch")
    async with Proxy(subject.engine.socket) as proxy, subject.checked(proxy.address, retry=RETRY) as check:
        await check.until(lambda: check.states)
        for cuts in range(1, CUTS + 1):
            await check.settled()
            if clean:
                proxy.end_streams()
            else:
                await proxy.cut()
            await eventually(lambda cuts=cuts: check.watcher.stats.reopened == cuts)  # type: ignore[misc]
        await check.settled()
        assert {event.origin for event in check.fold.events} == {Origin.SYNC}
        stats = check.watcher.stats
        assert (stats.revisions, stats.syncs, stats.outages) == (1, 1, 0)
        assert check.states[-1].state is WatchState.SYNCED
        assert proxy.streams == CUTS + 1
        told = [record.levelno for record in caplog.records if "another one continues it" in record.message]
        assert told == [logging.INFO, *[logging.DEBUG] * (CUTS - 1)]
        assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        (started,) = await check.expect(await subject.run("newcomer"), "started")
        assert started.origin is Origin.ENGINE


@pytest.mark.parametrize("subject", CONTAINERDS, indirect=True)
async def test_cut_connections_are_a_matter_of_the_watcher_alone(
    subject: Subject, caplog: pytest.LogCaptureFixture
) -> None:
    await run_some(subject)
    caplog.set_level(logging.DEBUG, "whalewatch")
    async with Proxy(subject.engine.socket) as proxy, subject.checked(proxy.address, retry=RETRY) as check:
        for cuts in range(1, CUTS + 1):
            await check.settled()
            await proxy.cut()
            await eventually(lambda cuts=cuts: check.watcher.stats.outages == cuts)  # type: ignore[misc]
            await check.watcher.portfolio.in_sync(PATIENCE)
        await check.settled()
        assert {event.origin for event in check.fold.events} == {Origin.SYNC}
        assert (check.stats.revisions, check.stats.outages) == (1, CUTS)
        assert proxy.connections <= (CUTS + 1) * CONNECTIONS
        told = [record.levelno for record in caplog.records if "trying again" in record.message]
        assert told == [logging.WARNING, *[logging.DEBUG] * (CUTS - 1)]
        warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        # A cut may hit the listing of a namespace, or that of an audit, which is told by itself.
        others = [warning for warning in warnings if "cannot list" not in warning and "an audit failed" not in warning]
        assert len(others) == 1, warnings
        (started,) = await check.expect(await subject.run("newcomer"), "started")
        assert started.origin is Origin.ENGINE


@pytest.mark.parametrize("subject", [*DOCKERS, *CONTAINERDS], indirect=True)
async def test_cuts_amid_changes_hide_none_of_them(subject: Subject) -> None:
    async with Proxy(subject.engine.socket) as proxy, subject.checked(proxy.address, retry=RETRY) as check:
        mayflies, stayers = [], []
        for cut in range(CUTS // 2):
            mayflies.append(await subject.run(f"{subject.elsewhere}mayfly-{cut}"))
            if subject.kind == "docker" and cut % 2:
                proxy.end_streams()
            else:
                await proxy.cut()
            await subject.kill(mayflies[-1])
            await eventually(lambda cut=cut: check.stats.outages + check.stats.reopened > cut)  # type: ignore[misc]
            stayers.append(await subject.run(f"stayer-{cut}"))
            await check.watcher.portfolio.in_sync(PATIENCE)
        await check.settled()
        assert subject.kind != "docker" or check.stats.outages == 0
        for id in mayflies:
            assert check.types(id) in ([], ["started", "exited"])  # [] if it lived out of sight
        for id in stayers:
            assert check.types(id) == ["started"]
