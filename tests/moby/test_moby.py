"""Watching a Docker engine: the same behaviour on the fake one and on every real one."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any

import aiodocker
import pytest

from tests.conftest import Docker
from tests.support.checker import TOLD, checked
from tests.support.followed import followed
from tests.support.scripted import PATIENCE
from whalewatch import Container, Dead, Health, Origin, Port, ProtocolViolation, SignalType, Watcher, moby
from whalewatch._core import inspections
from whalewatch.testing import FakeDocker

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
        assert {event.origin for event in events} <= TOLD


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
    async with checked(docker.address, control, kernel=False) as check:
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


# ---- what an engine may say, and what is taken of it


@asynccontextmanager
async def told(kind: str, answer: bytes) -> AsyncIterator[tuple[moby.MobyEngine, FakeDocker]]:
    """An engine that answers every call of a kind with this."""
    async with FakeDocker() as fake:
        engine = moby.MobyEngine(fake.address)
        await engine.connect()
        try:
            with fake.faults.garble(kind, answer):
                yield engine, fake
        finally:
            await engine.close()


NO_IDS = ("", "..", "../../info", "a/b", "a b", "a\n2026 forged", "\x1b[2J", "a" * 256, "é", "-x")


async def test_what_is_no_id_is_never_asked_about() -> None:
    async with told("inspect", b"{}") as (engine, fake):
        for id in NO_IDS:
            assert await engine.inspect(id) is None
        assert fake.requests["inspect"] == engine.calls["inspect"] == 0


@pytest.mark.parametrize("id", [*NO_IDS, 7, None])
async def test_what_has_no_id_is_neither_listed_nor_read_nor_believed(
    id: object, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "whalewatch")
    items = [{"Id": id, "State": "running", "Names": ["/x"]}, {"Id": "good", "State": "running"}]
    async with told("list", json.dumps(items).encode()) as (engine, fake):
        listing = await engine.listing()
        assert ([*listing.containers], listing.absence_is_death) == (["good"], False)
        inspection = {"Id": id, "Name": "x", "State": {"Pid": 7}, "Config": {}}
        with fake.faults.garble("inspect", json.dumps(inspection).encode()), pytest.raises(ProtocolViolation):
            await engine.inspect("good")
        if id:
            event = {"Type": "container", "Action": "die", "Actor": {"ID": id, "Attributes": {}}, "timeNano": 1}
            assert engine._connection is not None
            received = engine._read(engine._connection, json.dumps(event).encode())
            assert received is not None
            assert (received.type, received.id) == (SignalType.LOST, "")
    assert all(record.getMessage().isprintable() for record in caplog.records)


@pytest.mark.parametrize("pid", [-1, 2**31, 10**4000, True, 1.5, "7", None])
async def test_what_is_no_pid_is_refused(pid: object) -> None:
    inspection = {"Id": "x", "Name": "x", "State": {"Pid": pid, "ExitCode": 1}, "Config": {}}
    async with told("inspect", json.dumps(inspection).encode()) as (engine, _):
        with pytest.raises(ProtocolViolation, match="its answer about x makes no sense") as caught:
            await engine.inspect("x")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (2**31 - 1, 2**31 - 1), (-1, None), (2**31, None)])
async def test_exit_code_out_of_range_is_not_told(code: int, expected: int | None) -> None:
    state = {"Pid": 0, "ExitCode": code, "StartedAt": "2026-01-02T03:04:05Z"}
    inspection = {"Id": "x", "Name": "x", "State": state, "Config": {}}
    async with told("inspect", json.dumps(inspection).encode()) as (engine, _):
        found = await engine.inspect("x")
    assert isinstance(found, Dead)
    assert found.exit_code == expected


OUT_OF_RANGE = ("65536", "000080", "9" * 4000)


@pytest.mark.parametrize(
    ("where", "odd"),
    [
        *(("container", odd) for odd in OUT_OF_RANGE),
        *(("host", odd) for odd in (*OUT_OF_RANGE, "-1", " 1", "1_0", "\u0661", 10**4000, [1], 8.5)),
    ],
)
async def test_port_out_of_range_is_left_out_and_counted(where: str, odd: Any) -> None:
    good = {"HostIp": "", "HostPort": "65535"}
    ports = {f"{odd}/tcp": None} if where == "container" else {"80/tcp": [{"HostIp": "", "HostPort": odd}]}
    settings = {"Ports": {**ports, "0/udp": [good]}}
    inspection = {"Id": "x", "Name": "x", "State": {"Pid": 7}, "Config": {}, "NetworkSettings": settings}
    async with told("inspect", json.dumps(inspection).encode()) as (engine, _):
        found = await engine.inspect("x")
        assert engine.fields_left_out == 1
    assert isinstance(found, Container)
    assert found.ports == (Port(0, "udp", None, 65535),)


async def test_places_beyond_a_bound_are_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    for most in ("MAX_PLACES", "MAX_NETWORKS"):
        monkeypatch.setattr(f"whalewatch.moby.reading.{most}", 2)
    settings = {
        "Ports": dict.fromkeys(("1/tcp", "2/tcp", "3/tcp")),
        "Networks": {name: {"IPAddress": "::1"} for name in "abc"},
    }
    inspection = {"Id": "x", "Name": "x", "State": {"Pid": 7}, "Config": {}, "NetworkSettings": settings}
    async with told("inspect", json.dumps(inspection).encode()) as (engine, _):
        found = await engine.inspect("x")
        assert engine.fields_left_out == 2
    assert isinstance(found, Container)
    assert (len(found.ports), [*found.addresses]) == (2, ["a", "b"])


@pytest.mark.parametrize("size", [0, 10_000])
async def test_exit_code_that_a_label_forges_is_not_believed_and_removed_containers_are_forgotten(size: int) -> None:
    async with FakeDocker() as fake, followed(Watcher(engine := moby.MobyEngine(fake.address))) as follow:
        id = fake.run("web", labels={"exitCode": "0", "more": "x" * size})
        fake.exit(id, 7)
        fake.remove(id)
        await follow.until(lambda: follow.types(id) == ["started", "exited"])
        assert follow.news(id)[1].exit_code is None
        assert engine._masked == set()


async def test_listing_has_as_many_containers_as_are_allowed_and_no_more() -> None:
    with pytest.raises(ValueError, match="max_containers must be 1 or more, not 0"):
        moby.watch(max_containers=0)
    assert moby.watch("/x.sock").engine.max_containers == 100_000
    async with FakeDocker() as fake:
        first = fake.run("first")
        async with moby.watch(fake.address, max_containers=1, audit=None, retry=None) as watcher:
            assert (await watcher.portfolio.wait_for("first", PATIENCE)).id == first
        fake.run("second")
        async with moby.watch(fake.address, max_containers=1, audit=None, retry=None) as watcher:
            with pytest.raises(ProtocolViolation, match="its listing has more than 1 containers"):
                await watcher.ready(PATIENCE)


async def test_labels_of_a_listing_are_kept_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whalewatch.moby.engine.MAX_LABELS", 3)
    items = [{"Id": id, "State": "running", "Labels": {"a": "b", "c": "d"}} for id in ("x", "y")]
    async with told("list", json.dumps(items).encode()) as (engine, _):
        listing = await engine.listing()
    assert [bool(one.facts) for one in listing.containers.values()] == [True, False]
