"""Watching containerd: the same behaviour on the fake one and on every real one."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from tests.conftest import PATIENCE, ContainerdUnderTest
from tests.support.checker import TOLD
from tests.support.containerd_checker import checked
from tests.support.engines.containerd_control import ContainerdControl
from tests.support.followed import eventually
from whalewatch import Container, Dead, EngineUnavailable, Origin
from whalewatch.containerd import ContainerdEngine, Inspection

PROJECT = "com.docker.compose.project"

LISTINGS = {"namespaces", "tasks", "containers"}
"""Kinds of calls that listings make."""

INSPECTS = {"task", "container"}
"""Kinds of calls that an inspect makes."""


def spent(watcher: Any, kinds: set[str]) -> dict[str, int]:
    """The calls of these kinds so far."""
    return {kind: count for kind, count in watcher.stats.calls.items() if kind in kinds}


async def run_and_tell(control: ContainerdControl, id: str, namespace: str = "default") -> int:
    """Run a container, wait until that is told, which may be later, and return its PID."""
    async with control.events('topic=="/tasks/start"') as starts:
        pid = await control.run(id, namespace)
        await anext(starts)
    return pid


async def test_initial_picture_is_what_containerd_says(containerd: ContainerdUnderTest) -> None:
    control = containerd.control
    await control.run("web", labels={"nerdctl/name": "shop-web", PROJECT: "shop"}, image="registry.example/web:1")
    await control.run("web", "other", labels={"nerdctl/name": "frontend", "com.docker.stack.namespace": "mail"})
    await control.run("plain", "other")
    await control.pause("plain", "other")
    await control.create("created")
    await control.create("waiting")
    await control.task_create("waiting")
    await control.run("exited")
    await control.kill_and_wait("exited")
    await control.namespace_create("empty")

    async with checked(containerd.address, control) as check:
        portfolio = check.watcher.portfolio
        plain, frontend, web = sorted(portfolio.snapshot(), key=lambda container: container.id)
        assert (plain.id, plain.name, plain.paused) == ("other/plain", "other/plain", True)
        assert (frontend.id, frontend.name, frontend.paused) == ("other/web", "other/frontend", False)
        assert (web.id, web.name, web.project, web.image) == ("web", "shop-web", "shop", "registry.example/web:1")
        assert await portfolio.container("shop-web") is await portfolio.container("web") is web
        assert await portfolio.names() == ("mail", "shop")
        assert all(e.origin is Origin.SYNC for e in check.fold.events)
        # What containerd does not tell:
        assert (web.started_at, web.health, web.privileged, web.ports, len(web.addresses)) == (None, None, None, (), 0)


@pytest.mark.parametrize("namespace", ["default", "other"])
async def test_every_operation_is_followed_by_its_events(containerd: ContainerdUnderTest, namespace: str) -> None:
    control = containerd.control
    web = "web" if namespace == "default" else f"{namespace}/web"
    async with checked(containerd.address, control) as check:
        pid = await control.run("web", namespace, labels={"a": "1"})
        (started,) = await check.expect(web, "started")
        assert (started.container.pid, dict(started.container.labels)) == (pid, {"a": "1"})
        await control.pause("web", namespace)
        await check.expect(web, "started", "paused")
        await control.resume("web", namespace)
        await check.expect(web, "started", "paused", "unpaused")
        await control.update_labels("web", {"b": "2", PROJECT: "shop", "nerdctl/name": "new"}, namespace)
        *_, updated = await check.expect(web, "started", "paused", "unpaused", "updated")
        assert updated.previous is not None
        assert (dict(updated.previous.labels), updated.container.labels["b"]) == ({"a": "1"}, "2")
        assert updated.container.name.endswith("new")
        assert updated.container.project == "shop"
        await control.kill_and_wait("web", namespace)
        life = ["started", "paused", "unpaused", "updated", "exited"]
        *_, exited = await check.expect(web, *life)
        assert (exited.exit_code, exited.container.pid) == (137, pid)
        again = await control.rerun("web", namespace)
        *_, restarted = await check.expect(web, *life, "started")
        assert restarted.container.pid == again
        assert {event.origin for event in check.of(web)} <= TOLD
        timestamps = [event.timestamp for event in check.of(web)]
        assert timestamps == sorted(timestamps)
        await control.remove("web", namespace)
        await check.expect(web, *life, "started", "exited")
        await check.settled()


@pytest.mark.parametrize("exec_id", ["probe", "web"])
async def test_exit_of_a_process_executed_in_a_container_is_no_event_of_it(
    containerd: ContainerdUnderTest, exec_id: str
) -> None:
    control = containerd.control
    pid = await run_and_tell(control, "web")
    async with checked(containerd.address, control) as check:
        (before,) = check.watcher.portfolio.snapshot()
        signals = check.watcher.stats.signals
        async with control.events('topic=="/tasks/exit"') as exits:
            for _ in range(5):
                assert await control.exec("web", exec_id) == 0
                async with asyncio.timeout(PATIENCE):
                    told = await anext(exits)
                assert (told.event.container_id, told.event.id) == ("web", exec_id)
                assert told.event.pid != pid
        await control.pause("web")
        (paused,) = await check.expect("web", "paused")
        assert paused.container == attrs.evolve(before, paused=True)
        if exec_id != "web":  # which is looked into
            assert (spent(check.watcher, INSPECTS), check.watcher.stats.signals) == ({}, signals + 1)
        await control.resume("web")
        await check.expect("web", "paused", "unpaused")
        await control.kill_and_wait("web")
        *_, exited = await check.expect("web", "paused", "unpaused", "exited")
        assert (exited.origin in TOLD, exited.exit_code, exited.container.pid) == (True, 137, pid)


async def test_namespaces_come_and_go_while_watched(containerd: ContainerdUnderTest) -> None:
    control = containerd.control
    async with checked(containerd.address, control) as check:
        await control.namespace_create("late", {"a": "1"})
        await control.run("web", "late")
        await check.expect("late/web", "started")
        await control.run("web", "implied")
        await check.expect("implied/web", "started")
        await control.remove("web", "late")
        await control.namespace_delete("late")
        await check.expect("late/web", "started", "exited")
        await control.run("web", "late")
        await check.expect("late/web", "started", "exited", "started")


async def test_ignored_namespaces_are_neither_asked_for_nor_told_of(containerd: ContainerdUnderTest) -> None:
    control = containerd.control
    await run_and_tell(control, "web")
    for namespace in ("moby", "k8s.io"):
        await control.run("early", namespace)
    async with checked(containerd.address, control) as check:
        for namespace in ("moby", "k8s.io"):
            await control.run("late", namespace)
            await control.remove("early", namespace)
        await control.pause("web")
        await check.expect("web", "paused")
        assert check.watcher.stats.signals == 1
        assert [c.id for c in check.watcher.portfolio.snapshot()] == ["web"]
        assert spent(check.watcher, LISTINGS | INSPECTS) == {"namespaces": 2, "tasks": 2, "containers": 2}
        assert await check.watcher.engine.inspect("moby/late") is None
        assert spent(check.watcher, INSPECTS) == {}
    async with checked(containerd.address, control, ignore=("default", "k8s.io", 'no "such" one')) as check:
        assert {c.id for c in check.watcher.portfolio.snapshot()} == {"moby/late"}, "which can be chosen"
        await control.kill_and_wait("late", "moby")
        await check.expect("moby/late", "exited")


async def test_containerd_its_client_and_a_stopped_task_are_known(containerd: ContainerdUnderTest) -> None:
    control = containerd.control
    pid = await control.run("job", "other", labels={"a": "1"})
    await control.kill_and_wait("job", "other")
    engine = ContainerdEngine(containerd.address)
    assert (engine.pid, engine.client, engine.type, engine.source) == (None, None, "containerd", "native")
    id, version = await engine.id(), await engine.version()  # without a watcher
    assert version.startswith("1.7" if containerd.kind == "fake" else containerd.kind)
    with pytest.raises(EngineUnavailable, match=f"containerd engine at {containerd.address}: not connected"):
        await engine.ping()
    await engine.connect()
    assert (await engine.id(), await engine.version()) == (id, version)
    assert engine.pid == (containerd.engine.pid if containerd.engine else os.getpid())
    client: Any = engine.client
    assert version.encode() in await client.unary_unary("/containerd.services.version.v1.Version/Version")(b"")
    dead = await engine.inspect("other/job")
    assert isinstance(dead, Dead)
    assert (dead.container.id, dead.container.pid, dict(dead.container.labels)) == ("other/job", pid, {"a": "1"})
    assert (dead.exit_code, dead.oom) == (137, None)
    await control.remove("job", "other")
    assert await engine.inspect("other/job") is None
    before = engine.progress
    await engine.listing()
    assert engine.progress > before
    await engine.close()
    await engine.close()
    assert engine.client is None
    with pytest.raises(EngineUnavailable):
        await engine.listing()


@pytest.mark.promise(8)
async def test_calls_are_few(containerd: ContainerdUnderTest) -> None:
    control = containerd.control
    for namespace in ("default", "one", "two"):
        for number in range(3):
            await run_and_tell(control, f"web{number}", namespace)
    async with checked(containerd.address, control, heartbeat=60.0) as check:
        watcher = check.watcher
        await eventually(lambda: watcher.stats.calls["introspection"] == 2)
        # Two per namespace and a constant, and the same again to confirm; only the subscription is made once.
        before = dict(watcher.stats.calls)
        again = {"version": 2, "introspection": 2, "namespaces": 2, "tasks": 6, "containers": 6}
        assert before == again | {"events": 1, "ping": 1}
        await control.pause("web0")
        await check.expect("web0", "paused")
        await control.resume("web0")
        await check.expect("web0", "paused", "unpaused")
        await control.kill_and_wait("web0")
        await check.expect("web0", "paused", "unpaused", "exited")
        await control.remove("web0")
        await control.remove("web1", "one")
        await check.expect("one/web1", "exited")
        assert dict(watcher.stats.calls) == before, "an exit, a pause and a removal cost no call"
        await control.run("new")
        await check.expect("new", "started")
        before |= {"task": 1, "container": 1}
        assert dict(watcher.stats.calls) == before, "a start costs one inspect"


async def test_rucksack_is_packed_from_the_listing_and_from_inspects(containerd: ContainerdUnderTest) -> None:
    def pack(container: Container, inspection: Inspection) -> tuple[str, Inspection]:
        return container.id, inspection

    control = containerd.control
    pid = await control.run("web", "other", labels={"a": "1"}, image="tiny:1")
    async with checked(containerd.address, control, pack=pack) as check:
        (web,) = check.watcher.portfolio.snapshot()
        id, seen = web.rucksack
        assert (id, seen.namespace, seen.id, seen.pid, seen.image) == ("other/web", "other", "web", pid, "tiny:1")
        assert (seen.status, seen.labels, seen.runtime) == ("RUNNING", {"a": "1"}, "io.containerd.runc.v2")
        assert seen.spec.startswith(b"{")
        assert None not in {seen.created_at, seen.updated_at}
        await control.run("late")
        (started,) = await check.expect("late", "started")
        id, seen = started.container.rucksack
        assert (id, seen.namespace, seen.id, seen.status) == ("late", "default", "late", "RUNNING")
        await control.pause("late")
        await check.expect("late", "started", "paused")
        assert check.fold.alive["late"].rucksack == (id, seen)


@pytest.mark.live
@pytest.mark.parametrize("version", ["1.6", "1.7"])
async def test_frozen_shim_keeps_its_container_and_a_killed_one_ends_it(
    make_containerd: Callable[..., Any], version: str
) -> None:
    engine = await asyncio.to_thread(make_containerd, version)
    async with ContainerdControl(engine.socket) as control:
        await control.run("stuck")
        (shim,) = engine.shims()
        await control.run("web")
        async with checked(engine.address, control, audit=0.5) as check:
            watcher = check.watcher
            os.kill(shim, signal.SIGSTOP)
            try:
                audits = watcher.stats.audits
                await eventually(lambda: watcher.stats.audits > audits + 1)
                assert len(watcher.portfolio.snapshot()) == 2
                await watcher.engine.client.close()  # the connection is lost, and all is listed anew
                await eventually(lambda: watcher.stats.syncs == 2)
                assert len(watcher.portfolio.snapshot()) == 2
                assert watcher.stats.unresolved == 1
            finally:
                os.kill(shim, signal.SIGCONT)
            await eventually(lambda: watcher.stats.unresolved == 0)
            assert check.of("stuck") == []
            os.kill(shim, signal.SIGKILL)
            (exited,) = await check.expect("stuck", "exited")
            assert exited.origin is Origin.ENGINE
            assert check.of("web") == []
