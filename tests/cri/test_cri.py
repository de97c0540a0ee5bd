"""Watching the CRI of real engines and of a fake: the same behaviour whatever source its changes come from."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.cri_checker import checked
from tests.support.engines.containerd import PAUSE_IMAGE, Containerd, Version
from tests.support.engines.containerd_control import ContainerdControl
from tests.support.engines.cri_control import CRIControl
from whalewatch import Origin, Retry, WatchState, cri
from whalewatch.testing import FakeCRI

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PATIENCE = 15.0
"""Seconds after which something that should have come is missing."""

REAL = [("1.6", None), ("1.6", "poll"), ("1.7", None), ("1.7", "poll"), ("1.7", "pod-events")]
"""Versions of containerd, each with the sources that can be had of it: None is the one that is chosen, "native"."""

FAKE = [("broadcast", None), ("ended", None), ("unimplemented", None), ("shared", "pod-events")]
"""Ways in which the fake tells its pod events, with the source."""

CHOSEN = {"broadcast": "pod-events", "ended": "poll", "unimplemented": "poll"}

on_real_engines = pytest.mark.parametrize(
    ("kind", "source"), [pytest.param(*one, marks=pytest.mark.live) for one in REAL]
)

on_all_engines = pytest.mark.parametrize(
    ("kind", "source"), [*FAKE, *(pytest.param(*one, marks=pytest.mark.live) for one in REAL)]
)

Make = Callable[..., Containerd]


def source_of(kind: str, source: str | None) -> str:
    return source or CHOSEN.get(kind, "native")


@asynccontextmanager
async def running(make: Make, version: Version) -> AsyncIterator[tuple[Containerd, CRIControl]]:
    engine = await asyncio.to_thread(make, version, cri=True)
    async with CRIControl(engine.socket) as control:
        yield engine, control
        await control.clean()


@asynccontextmanager
async def serving(make: Make, kind: Any) -> AsyncIterator[tuple[str, CRIControl]]:
    """Run a real engine or the fake one; the value is its address, and its driver."""
    if kind in {"1.6", "1.7"}:
        async with running(make, kind) as (engine, control):
            yield engine.address, control
        return
    runtime, version = ("containerd", "1.7.24") if kind == "shared" else ("cri-o", "1.32.1")
    async with (
        FakeCRI(pod_events=kind, runtime=runtime, version=version) as fake,
        CRIControl(fake.path) as control,
    ):
        yield fake.address, control


def options(source: str | None, **more: Any) -> dict[str, Any]:
    return {"source": source, "poll": 0.1} | more


@on_all_engines
async def test_pods_are_followed_from_start_to_removal(make_containerd: Make, kind: Any, source: str | None) -> None:
    async with serving(make_containerd, kind) as (address, control):
        early = await control.run_pod("early", "prod", labels={"app": "x"}, annotations={"a": "b"})
        app = await control.run(early, "app", labels={"own": "1"}, annotations={"hash": "2"})
        await control.create(early, "created")
        gone = await control.run(early, "gone")
        await control.stop(gone)
        dead = await control.run_pod("dead")
        await control.stop_pod(dead.id)

        async with checked(address, control, **options(source)) as check:
            portfolio = check.watcher.portfolio
            source = source_of(kind, source)
            assert check.watcher.status.source == source
            assert {c.id for c in portfolio.snapshot()} == {early.id, app}
            (pod,) = await portfolio.pods()
            assert (pod.name, pod.namespace, pod.uid) == ("early", "prod", early.uid)
            assert pod.sandbox is not None
            assert pod.sandbox.id == early.id

            shop = await control.run_pod("shop", labels={"app": "shop"})
            await check.expect(shop.id, "started")
            web = await control.run(shop, "web")
            db = await control.run(shop, "db")
            (started,) = await check.expect(web, "started")
            assert started.origin is Origin.ENGINE
            await check.expect(db, "started")
            await check.settled()
            found = await portfolio.pod(shop.uid)
            assert found is not None
            assert found.container_names == ("db", "web")

            await control.stop(web)
            events = await check.expect(web, "started", "exited")
            assert events[-1].exit_code == (None if source == "poll" else 137)
            successor = await control.run(shop, "web", attempt=1)
            await check.expect(successor, "started")
            await check.settled()
            found = await portfolio.pod(shop.uid)
            assert found is not None
            assert [c.id for c in found] == [db, successor]

            await control.remove(web)
            await control.stop_pod(shop.id)
            for id in (shop.id, successor, db):
                await check.expect(id, "started", "exited")
            await control.remove_pod(shop.id)
            await check.settled()
            assert await portfolio.pod(shop.uid) is None
            assert check.types(web) == ["started", "exited"]
            assert check.types(app) == check.types(early.id) == []


@on_real_engines
async def test_container_that_exits_by_itself_tells_its_exit_code(
    make_containerd: Make, kind: Any, source: str | None
) -> None:
    async with running(make_containerd, kind) as (engine, control):
        pod = await control.run_pod("job")
        async with checked(engine.address, control, **options(source)) as check:
            id = await control.run(pod, "once", cmd=["/bin/sh", "-c", "sleep 1; exit 7"])
            events = await check.expect(id, "started", "exited")
            assert events[-1].exit_code == (None if source == "poll" else 7)


@on_all_engines
async def test_nothing_is_missed_while_pods_come_and_go(make_containerd: Make, kind: Any, source: str | None) -> None:
    async with serving(make_containerd, kind) as (address, control):

        async def churn(worker: int) -> None:
            for turn in range(3):
                pod = await control.run_pod(f"pod-{worker}-{turn}")
                await control.run(pod, "app")
                if turn < 2:
                    await control.stop_pod(pod.id)
                    await control.remove_pod(pod.id)

        work = [asyncio.create_task(churn(worker)) for worker in range(3)]
        for _ in range(3):  # each begins at some moment of the churn
            async with checked(address, control, **options(source)) as check:
                await check.watcher.ready(PATIENCE)
        async with checked(address, control, **options(source)) as check:
            await asyncio.gather(*work)
            await check.settled()
            assert len(await check.watcher.portfolio.pods()) == 3


@on_all_engines
async def test_audits_find_nothing_new(make_containerd: Make, kind: Any, source: str | None) -> None:
    async with (
        serving(make_containerd, kind) as (address, control),
        checked(address, control, **options(source, audit=0.3)) as check,
    ):
        for turn in range(4):
            pod = await control.run_pod(f"pod-{turn}")
            id = await control.run(pod, "app")
            await check.expect(id, "started")
            await control.stop_pod(pod.id)
            await check.expect(id, "started", "exited")
            await control.remove_pod(pod.id)
        # At the end no audit has found anything to repair.


@on_real_engines
async def test_engine_is_killed_and_comes_back(make_containerd: Make, kind: Any, source: str | None) -> None:
    async with running(make_containerd, kind) as (engine, control):
        pod = await control.run_pod("shop")
        survivor, victim = await control.run(pod, "survivor"), await control.run(pod, "victim")
        quick = {"heartbeat": 1.0, "retry": Retry(stable_after=0)}
        async with checked(engine.address, control, **options(source, **quick)) as check:
            pid = await control.pid(victim)
            await asyncio.to_thread(engine.kill)
            async with asyncio.timeout(PATIENCE):
                async for status in check.watcher.status_changes():
                    if status.state is WatchState.DISCONNECTED:
                        break
            assert {c.id for c in check.watcher.portfolio.snapshot()} == {pod.id, survivor, victim}
            os.kill(pid, signal.SIGKILL)
            await control.aclose()
            await asyncio.to_thread(engine.start)
            await check.watcher.portfolio.in_sync(30)
            await check.settled()
            (exited,) = await check.expect(victim, "exited")
            assert exited.origin in {Origin.RESYNC, Origin.ENGINE}
            assert check.types(survivor) == check.types(pod.id) == []


@on_real_engines
async def test_engine_tells_of_itself(make_containerd: Make, kind: Any, source: str | None) -> None:
    async with running(make_containerd, kind) as (engine, control):
        adapter = cri.CRIEngine(engine.address, source=source)  # type: ignore[arg-type]
        await adapter.connect()
        assert adapter.runtime == "containerd"
        assert await adapter.version() == (await control.version())[1].removeprefix("v")
        assert adapter.pid == engine.pid
        assert adapter.source == source_of(kind, source)
        uuid = await adapter.id()
        assert uuid.count("-") == 4
        assert await cri.CRIEngine(engine.address).id() == uuid
        await adapter.close()
        await adapter.close()


@on_real_engines
async def test_what_others_do_in_the_namespace_of_the_cri_is_not_seen(
    make_containerd: Make, kind: Any, source: str | None
) -> None:
    async with running(make_containerd, kind) as (engine, control), ContainerdControl(engine.socket) as own:
        await own.run("before", "k8s.io")
        pod = await control.run_pod("shop")
        web = await control.run(pod, "web")
        async with checked(engine.address, control, **options(source)) as check:
            await own.run("after", "k8s.io")
            # A process in a container, under an id that is the container's, exits as the container would.
            assert await own.exec(web, web, ["/bin/true"], "k8s.io") == 0
            marker = await control.run(pod, "marker")
            await check.expect(marker, "started")
            assert {c.id for c in check.watcher.portfolio.snapshot()} == {pod.id, web, marker}
            assert check.types(web) == []
            for id in ("before", "after"):
                await own.remove(id, "k8s.io")


@on_real_engines
async def test_engine_calls_are_as_few_as_promised(make_containerd: Make, kind: Any, source: str | None) -> None:
    async with running(make_containerd, kind) as (engine, control):
        pod = await control.run_pod("shop")
        for number in range(4):
            await control.run(pod, f"c{number}")
        await control.stop(await control.run(pod, "stopped"))
        async with checked(engine.address, control, **options(source, poll=60.0)) as check:
            async with asyncio.timeout(PATIENCE):
                while check.watcher.stats.calls["sandboxes"] < 2:  # noqa: ASYNC110 - counters can only be looked at
                    await asyncio.sleep(0.01)
            calls = dict(check.watcher.stats.calls)
            if (
                source == "pod-events"
            ):  # what was queued before we came may be told when the picture is complete already
                assert 4 <= calls["container-status"] <= 9
                calls["container-status"] = 4
            statuses = {"sandbox-status": 1, "container-status": 4}
            own = {
                None: {"tasks": 2, "events": 1, "ping": 1},
                "poll": statuses,
                "pod-events": statuses | {"events": 1, "ping": 1},
            }[source]
            assert calls == {"version": 1, "introspection": 1, "containers": 2, "sandboxes": 2} | own


@on_real_engines
async def test_image_is_as_it_was_named_with_every_source(make_containerd: Make, kind: Any, source: str | None) -> None:
    async with running(make_containerd, kind) as (engine, control):
        pod = await control.run_pod("shop")
        named = await control.run(pod, "named")
        by_digest = (await control.container_status(named)).image_ref
        digested = await control.run(pod, "digested", image=by_digest)
        for other in ("registry.local/a:1", "registry.local/z:1"):  # another name for it
            await asyncio.to_thread(engine.ctr, "images", "tag", PAUSE_IMAGE, other, namespace="k8s.io")
        async with checked(engine.address, control, **options(source)) as check:
            images = {c.id: c.image for c in check.watcher.portfolio.snapshot()}
            assert images == {pod.id: "", named: PAUSE_IMAGE, digested: by_digest}
