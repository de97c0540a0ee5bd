"""The fake Docker engine, as far as it is like no other: seen by a plain HTTP client."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

import aiohttp
import pytest
from yarl import URL

from tests.support.engines.control import ControlError, DockerControl
from whalewatch.testing import FakeDocker, FakeDockerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    Events = AsyncIterator[dict[str, Any]]

pytestmark = pytest.mark.usefixtures("patience")


class Engine(FakeDocker):
    """A fake engine with a client that knows nothing of it."""

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self.control = DockerControl(self.path)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.control.aclose()
        await super().__aexit__(None, None, None)

    @asynccontextmanager
    async def subscribed(self, **options: Any) -> AsyncIterator[Events]:
        """Open an event stream, and wait until the engine knows it."""
        known = self.subscribers
        async with self.control.events(**options) as events:
            await self.until(lambda: self.subscribers > known)
            yield events

    async def history(self) -> list[dict[str, Any]]:
        """Return what the ring holds."""
        async with self.subscribed(since="1") as events:
            self.faults.end_streams()
            told = [event async for event in events]
        await self.until(lambda: not self.subscribers)
        return told

    async def state(self, name: str) -> dict[str, Any]:
        state: dict[str, Any] = (await self.control.inspect(name))["State"]
        return state


def _short(events: list[dict[str, Any]]) -> str:
    actions = [f"{event['Type']} {event['Action']}" for event in events]
    return ", ".join(action.removeprefix("container ") for action in actions)


async def _next(events: Events, count: int) -> str:
    return _short([await anext(events) for _ in range(count)])


@pytest.fixture
async def docker() -> AsyncIterator[Engine]:
    async with Engine(seed=1, restart_delay=None) as docker:
        yield docker


# ---- what it says


async def test_engine_says_who_it_is_and_what_it_has(docker: Engine) -> None:
    for method, body in (("GET", "OK"), ("HEAD", "")):
        async with docker.control._opened().request(method, "http://docker/_ping") as response:
            headers = [response.headers[name] for name in ("Api-Version", "Ostype", "Server")]
            assert (response.status, await response.text()) == (200, body)
            assert headers == ["1.45", "linux", "Docker/26.1.5 (linux)"]
    async with docker.control._opened().get("http://docker/events") as response:
        assert response.headers["Content-Type"] == "application/json"
    docker.run("one")
    docker.run("two", paused=True)
    version = await docker.control._json("GET", "/v1.40/version")
    assert (version["Version"], version["ApiVersion"], version["MinAPIVersion"]) == ("26.1.5", "1.45", "1.24")
    info = await docker.control.info()
    assert (info["Containers"], info["ContainersRunning"], info["ContainersPaused"]) == (2, 1, 1)
    assert info["ServerVersion"] == "26.1.5"
    assert re.search(r"\.\d{4,9}Z$", info["SystemTime"])  # finer than milliseconds


async def test_health_is_a_field_and_legacy_fields_are_gone_from_1_52_on() -> None:
    async with Engine(version="29.0.0", api_version="1.52", min_api_version="1.44") as docker:
        older = DockerControl(docker.path, api="1.51")
        async with older, docker.subscribed() as new, older.events() as old:
            await docker.until(lambda: docker.subscribers == 2)
            docker.run("web", health="unhealthy")
            docker.run("db")
            assert (await anext(new)).keys() & {"status", "id", "from"} == set()
            assert (await anext(old)).keys() >= {"status", "id", "from"}
            listed = {item["Names"][0]: item for item in await docker.control.list()}
            assert listed["/web"]["Health"] == {"Status": "unhealthy", "FailingStreak": 1}
            assert listed["/db"]["Health"]["Status"] == "none"
            shown = {item["Names"][0]: item for item in await older.list()}
            assert (shown["/web"]["Status"].endswith("(unhealthy)"), "Health" in shown["/web"]) == (True, False)


async def test_addresses_are_those_it_was_given(docker: Engine) -> None:
    docker.run("web", project="shop", networks={"front": ["10.1.0.9", "fd00::9"]})
    address = {"Container": "web", "EndpointConfig": {"IPAMConfig": {"IPv4Address": "10.0.0.7"}}}
    await docker.control.network_create("back")
    await docker.control._call("POST", "/networks/back/connect", body=address)
    inspection = await docker.control.inspect("web")
    networks = inspection["NetworkSettings"]["Networks"]
    assert (networks["front"]["IPAddress"], networks["front"]["GlobalIPv6Address"]) == ("10.1.0.9", "fd00::9")
    assert networks["back"]["IPAddress"] == "10.0.0.7"
    assert inspection["Config"]["Labels"] == {"com.docker.compose.project": "shop"}
    assert inspection["State"]["Pid"] == docker.container("web").pid


# ---- operations, and the events they cause


async def test_restart_policy(docker: Engine) -> None:
    docker.run("job", restart="on-failure")
    first = docker.container("job").pid
    async with docker.subscribed() as events:
        docker.exit("job", 3)
        assert await _next(events, 2) == "network disconnect, die"
        (listed,) = await docker.control.list()
        assert re.fullmatch(r"Restarting \(3\) .* ago", listed["Status"])
        state = await docker.state("job")
        assert (state["Status"], state["Running"], state["Restarting"], state["Pid"]) == ("restarting", True, True, 0)
        for refused in (docker.pause, docker.exec):
            with pytest.raises(FakeDockerError, match="is restarting"):
                refused("job")
        docker.finish_restart("job")
        assert await _next(events, 2) == "network connect, start"
        assert (await docker.control.inspect("job"))["RestartCount"] == 1
        assert (await docker.state("job"))["Pid"] > first
        waiting = asyncio.create_task(docker.control.wait("job"))
        await docker.until(lambda: docker.requests["wait"])
        assert not waiting.done()
        docker.exit("job", 0)
        assert await _next(events, 2) == "network disconnect, die"
        assert (docker.container("job").status, await waiting) == ("exited", 0)


async def test_restart_policy_acts_by_itself_after_a_delay_unless_the_engine_is_frozen() -> None:
    async with Engine(restart_delay=0.0) as docker, docker.subscribed() as events:
        docker.run("job", restart="always")
        docker.exit("job")
        ended = "network disconnect, die"
        assert await _next(events, 7) == f"create, network connect, start, {ended}, network connect, start"
        docker.faults.freeze()
        docker.exit("job")
        for _ in range(3):
            await asyncio.sleep(0)
        assert docker.container("job").status == "restarting"
        docker.faults.thaw()
        assert await _next(events, 4) == f"{ended}, network connect, start"
        docker.stop("job")
        docker.start("job")
        docker.exit("job")
        docker.remove("job", force=True)
        assert await _next(events, 10) == f"kill, kill, {ended}, stop, network connect, start, {ended}, destroy"


def do(name: str, *arguments: Any, **options: Any) -> Callable[[Engine], object]:
    """Do something to the container named "it"."""
    return lambda docker: getattr(docker, name)("it", *arguments, **options)


HEALTHY, UNHEALTHY = do("set_health", "healthy"), do("set_health", "unhealthy")
OLD = {"version": "20.10.24", "api_version": "1.41"}
ENDED = "network disconnect, die"

LIVES: list[tuple[dict[str, Any], list[Callable[[Engine], object]], str]] = [
    ({}, [do("stop")], f"kill, kill, {ENDED}, stop"),
    (OLD, [do("stop")], "kill, kill, die, network disconnect, stop"),
    ({"stop_before_die": True}, [do("stop", exit_code=0)], "kill, network disconnect, stop, die"),
    ({}, [do("exit", 137, oom=True)], f"oom, {ENDED}"),
    ({}, [HEALTHY, HEALTHY, UNHEALTHY, UNHEALTHY], "health_status: healthy, health_status: unhealthy"),
    ({}, [do("exit"), do("stop")], f"{ENDED}, stop"),
    ({}, [do("exit"), do("kill")], ENDED),
    ({}, [do("exit"), do("remove", force=True)], f"{ENDED}, destroy"),
    ({}, [do("exit"), do("restart")], f"{ENDED}, stop, network connect, start, restart"),
]


@pytest.mark.parametrize(("options", "steps", "told"), LIVES)
async def test_what_is_told_of_operations_and_in_which_order(
    options: dict[str, Any], steps: list[Callable[[Engine], object]], told: str
) -> None:
    async with Engine(restart_delay=None, **options) as docker:
        docker.run("it", restart="always", health="starting")
        for step in steps:
            step(docker)
        events = (await docker.history())[3:]
        assert _short(events) == told
        for event in events:
            if event["Action"] == "die":
                assert ("execDuration" in event["Actor"]["Attributes"]) is (options is not OLD)


async def test_inspection_shows_probes_and_the_way_it_ended(docker: Engine) -> None:
    docker.run("it", health="starting", restart="always")
    for step, expected in (
        (UNHEALTHY, {"Status": "unhealthy", "FailingStreak": 1}),
        (UNHEALTHY, {"Status": "unhealthy", "FailingStreak": 2}),
        (HEALTHY, {"Status": "healthy", "FailingStreak": 0}),
        (do("pause"), {"Status": "unhealthy"}),
    ):
        step(docker)
        assert (await docker.state("it"))["Health"].items() >= expected.items()
    docker.unpause("it")
    docker.exit("it", 137, oom=True)
    assert (await docker.state("it"))["OOMKilled"] is True
    docker.kill("it")
    assert (await docker.state("it"))["Status"] == "exited"


# ---- the event stream


@pytest.mark.parametrize("moment", ["inclusively", "after the clock has stepped back"])
async def test_since_replays(docker: Engine, moment: str) -> None:
    for number in range(2):
        docker.emit("container", "start", str(number))
    stamp = (await docker.history())[1]["timeNano"]
    if moment != "inclusively":
        docker.faults.shift_clock(-60)
    docker.emit("container", "start", "2")
    since = f"{stamp // 10**9}.{stamp % 10**9:09d}"
    async with docker.subscribed(since=since) as events:
        docker.emit("container", "start", "3")
        docker.faults.end_streams()
        told = [event["Actor"]["ID"] async for event in events]
    assert told == (["1", "2", "3"] if moment == "inclusively" else ["1", "3"])
    docker.faults.fail("events", 503, count=1)
    with pytest.raises(ControlError, match="503"):
        await docker.history()
    for until in ("1", "99999999"):  # which hides what is later
        assert await docker.control._call("GET", f"/events?since=1.0&until={until}") == b""


async def test_events_pass_a_prompt_reader_and_the_ring_holds_256_of_all_types_in_the_order_of_their_times(
    docker: Engine,
) -> None:
    ids = [str(number) for number in range(5000)]
    async with docker.subscribed() as events:
        for number in ids:
            docker.emit("image" if number.endswith("0") else "container", "start", number)
        assert [(await anext(events))["Actor"]["ID"] for _ in ids] == ids
        kept = await docker.history()
    assert ([event["Actor"]["ID"] for event in kept], docker.dropped) == (ids[-256:], 0)
    stamps = [event["timeNano"] for event in kept]
    assert stamps == sorted(set(stamps))


STOPS = "stop web, stand x, st x"


@pytest.mark.parametrize(
    ("filters", "told"),
    [
        ({"type": ["container"], "event": ["start", "die", "exec_die"]}, "start web, start db, exec_die web, die web"),
        # Some make all of them prefixes.
        ({"event": ["st", "health_status"]}, f"start web, start db, health_status: healthy web, {STOPS}"),
        ({"event": ["st", "exec_create"]}, f"start web, start db, exec_create: /bin/true  web, {STOPS}"),
        ({"event": ["st", "exec_start"]}, f"start web, start db, exec_start: /bin/true  web, {STOPS}"),
        # With the colon they are exact.
        ({"event": ["health_status: healthy", "st"]}, "health_status: healthy web, st x"),
        ({"container": ["web"], "event": ["start"]}, "start web"),
        ({"label": ["tier=back"], "event": ["start"]}, "start db"),
    ],
    ids=str,
)
async def test_event_filters(docker: Engine, filters: Any, told: str) -> None:
    async with docker.subscribed(filters=filters) as events:
        docker.run("web", health="starting", labels={"tier": "front"})
        docker.run("db", labels={"tier": "back"})
        docker.exec("web")
        docker.set_health("web", "healthy")
        docker.stop("web", exit_code=0)
        for action in ("end", "stand", "st"):
            docker.emit("container", action, "x")
        docker.faults.end_streams()
        names = [(event["Action"], event["Actor"]["Attributes"].get("name", "x")) async for event in events]
    assert ", ".join(f"{action} {name}" for action, name in names) == told


async def test_filters_apply_before_the_buffer_and_the_rest_is_dropped(docker: Engine) -> None:
    async with docker.subscribed(filters={"event": ["rare"]}) as idle, docker.subscribed():
        padding = {"padding": "x" * 20_000}
        for number in range(2000):
            docker.emit("container", "often", str(number), padding)
        docker.emit("container", "rare", "x")
        assert await _next(idle, 1) == "rare"
        await docker.until(lambda: docker.dropped)
        assert docker.unsent == 1024
    await docker.until(lambda: docker.subscribers == 0)


# ---- faults


async def test_dropped_and_silent_events_are_gone_from_the_ring_too(docker: Engine) -> None:
    async with docker.subscribed() as events:
        with docker.faults.drop(lambda event: event["Action"] == "a", count=1):
            docker.emit("container", "a", "x")
            docker.emit("container", "b", "x")
        with docker.faults.drop(from_ring=False):
            docker.emit("container", "c", "x")
        with docker.faults.silently():
            docker.run("web")
        docker.emit("container", "d", "x")
        assert (await _next(events, 2), _short(await docker.history())) == ("b, d", "b, c, d")


async def test_a_stale_listing(docker: Engine) -> None:
    docker.run("one", labels={"a": "b"})
    with docker.faults.stale_list():
        docker.exit("one")
        docker.run("two")
        (item,) = await docker.control.list()
        assert (item["Names"], item["State"]) == (["/one"], "running")
        assert (await docker.state("one"))["Status"] == "exited"
    assert [item["Names"] for item in await docker.control.list()] == [["/two"]]


@pytest.mark.parametrize("how", ["killed", "restarted", "without live-restore"])
async def test_an_engine_that_ends_forgets_its_ring(docker: Engine, how: str) -> None:
    docker.run("one")
    pid = docker.container("one").pid
    if how == "killed":
        docker.faults.refuse()
        docker.rename("one", "other")
        docker.rename("other", "one")
        await docker.faults.accept()
    else:
        await docker.faults.restart(keep_containers=how == "restarted")
    assert await docker.history() == []
    state = await docker.state("one")
    assert (state["Running"], state["Pid"]) == ((False, 0) if how == "without live-restore" else (True, pid))
    docker.rename("one", "told")
    assert _short(await docker.history()) == "rename"


# ---- a clean exit


async def test_it_serves_over_tcp_at_the_same_port_when_it_is_restarted() -> None:
    async with FakeDocker(host="127.0.0.1") as docker, aiohttp.ClientSession() as session:
        docker.run("web")
        url = docker.tcp_address.replace("tcp:", "http:")
        for _ in range(2):
            async with session.get(f"{url}/containers/json") as response:
                assert len(await response.json()) == 1
            await docker.faults.restart()


async def test_ids_are_repeatable_with_a_seed() -> None:
    ids = []
    for seed in (1, 1, None):
        async with FakeDocker(seed=seed) as docker:
            ids.append(docker.run("web", restart="always"))
            docker.exit("web")  # so that it is still to be restarted when the engine ends
    assert ids[0] == ids[1] != ids[2]


async def _is_closed(peer: socket.socket) -> bool:
    with suppress(ConnectionError):
        return await asyncio.get_running_loop().sock_recv(peer, 1) == b""
    return True


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("how", ["ends", "is killed"])
async def test_connection_that_comes_as_it_ends_is_closed(how: str, turns: int) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.setblocking(False)
        async with FakeDocker() as fake:
            peer.connect(str(fake.path))
            peer.send(b"GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n")
            for _ in range(turns):
                await asyncio.sleep(0)
            if how == "is killed":
                fake.faults.refuse()
                assert await _is_closed(peer)
        assert await _is_closed(peer)


async def test_handshake_that_does_not_end_ends_with_the_engine() -> None:
    with socket.socket() as peer:
        async with FakeDocker(host="127.0.0.1", ssl_context=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)) as fake:
            peer.connect(("127.0.0.1", URL(fake.tcp_address).port))
            peer.setblocking(False)
            before = len(asyncio.all_tasks())
            for _ in range(20):  # turns of the loop, within which it is accepted and the handshake begun
                await asyncio.sleep(0)
            assert len(asyncio.all_tasks()) > before
        assert await _is_closed(peer)
