"""Watching a Docker engine: the same behaviour on the fake one and on every real one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

import aiodocker
import pytest

from tests.conftest import Docker
from tests.support.checker import checked
from whalewatch import Container, Dead, Health, Origin, Port, moby
from whalewatch._core import inspections

PROJECT, STACK = "com.docker.compose.project", "com.docker.stack.namespace"


async def test_initial_picture_is_what_the_engine_says(docker: Docker) -> None:
    control = docker.control
    for project in ("shop", "blog"):
        for service in ("web", "db"):
            await control.run(f"{project}-{service}", labels={PROJECT: project, "tier": service})
    await control.run("alone", privileged=docker.fake is not None)  # which real engines may not grant in a sandbox
    paused = await control.run("frozen", labels={PROJECT: "shop", STACK: "another"})
    await control.run("mail_smtp.1.x7", labels={STACK: "mail", "com.docker.swarm.service.name": "mail_smtp"})
    await control.pause(paused)
    await control.create("created")
    await docker.run_and_exit("exited", 3)
    restarting = await control.run("restarting", restart="always", cmd=["/bin/false"])
    if docker.fake is not None:
        docker.fake.exit(restarting, 1)

    async with checked(docker.address, control) as check:
        portfolio = check.watcher.portfolio
        assert await portfolio.names() == ("blog", "mail", "shop")
        assert [p.name for p in await portfolio.projects()] == ["", "blog", "mail", "shop"]
        shop = await portfolio.containers("shop")
        assert [(c.name, c.paused) for c in shop] == [("frozen", True), ("shop-db", False), ("shop-web", False)]
        assert (shop[0], shop[0].id) == (await portfolio.container("frozen"), paused)
        assert "alone" in [c.name for c in await portfolio.containers("")]
        assert [await portfolio.container(name) for name in ("created", "exited")] == [None, None]
        assert all(e.origin is Origin.SYNC for e in check.fold.events if e.container.name != "restarting")
        await control.remove(restarting)


async def test_every_operation_is_followed_by_its_events(docker: Docker) -> None:
    control = docker.control
    async with checked(docker.address, control) as check:
        id = await control.run("web", labels={PROJECT: "shop"})
        (started,) = await check.expect(id, "started")
        assert started.origin is Origin.ENGINE
        assert started.container.started_at is not None
        assert started.timestamp >= started.container.started_at
        await check.settled()

        await control.pause(id)
        await control.unpause(id)
        await control.rename(id, "www")
        events = await check.expect(id, "started", "paused", "unpaused", "updated")
        assert [e.container.paused for e in events[:3]] == [False, True, False]
        assert not events[3].container.paused or docker.fake is None  # see `without_echoes`
        assert events[-1].previous is not None
        assert (events[-1].previous.name, events[-1].container.name) == ("web", "www")
        await check.settled()

        await control.restart(id)
        events = await check.expect(id, "started", "paused", "unpaused", "updated", "exited", "started")
        assert events[-2].exit_code == 137
        assert events[-2].container.pid != events[-1].container.pid
        await check.settled()
        await docker.become_command(id)

        await control.stop(id)
        await control.start(id)
        await check.until(lambda: len(check.types(id)) == 8)
        await control.kill(id)
        await check.until(lambda: len(check.types(id)) == 9)
        await check.settled()

        await control.start(id)
        await check.until(lambda: len(check.types(id)) == 10)  # what is killed sooner may never be seen
        await control.remove(id)
        lives = ["started", "exited"] * 3
        events = await check.expect(id, "started", "paused", "unpaused", "updated", "exited", *lives)
        assert [e.exit_code for e in events if e.type.value == "exited"] == [137] * 4
        assert [e.revision for e in events] == sorted(e.revision for e in events)
        assert all(e.origin is Origin.ENGINE for e in events)


async def test_exit_by_itself_tells_its_code_and_a_restart_policy_shows_as_exit_and_start(docker: Docker) -> None:
    control = docker.control
    async with checked(docker.address, control) as check:
        if docker.fake is None:
            id = await control.run("phoenix", restart="always", cmd=["/bin/sh", "-c", "sleep 0.4; exit 3"])
        else:
            id = await control.run("phoenix", restart="always")
            await check.expect(id, "started")
            docker.fake.exit(id, 3)
        await check.until(lambda: check.types(id)[:3] == ["started", "exited", "started"])
        first, exited, second = check.of(id)[:3]
        assert exited.exit_code == 3
        assert first.container.pid != second.container.pid
        await control.remove(id)


async def test_health_is_told_as_it_changes(docker: Docker) -> None:
    control = docker.control
    async with checked(docker.address, control) as check:
        id = await control.run("checked", health="test ! -e /sick")
        if docker.fake is not None:
            docker.fake.set_health(id, "healthy")
        await check.until(lambda: check.of(id) and check.of(id)[-1].container.health is Health.HEALTHY)
        if docker.fake is not None:
            docker.fake.set_health(id, "unhealthy")
        else:
            await control.exec(id, ["touch", "/sick"])
        await check.until(lambda: check.of(id)[-1].container.health is Health.UNHEALTHY)
        await control.pause(id)
        await check.until(lambda: check.types(id)[-1] == "paused")
        assert check.of(id)[-1].container.health is None
        await control.unpause(id)
        await check.until(lambda: "unpaused" in check.types(id))
        await check.until(lambda: check.of(id)[-1].container.health is not None)


@pytest.fixture
def settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave an engine more time to tell of a death: Docker 26 under load took up to 0.2 s after the networks' end."""
    monkeypatch.setattr(inspections, "EXIT_DELAY", 1.0)


@pytest.mark.promise(8)
@pytest.mark.usefixtures("settling")
async def test_engine_calls_are_as_few_as_promised_and_none_for_what_does_not_concern_life(docker: Docker) -> None:
    control = docker.control
    ids = [await control.run(f"c{i}") for i in range(5)]
    async with checked(docker.address, control, heartbeat=60.0) as check:
        await check.settled()
        before = check.watcher.stats
        assert before.calls["inspect"] == 5
        for _ in range(3):
            assert await control.exec(ids[0], ["/bin/true"]) == 0
        await control.tag("tiny:latest", "other:1")
        await control.create("idle")
        ids.append(await control.run("marker"))  # what came before it on the stream has been taken
        await check.expect(ids[-1], "started")
        assert check.types(ids[0]) == []
        assert check.watcher.stats.revisions == before.revisions + 1
        await control.pause(ids[0])
        await control.unpause(ids[0])
        for id in ids:
            await control.kill(id)
        await check.until(lambda: not check.fold.alive)
        # One unpause re-reads the health, unless the container is known to have no check.
        assert check.watcher.stats.calls == {"ping": 3, "info": 3, "events": 1, "list": 2, "inspect": 6}


async def test_engine_tells_of_itself_and_the_last_facts_of_the_dead(docker: Docker) -> None:
    created, exited = await docker.control.create("created"), await docker.run_and_exit("exited", 3)
    engine = moby.MobyEngine(docker.address)
    assert (engine.client, engine.pid, engine.type) == (None, None, "docker")
    info = await docker.control.info()
    assert await engine.id() == info["ID"]
    await engine.connect()
    pid, client = engine.pid, engine.client
    assert (await engine.version(), engine.address) == (info["ServerVersion"], docker.address)
    assert pid == (docker.dockerd.pid if docker.dockerd else os.getpid())
    assert isinstance(client, aiodocker.Docker)
    assert await client.containers.list() == []
    assert await engine.inspect(created) is None, "it has never run"
    assert await engine.inspect("0" * 64) is None
    dead = await engine.inspect(exited)
    assert isinstance(dead, Dead)
    assert (dead.container.id, dead.container.name, dead.container.pid) == (exited, "exited", None)
    assert dead.container.started_at is not None
    assert (dead.exit_code, dead.oom) == (3, False)
    before = engine.progress
    await engine.listing()
    assert engine.progress > before
    await engine.close()
    await engine.close()


async def test_rucksack_holds_what_the_application_packs(docker: Docker) -> None:
    control = docker.control
    await control.run("early")

    def pack(container: Container, inspection: Mapping[str, Any]) -> str:
        return f"{container.name}: {inspection['Config']['Cmd'][0]}"

    async with checked(docker.address, control, pack=pack) as check:
        late = await control.run("late")
        await check.expect(late, "started")
        await control.pause(late)
        await check.expect(late, "started", "paused")
        packed = {c.name: c.rucksack for c in check.watcher.portfolio.snapshot()}
        assert packed == {"early": "early: /bin/sleep", "late": "late: /bin/sleep"}


async def test_labels_cannot_forge_an_exit_code_or_a_name(docker: Docker) -> None:
    control = docker.control
    async with checked(docker.address, control) as check:
        id = await control.run("honest", labels={"exitCode": "0", "name": "liar", "container": "x", "image": "y"})
        await check.expect(id, "started")
        await control.kill(id)
        events = await check.expect(id, "started", "exited")
        assert events[-1].exit_code is None
        assert {e.container.name for e in events} == {"honest"}
        assert {e.container.image for e in events} == {"tiny:latest"}


async def test_exposed_ports_are_told_whatever_an_image_calls_a_port(docker: Docker) -> None:
    control = docker.control
    await control.run("serving", ports={"80/tcp": None, "53/udp": None})
    odd = ("", "/tcp", "x/tcp", "$PORT/tcp", "8080-8090/tcp", "1.5/tcp", "-1/tcp", "80 /tcp", f"{'9' * 20}/tcp")
    async with checked(docker.address, control) as check:
        (serving,) = check.watcher.portfolio.snapshot()
        assert serving.ports == (Port(53, "udp"), Port(80, "tcp"))
        for number, port in enumerate(odd):
            id = await control.run(f"odd-{number}", ports={port: None, "80/sctp": None})
            (started,) = await check.expect(id, "started")
            assert started.container.ports == (Port(80, "sctp"),)
        assert check.watcher.stats.unresolved == 0


@pytest.mark.promise(8)
@pytest.mark.usefixtures("settling")
async def test_network_changes_are_updates_with_addresses(docker: Docker) -> None:
    control = docker.control
    network = await control.network_create("blue")
    try:
        async with checked(docker.address, control) as check:
            id = await control.run("host", network="blue")
            (started,) = await check.expect(id, "started")
            assert list(started.container.addresses) == ["blue"]
            (address,) = started.container.addresses["blue"]
            assert address == ip_address(str(address))
            await control.network_disconnect("blue", id)
            events = await check.expect(id, "started", "updated")
            assert dict(events[-1].container.addresses) == {}
            await control.network_connect("blue", id)
            events = await check.expect(id, "started", "updated", "updated")
            assert list(events[-1].container.addresses) == ["blue"]
            before = check.watcher.stats.calls["inspect"]
            await control.kill(id)
            events = await check.expect(id, "started", "updated", "updated", "exited")
            assert events[-1].exit_code == 137
            assert check.watcher.stats.calls["inspect"] == before, "an exit costs no call"
            await control.remove(id)
    finally:
        await control.network_remove(network)
