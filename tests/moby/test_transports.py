"""The ways to an engine: sockets, TCP, TLS and ssh, and where Docker's own rules lead."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import ssl
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiodocker
import pytest
import uvloop
from yarl import URL

from tests.conftest import Docker
from tests.support.certificates import make_certificates
from tests.support.checker import PATIENCE, checked
from tests.support.docker_contexts import context
from tests.support.engines import install
from tests.support.engines.dockerd import Dockerd
from tests.support.engines.leaks import Held
from tests.support.engines.proxy import Proxy
from tests.support.followed import eventually, leave
from tests.support.outage import lost
from whalewatch import EngineTimeout, EngineUnavailable, Origin, Watcher, WatchState, moby
from whalewatch._http.dial import Dialler, Endpoint
from whalewatch.moby.client import Connector, close, make
from whalewatch.testing import FakeDocker

uvloop.new_event_loop().close()  # the first one opens a pipe that all others share


async def version_at(address: str | None, **options: Any) -> str:
    """Synchronise once and tell the engine's version."""
    async with moby.watch(address, retry=None, **options) as watcher:
        await watcher.ready(PATIENCE)
        return await watcher.engine.version()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory of its own, and none of Docker's variables."""
    monkeypatch.setenv("WHALEWATCH_ENGINES", str(install.engines_folder()))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("HOST", "CONTEXT", "CONFIG", "TLS_VERIFY", "CERT_PATH"):
        monkeypatch.delenv(f"DOCKER_{name}", raising=False)
    return tmp_path


async def test_path_context_and_docker_host_lead_to_the_engine(
    docker: Docker, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = (await docker.control.info())["ServerVersion"]
    assert await version_at(docker.address.removeprefix("unix://")) == version
    context(home / ".docker", "mine", {"Host": docker.address, "SkipTLSVerify": False})
    (home / ".docker/config.json").write_text(json.dumps({"currentContext": "mine"}))
    assert await version_at(None) == version
    monkeypatch.setenv("DOCKER_CONTEXT", "overruled")
    monkeypatch.setenv("DOCKER_HOST", docker.address)
    assert await version_at(None) == version


@pytest.mark.live
@pytest.mark.parametrize("version", ["20.10", "26.1"])
async def test_plain_tcp(make_dockerd: Callable[..., Dockerd], version: str) -> None:
    dockerd = await asyncio.to_thread(make_dockerd, version, tcp=True)
    assert dockerd.tcp_address is not None
    assert (await version_at(dockerd.tcp_address)).startswith(version)
    with pytest.raises(EngineUnavailable, match="TLS refused"):
        await version_at(dockerd.tcp_address.replace("tcp://", "https://"))


@pytest.mark.live
@pytest.mark.parametrize("version", ["20.10", "26.1"])
async def test_tls_with_certificates(
    make_dockerd: Callable[..., Dockerd], home: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    dockerd = await asyncio.to_thread(make_dockerd, version, tls=True)
    address, certificates = dockerd.tcp_address, dockerd.certificates
    assert address is not None
    assert certificates is not None

    tls = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    with pytest.raises(EngineUnavailable, match=f"{address}: TLS refused: .*the client certificate.*: one is needed"):
        await version_at(address, tls=tls)
    tls.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
    assert (await version_at(address, tls=tls)).startswith(version)
    with pytest.raises(EngineUnavailable, match="TLS refused"):
        await version_at(address, tls=ssl.create_default_context())
    with pytest.raises(EngineUnavailable, match="HTTPS"):
        await version_at(address)

    monkeypatch.setenv("DOCKER_HOST", address)
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(certificates))
    assert (await version_at(None)).startswith(version)

    monkeypatch.delenv("DOCKER_HOST")
    shutil.copytree(certificates, context(home / ".docker", "far", {"Host": address, "SkipTLSVerify": False}))
    monkeypatch.setenv("DOCKER_CONTEXT", "far")
    assert (await version_at(None)).startswith(version)


async def test_proxy_that_compresses_what_it_may_makes_no_watcher_deaf(docker: Docker) -> None:
    async with Proxy(Path(docker.address.removeprefix("unix://"))) as proxy:
        proxy.compressing = True
        async with checked(proxy.address, docker.control) as check:
            (started,) = await check.expect(await docker.control.run("web"), "started")
            assert started.origin is Origin.ENGINE
            client = check.watcher.engine.client
            assert isinstance(client, aiodocker.Docker)
            async with client.session.get(f"{client.docker_host}/events?since=1") as another:
                assert another.headers["Content-Encoding"] == "gzip", "aiohttp allows it"


def connections(address: str) -> set[str]:
    """This process's sockets that are connected to a port of 127.0.0.1."""
    held = {target for _, target in Held.now().descriptors}
    rows = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    remote = f"0100007F:{URL(address).port:04X}"
    return {f"socket:[{row[9]}]" for row in rows if row[2] == remote} & held


@pytest.fixture(params=["fake", *(pytest.param(version, marks=pytest.mark.live) for version in ("20.10", "26.1"))])
async def hanging(
    request: pytest.FixtureRequest, make_dockerd: Callable[..., Dockerd], tmp_path: Path
) -> AsyncIterator[tuple[Watcher, Callable[[], None]]]:
    """A watcher over TLS that is not yet entered, and what makes its engine hang, or the way to the fake one."""
    async with AsyncExitStack() as stack:
        if request.param == "fake":
            certificates = tmp_path / "tls"
            make_certificates(certificates)
            served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            served.load_cert_chain(certificates / "server-cert.pem", certificates / "server-key.pem")
            fake = await stack.enter_async_context(FakeDocker(host="127.0.0.1", ssl_context=served))
            proxy = await stack.enter_async_context(Proxy(URL(fake.tcp_address).port or 0, tcp=True))
            address, hang = proxy.address, proxy.stall
        else:
            dockerd = await asyncio.to_thread(make_dockerd, request.param, tls=True)
            assert dockerd.tcp_address is not None
            assert dockerd.certificates is not None
            address, hang, certificates = dockerd.tcp_address, dockerd.freeze, dockerd.certificates
            stack.callback(dockerd.thaw)
        tls = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
        tls.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
        yield moby.watch(address, tls=tls, heartbeat=0.5, call_timeout=2.0), hang


async def test_leaving_lets_go_of_tls_connections_to_a_hung_engine(hanging: tuple[Watcher, Callable[[], None]]) -> None:
    watcher, hang = hanging
    await watcher.__aenter__()
    await watcher.ready(PATIENCE)
    client = watcher.engine.client
    assert isinstance(client, aiodocker.Docker)
    async with client.session.get(f"{client.docker_host}/events"):
        assert len(connections(watcher.engine.address)) > 1
        hang()
        await leave(watcher)
        await eventually(lambda: not connections(watcher.engine.address))


@pytest.mark.slow
async def test_outage_lets_go_of_tls_connections_to_a_hung_engine(hanging: tuple[Watcher, Callable[[], None]]) -> None:
    watcher, hang = hanging
    async with watcher:
        await watcher.ready(PATIENCE)
        before = connections(watcher.engine.address)
        assert before
        hang()
        await lost(watcher, EngineTimeout)
        await eventually(lambda: not before & connections(watcher.engine.address))


@pytest.mark.parametrize("hanging", ["fake"], indirect=True)
async def test_tls_connections_that_ended_are_not_kept(hanging: tuple[Watcher, Callable[[], None]]) -> None:
    watcher, _ = hanging
    async with watcher:
        await watcher.ready(PATIENCE)
        client = watcher.engine.client
        assert isinstance(client, aiodocker.Docker)
        connector = client.session.connector
        assert isinstance(connector, Connector)
        made = weakref.WeakSet[asyncio.BaseProtocol]()
        for _ in range(20):
            async with client.session.get(f"{client.docker_host}/events") as response:
                assert response.connection is not None
                assert response.connection.protocol is not None
                made.add(response.connection.protocol)
                assert response.connection.protocol in connector._made
        del response
        await eventually(lambda: gc.collect() and not made & {*connector._made})


async def test_calls_of_the_application_leave_room_for_the_watcher() -> None:
    async with FakeDocker() as fake, AsyncExitStack() as stack:
        fake.run("web")
        async with moby.watch(fake.address, heartbeat=0.2, call_timeout=10.0) as watcher:
            await watcher.ready(10.0)
            client = watcher.engine.client
            assert isinstance(client, aiodocker.Docker)
            for _ in range(120):
                response = await stack.enter_async_context(client.session.get(f"{client.docker_host}/events"))
                assert response.status == HTTPStatus.OK
            pings = fake.requests["ping"]
            await fake.until(lambda: fake.requests["ping"] > pings + 1)
            assert (watcher.status.state, watcher.stats.outages) == (WatchState.SYNCED, 0)


async def test_client_that_is_given_up_while_it_connects_ends_its_program() -> None:
    waiting_for_tls = Endpoint(address="ssh://far", command=("sleep", "1000"), tls=ssl.create_default_context())
    client = make(Dialler(waiting_for_tls), "v1.41")
    connector = client.connector
    assert isinstance(connector, Connector)
    asking = asyncio.create_task(client.containers.list())
    await eventually(lambda: connector._programs)
    (program,) = connector._programs
    asking.cancel()
    await asyncio.wait({program.exited}, timeout=PATIENCE)
    assert program.exited.done()
    await close(client)


@pytest.mark.live
def test_every_way_under_uvloop(
    make_dockerd: Callable[..., Dockerd], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(test_calls_of_the_application_leave_room_for_the_watcher())
        runner.run(test_plain_tcp(make_dockerd, "26.1"))
        runner.run(test_tls_with_certificates(make_dockerd, home, monkeypatch, "26.1"))
