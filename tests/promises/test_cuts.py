"""Connections that are cut time and again, as proxies and firewalls do: nobody but the log is told."""

from __future__ import annotations

import logging

import pytest
from tenacity import wait_fixed

from tests.promises.conftest import CONTAINERDS, DOCKERS, Subject
from tests.support.checker import PATIENCE
from tests.support.engines.proxy import Proxy
from tests.support.followed import eventually
from whalewatch import Origin, Retry

pytestmark = [pytest.mark.live, pytest.mark.promise(4), pytest.mark.promise(5)]

CUTS = 10

RETRY = Retry(wait=wait_fixed(0.1))

ASKED = {"docker": (6, ("info", "events")), "containerd": (4, ("version", "events", "ping"))}
"""How many connections are made each time (those for the calls, one to learn the engine's PID, and one for each call
that was cut), and calls that are made once."""


@pytest.mark.parametrize(
    ("subject", "clean"),
    [*((docker, True) for docker in DOCKERS), *((engine, False) for engine in (*DOCKERS, *CONTAINERDS))],
    indirect=["subject"],
)
async def test_cuts_are_a_matter_of_the_watcher_alone(
    subject: Subject, clean: bool, caplog: pytest.LogCaptureFixture
) -> None:
    await subject.run("one")
    # Docker replays these to each new stream.
    await subject.pause(await subject.run(f"{subject.elsewhere}paused"))
    await subject.kill(await subject.run("gone"))
    caplog.set_level(logging.DEBUG, "whalewatch")
    async with Proxy(subject.engine.socket) as proxy, subject.checked(proxy.address, retry=RETRY) as check:
        for cuts in range(1, CUTS + 1):
            await check.settled()
            if clean:
                proxy.end_streams()
            else:
                await proxy.cut()
            await eventually(lambda cuts=cuts: check.watcher.stats.outages == cuts)  # type: ignore[misc]
            await check.watcher.portfolio.in_sync(PATIENCE)
        await check.settled()
        assert {event.origin for event in check.fold.events} == {Origin.SYNC}
        stats = check.watcher.stats
        assert (stats.revisions, stats.outages) == (1, CUTS)
        connections, once = ASKED[subject.kind]
        assert proxy.streams == (CUTS + 1 if subject.kind == "docker" else 0), "of those that a proxy knows"
        assert proxy.connections <= (CUTS + 1) * connections
        assert {kind: stats.calls[kind] for kind in once} == dict.fromkeys(once, CUTS + 1)
        told = [record.levelno for record in caplog.records if "trying again" in record.message]
        assert told == [logging.WARNING, *[logging.DEBUG] * (CUTS - 1)]
        warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        # A cut may hit the listing of a namespace, which is told by itself.
        assert len([warning for warning in warnings if "cannot list" not in warning]) == 1, warnings
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
            await eventually(lambda cut=cut: check.watcher.stats.outages > cut)  # type: ignore[misc]
            stayers.append(await subject.run(f"stayer-{cut}"))
            await check.watcher.portfolio.in_sync(PATIENCE)
        await check.settled()
        for id in mayflies:
            assert check.types(id) in ([], ["started", "exited"])  # [] if it lived out of sight
        for id in stayers:
            assert check.types(id) == ["started"]
