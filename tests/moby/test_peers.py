"""Unix sockets whose path leads to another engine while a watcher is connected."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiodocker
import aiohttp
import pytest

from tests.support.engines.control import DockerControl
from tests.support.engines.dockerd import Dockerd
from tests.support.followed import AT_ONCE, Followed, eventually, followed
from tests.support.scripted import PATIENCE
from whalewatch import Origin, moby
from whalewatch.testing import FakeDocker


@asynccontextmanager
async def swapped(tmp_path: Path) -> AsyncIterator[tuple[FakeDocker, FakeDocker, Followed, Callable[[], None]]]:
    """Two engines that are the same by all that they say, who follows the first, and what swaps their sockets."""
    paths = [tmp_path / f"{name}.sock" for name in ("docker", "other", "spare")]

    def swap() -> None:
        for old, new in ((0, 2), (1, 0), (2, 1)):
            paths[old].rename(paths[new])

    async with (
        FakeDocker(paths[0], engine_id="twin", seed=1) as one,
        FakeDocker(paths[1], engine_id="twin", seed=1, start_pid=9001) as other,
    ):
        one.run("first")
        other.run("other")
        async with followed(moby.watch(one.address, retry=AT_ONCE, audit=None, heartbeat=60.0)) as follow:
            await eventually(lambda: one.requests["info"] == 3)  # the last one of the audit
            await eventually(lambda: follow.stats.audits == 1)
            yield one, other, follow, swap
            swap()  # so that each removes its own


async def test_session_ends_at_its_first_connection_to_another_engine(tmp_path: Path) -> None:
    async with swapped(tmp_path) as (one, other, follow, swap):
        held = [one.faults.hang("inspect", one.run(f"c{number}")) for number in range(3)]
        assert held, "no connection is idle then"
        swap()
        for number in range(3, 8):
            one.run(f"c{number}")
        await follow.until(lambda: follow.shows(other))
        error = next(status.error for status in follow.states if status.error is not None)
        assert str(error) == f"Docker engine at {one.address}: another process listens there now"
        assert follow.stats.outages == 1
        assert {event.origin for event in follow.news() if event.container.name == "other"} == {Origin.RESYNC}
        assert other.requests["inspect"] == len(other.containers), "nothing of the former engine was asked of this one"


async def test_stream_that_is_cut_is_not_continued_by_another_engine(tmp_path: Path) -> None:
    async with swapped(tmp_path) as (one, other, follow, swap):
        swap()
        one.faults.cut_streams()
        await follow.until(lambda: follow.shows(other))
        assert (follow.stats.outages, follow.stats.reopened) == (1, 0)


async def test_connections_of_the_application_reach_the_same_engine_or_none(tmp_path: Path) -> None:
    async with swapped(tmp_path) as (one, other, follow, swap):
        client = follow.watcher.engine.client
        assert isinstance(client, aiodocker.Docker)
        async with client.session.get(f"{client.docker_host}/events"):
            swap()
            with pytest.raises(aiohttp.ClientConnectionError, match="another process listens there now"):
                await client.session.get(f"{client.docker_host}/containers/json")
        assert other.requests["list"] == 0
        swap()
        with pytest.raises(aiohttp.ClientConnectionError, match="another process"):
            await client.session.get(f"{client.docker_host}/containers/json")
        one.faults.cut_streams()
        await follow.until_stats(lambda stats: stats.outages == 1 and stats.syncs == 2)
        assert isinstance(follow.watcher.engine.client, aiodocker.Docker)
        assert len(await follow.watcher.engine.client.containers.list()) == 1


@pytest.mark.live
async def test_real_engines_that_change_places(make_dockerd: Callable[..., Dockerd], tmp_path: Path) -> None:
    old, new = [await asyncio.to_thread(make_dockerd, version) for version in ("20.10", "26.1")]
    link = tmp_path / "docker.sock"
    link.symlink_to(old.socket)
    async with DockerControl(old.socket) as first, DockerControl(new.socket) as second:
        ids = {await second.run("second")}
        async with moby.watch(str(link), retry=AT_ONCE, audit=None, heartbeat=60.0) as watcher:
            await watcher.ready(PATIENCE)
            await eventually(lambda: watcher.stats.calls["info"] == 3)
            link.unlink()
            link.symlink_to(new.socket)
            assert watcher.engine._connection is not None
            for kept in watcher.engine._connection._client._idle:
                kept.abort()  # so that the next inspect needs a new one
            await first.run("first")
            await eventually(lambda: watcher.stats.syncs == 2)
            assert {container.id for container in watcher.portfolio.snapshot()} == ids
