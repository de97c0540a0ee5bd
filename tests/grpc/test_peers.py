"""One connection has one peer, also if another socket is put into the place of the one connected."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.followed import AT_ONCE, eventually
from tests.support.scripted import PATIENCE
from whalewatch import EngineUnavailable, WatchState, containerd, cri
from whalewatch.testing import FakeContainerd, FakeCRI

Watch = Callable[..., Any]

KINDS: dict[str, tuple[Callable[..., Any], Watch, dict[str, Any]]] = {
    "containerd": (FakeContainerd, containerd.watch, {}),
    "pod-events": (FakeCRI, cri.watch, {"source": "pod-events"}),
    "poll": (FakeCRI, cri.watch, {"source": "poll", "poll": 0.05}),
}


class Pair:
    """Two engines of one kind, each with one container of another name, and a path for one of them."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.make, self.watch, self.options = KINDS[kind]
        self.folder = folder
        self.path = folder / "s"
        self.fakes: list[Any] = []
        self.ids: list[str] = []

    async def enter(self, stack: AsyncExitStack) -> None:
        for name in ("a", "b"):
            fake = await stack.enter_async_context(self.make(self.folder / name))
            self.fakes.append(fake)
            if isinstance(fake, FakeCRI):
                self.ids.append(fake.run(fake.run_pod(name, infra=False), name))
            else:
                fake.run(name)
                self.ids.append(name)
        os.link(self.folder / "a", self.path)

    def swap(self) -> None:
        """Put the socket of the second engine into the place of the first one's."""
        os.link(self.folder / "b", self.folder / "new")
        (self.folder / "new").rename(self.path)

    def watcher(self, **options: Any) -> Any:
        return self.watch(str(self.path), retry=AT_ONCE, audit=None, **self.options, **options)


@pytest.fixture(params=KINDS)
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    made = Pair(request.param, tmp_path)
    async with AsyncExitStack() as stack:
        await made.enter(stack)
        yield made


async def test_swapped_socket_is_noticed_with_the_next_heartbeat_and_the_other_engine_is_followed(pair: Pair) -> None:
    async with pair.watcher(heartbeat=0.2, call_timeout=1.0) as watcher:
        await watcher.ready(PATIENCE)
        await eventually(lambda: watcher.stats.audits == 1)
        assert [c.id for c in watcher.portfolio.snapshot()] == [pair.ids[0]]
        pair.swap()
        await eventually(lambda: [c.id for c in watcher.portfolio.snapshot()] == [pair.ids[1]])
        assert (watcher.status.state, watcher.stats.outages) == (WatchState.SYNCED, 1)


async def test_socket_that_is_swapped_while_the_engine_is_identified_is_connected_anew(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = pair.watcher().engine
    first = engine._new()
    pair.swap()  # before the first connection is made
    monkeypatch.setattr(type(engine), "_new", lambda self: first)
    with pytest.raises(EngineUnavailable, match="another socket was put into the place of the one connected"):
        await engine.connect()
    monkeypatch.undo()
    await engine.connect()
    assert pair.ids[1] in (await engine.listing()).containers
    assert await engine.is_same_engine()
    pair.path.unlink()
    os.link(pair.folder / "a", pair.path)
    assert not await engine.is_same_engine()
    await engine.close()


async def test_connection_that_is_lost_leads_to_no_other_engine_also_for_calls_of_the_application(
    pair: Pair,
) -> None:
    engine = pair.watcher().engine
    await engine.connect()
    pair.swap()
    pair.fakes[0].faults.refuse()
    for path in ("/containerd.services.version.v1.Version/Version", "/runtime.v1.RuntimeService/Version"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await engine.client.unary_unary(path)(b"", timeout=2)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(EngineUnavailable):
        await engine.ping()
    await engine.close()


async def test_socket_that_is_only_removed_ends_no_watch(pair: Pair) -> None:
    async with pair.watcher(heartbeat=0.1) as watcher:
        await watcher.ready(PATIENCE)
        pair.path.unlink()
        pings = watcher.stats.calls.get("ping", 0)
        await eventually(lambda: watcher.stats.calls.get("ping", 0) > pings + 2)
        assert (watcher.status.state, watcher.stats.outages) == (WatchState.SYNCED, 0)
