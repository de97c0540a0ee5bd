"""Event streams that are cut time and again, as proxies and firewalls do: nobody but the log is told."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from tenacity import wait_fixed

from tests.conftest import Docker
from tests.support.checker import PATIENCE, checked
from tests.support.engines.proxy import Proxy
from whalewatch import Origin, Retry, Watcher

pytestmark = [
    pytest.mark.live,
    pytest.mark.parametrize("docker", ["20.10", "26.1"], indirect=True),
    pytest.mark.promise(4),
    pytest.mark.promise(5),
]

CUTS = 10


async def lost_so_often(watcher: Watcher, times: int) -> None:
    """Wait until the watcher has lost its engine so often."""
    async with asyncio.timeout(PATIENCE):
        async for _ in watcher.status_changes():
            if watcher.stats.outages >= times:
                return


@pytest.mark.parametrize("clean", [True, False], ids=["ended", "cut hard"])
async def test_cuts_are_a_matter_of_the_watcher_alone(
    docker: Docker, clean: bool, caplog: pytest.LogCaptureFixture
) -> None:
    control = docker.control
    for name in ("one", "two", "gone"):
        await control.run(name)
    # The engine replays these to each new stream.
    await control.pause("two")
    await control.kill("gone")
    caplog.set_level(logging.DEBUG, "whalewatch")
    async with (
        Proxy(Path(control.path)) as proxy,
        checked(proxy.address, control, retry=Retry(wait=wait_fixed(0.1))) as check,
    ):
        for cuts in range(1, CUTS + 1):
            await check.settled()
            assert proxy.streams == cuts
            if clean:
                proxy.end_streams()
            else:
                await proxy.cut()
            await lost_so_often(check.watcher, cuts)
            await check.watcher.portfolio.in_sync(PATIENCE)
        await check.settled()
        assert {event.origin for event in check.fold.events} == {Origin.SYNC}
        assert (check.watcher.stats.revisions, check.watcher.stats.outages) == (1, CUTS)
        assert proxy.streams == CUTS + 1
        # Each time one for the events, one to learn the engine's PID, and one for each call under way.
        assert proxy.connections <= (CUTS + 1) * 6
        calls = check.watcher.stats.calls
        assert (calls["info"], calls["events"]) == (CUTS + 1, CUTS + 1)
        told = [record.levelno for record in caplog.records if "trying again" in record.message]
        assert told == [logging.WARNING, *[logging.DEBUG] * (CUTS - 1)]
        warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(warnings) == 1, warnings
        newcomer = await control.run("newcomer")
        (started,) = await check.expect(newcomer, "started")
        assert started.origin is Origin.ENGINE


async def test_cuts_amid_changes_hide_none_of_them(docker: Docker) -> None:
    control = docker.control
    async with (
        Proxy(Path(control.path)) as proxy,
        checked(proxy.address, control, retry=Retry(wait=wait_fixed(0.1))) as check,
    ):
        ids = []
        for cut in range(CUTS // 2):
            ids.append(await control.run(f"mayfly-{cut}"))
            if cut % 2:
                proxy.end_streams()
            else:
                await proxy.cut()
            await lost_so_often(check.watcher, cut + 1)
            await control.kill(ids[-1])
            ids.append(await control.run(f"stayer-{cut}"))
            await check.watcher.portfolio.in_sync(PATIENCE)
        await check.settled()
        for id in ids[::2]:
            assert check.types(id) in ([], ["started", "exited"])  # [] if it lived out of sight
        for id in ids[1::2]:
            assert check.types(id) == ["started"]
