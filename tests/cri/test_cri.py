"""Watching the CRI of real engines and of a fake: the same behaviour whatever source its changes come from."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from tests.conftest import CRIUnderTest
from tests.support.cri_checker import CheckedCRI, checked
from tests.support.engines.containerd import PAUSE_IMAGE, Containerd
from tests.support.engines.containerd_control import ContainerdControl
from tests.support.engines.cri_control import CRIControl
from tests.support.followed import eventually
from whalewatch import EngineUnavailable, Origin, WatchState, cri
from whalewatch.testing import FakeCRI

REAL = [
    pytest.param(*one, marks=pytest.mark.live)
    for one in (("1.6", None), ("1.6", "poll"), ("1.7", None), ("1.7", "poll"), ("1.7", "pod-events"))
]
"""Versions of containerd, each with the sources that can be had of it: None is the one that is chosen, "native"."""

FAKE = [("broadcast", None), ("ended", None), ("unimplemented", None), ("shared", "pod-events")]
"""Ways in which the fake tells its pod events, with the source."""

CHOSEN = {"broadcast": "pod-events", "ended": "poll", "unimplemented": "poll"}

on_real_engines = pytest.mark.parametrize(("kind", "source"), REAL)

on_all_engines = pytest.mark.parametrize(("kind", "source"), [*FAKE, *REAL])


@dataclass(frozen=True)
class Engine(CRIUnderTest):
    """An engine for one test alone, the source that is asked for, which may be None, and the one that it will be."""

    option: Any
    source: str

    def checked(self, **options: Any) -> AbstractAsyncContextManager[CheckedCRI]:
        """Watch it under supervision."""
        return checked(self.address, self.control, **{"source": self.option, "poll": 0.1} | options)


@pytest.fixture
async def engine(kind: str, source: str | None, make_cri: Callable[..., Containerd]) -> AsyncIterator[Engine]:
    async with AsyncExitStack() as stack:
        if kind in {"1.6", "1.7"}:
            real = await asyncio.to_thread(make_cri, kind)
            control = await stack.enter_async_context(CRIControl(real.socket))
            stack.push_async_callback(control.clean)
            yield Engine(real.address, control, kind, None, real, source, source or "native")
        else:
            runtime, version = ("containerd", "1.7.24") if kind == "shared" else ("cri-o", "v1.33.0")
            events: Any = kind
            fake = await stack.enter_async_context(FakeCRI(pod_events=events, runtime=runtime, version=version))
            control = await stack.enter_async_context(CRIControl(fake.path))
            yield Engine(fake.address, control, kind, fake, None, source, source or CHOSEN[kind])


@on_all_engines
async def test_pods_are_followed_from_start_to_removal(engine: Engine) -> None:
    control = engine.control
    early = await control.run_pod("early", "prod", labels={"app": "x"}, annotations={"a": "b"})
    app = await control.run(early, "app", labels={"own": "1"}, annotations={"hash": "2"})
    await control.create(early, "created")
    await control.stop(await control.run(early, "gone"))
    await control.stop_pod((await control.run_pod("dead")).id)
    async with engine.checked() as check:
        portfolio = check.watcher.portfolio
        assert check.watcher.status.source == engine.source
        assert {c.id for c in portfolio.snapshot()} == {early.id, app}
        (pod,) = await portfolio.pods()
        assert (pod.name, pod.namespace, pod.uid) == ("early", "prod", early.uid)
        assert pod.sandbox is not None
        assert (pod.sandbox.id, pod.sandbox.name, pod.container_names) == (early.id, "early", ("app",))
        (found_app,) = pod
        assert (found_app.project, found_app.engine) == ("", engine.address)
        assert (found_app.started_at is None) is (engine.source == "native")
        assert app in portfolio.snapshot()

        shop = await control.run_pod("shop", labels={"app": "shop"})
        await check.expect(shop.id, "started")
        web = await control.run(shop, "web")
        db = await control.run(shop, "db")
        (started,) = await check.expect(web, "started")
        assert started.origin is Origin.ENGINE
        await check.expect(db, "started")
        await check.settled()
        assert {pod.uid: pod.container_names for pod in await portfolio.pods()}[shop.uid] == ("db", "web")

        await control.stop(web)
        events = await check.expect(web, "started", "exited")
        assert events[-1].exit_code == (None if engine.source == "poll" and engine.fake else 137)
        successor = await control.run(shop, "web", attempt=1)
        await check.expect(successor, "started")
        await check.settled()
        assert [c.id for c in await portfolio.pod(shop.uid) or ()] == [db, successor]

        await control.remove(web)
        await control.stop_pod(shop.id)
        for id in (shop.id, successor, db):
            await check.expect(id, "started", "exited")
        await control.remove_pod(shop.id)
        await check.settled()
        assert await portfolio.pod(shop.uid) is None
        assert check.types(web) == ["started", "exited"]
        assert check.types(app) == check.types(early.id) == []


@on_all_engines
async def test_nothing_is_missed_while_pods_come_and_go(engine: Engine) -> None:
    async def churn(worker: int) -> None:
        for turn in range(3):
            pod = await engine.control.run_pod(f"pod-{worker}-{turn}")
            await engine.control.run(pod, "app")
            if turn < 2:
                await engine.control.stop_pod(pod.id)
                await engine.control.remove_pod(pod.id)

    work = [asyncio.create_task(churn(worker)) for worker in range(3)]
    # containerd 1.7 notices that a reader of pod events has gone when it has lost an event to it: no reader goes there.
    competing = engine.source == "pod-events" and engine.fake is None
    for _ in range(0 if competing else 3):  # each begins at some moment of the churn
        async with engine.checked() as check:
            assert check.watcher.status.state is WatchState.SYNCED
    async with engine.checked() as check:
        await asyncio.gather(*work)
        await check.settled()
        assert len(await check.watcher.portfolio.pods()) == 3


@pytest.mark.slow
@on_all_engines
async def test_audits_find_nothing_new_and_containers_that_exit_by_themselves_tell_their_code(engine: Engine) -> None:
    async with engine.checked(audit=0.3) as check:
        for turn in range(4):
            pod = await engine.control.run_pod(f"pod-{turn}")
            app = await engine.control.run(pod, "app")
            await check.expect(app, "started")
            once = await engine.control.run(pod, "once", cmd=["/bin/sh", "-c", "sleep 2; exit 7"])
            await check.expect(once, "started")
            if engine.fake is not None:
                engine.fake.exit(once, 7)
            _, exited = await check.expect(once, "started", "exited")
            assert exited.exit_code == (None if engine.source == "poll" and engine.fake else 7)
            await engine.control.stop_pod(pod.id)
            await check.expect(app, "started", "exited")
            await engine.control.remove_pod(pod.id)
        # At the end no audit has found anything to repair.


@on_all_engines
async def test_engine_tells_of_itself(engine: Engine) -> None:
    adapter = cri.CRIEngine(engine.address, source=engine.option)
    assert (adapter.source, adapter.pid, adapter.runtime, adapter.client) == (engine.option or "", None, None, None)
    id = await adapter.id()
    for ask in (adapter.listing, adapter.ping):
        with pytest.raises(EngineUnavailable, match="not connected"):
            await ask()
    await adapter.connect()
    runtime, version = await engine.control.version()
    assert (adapter.runtime, await adapter.version()) == (runtime, version.removeprefix("v"))
    pid = engine.engine.pid if engine.engine is not None else os.getpid()
    assert (adapter.pid, adapter.source) == (pid, engine.source)
    assert id == await adapter.id() == await cri.CRIEngine(engine.address).id()
    assert id.count("-") == 4 if engine.engine is not None else id == runtime
    await adapter.close()
    await adapter.close()


@on_real_engines
async def test_what_others_do_in_the_namespace_of_the_cri_is_not_seen(engine: Engine) -> None:
    control = engine.control
    assert engine.engine is not None
    async with ContainerdControl(engine.engine.socket) as own:
        await own.run("before", "k8s.io")
        pod = await control.run_pod("shop")
        web = await control.run(pod, "web")
        async with engine.checked() as check:
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
async def test_engine_calls_are_as_few_as_promised(engine: Engine) -> None:
    pod = await engine.control.run_pod("shop")
    for number in range(4):
        await engine.control.run(pod, f"c{number}")
    await engine.control.stop(await engine.control.run(pod, "stopped"))
    async with engine.checked(poll=60.0) as check:
        await eventually(lambda: check.watcher.stats.calls["introspection"] == 2)
        calls = dict(check.watcher.stats.calls)
        if engine.source == "pod-events":
            # Events that were queued before may come when the picture is complete already, of the stopped one too.
            assert 4 <= calls["container-status"] <= 9
            assert calls.pop("container", 0) <= 1
            calls["container-status"] = 4
        statuses = {"sandbox-status": 1, "container-status": 4}
        own = {
            "native": {"tasks": 2, "events": 1, "ping": 1},
            "poll": statuses,
            "pod-events": statuses | {"events": 1, "ping": 2},
        }[engine.source]
        assert calls == {"version": 2, "introspection": 2, "containers": 4, "sandboxes": 2} | own


@on_real_engines
async def test_image_is_as_it_was_named_with_every_source(engine: Engine) -> None:
    assert engine.engine is not None
    pod = await engine.control.run_pod("shop")
    named = await engine.control.run(pod, "named")
    by_digest = (await engine.control.container_status(named)).image_ref
    digested = await engine.control.run(pod, "digested", image=by_digest)
    for other in ("registry.local/a:1", "registry.local/z:1"):  # another name for it
        tag = ["images", "tag", PAUSE_IMAGE, other]
        await asyncio.to_thread(engine.engine.ctr, *tag, namespace="k8s.io")
    async with engine.checked() as check:
        images = {c.id: c.image for c in check.watcher.portfolio.snapshot()}
        assert images == {pod.id: "", named: PAUSE_IMAGE, digested: by_digest}
