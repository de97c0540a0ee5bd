"""The fake Docker engine, as far as it is like no other: seen by a plain HTTP client."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from yarl import URL

from whalewatch.testing import FakeDocker, FakeDockerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.usefixtures("patience")


class Client:
    """A client of the Engine API, without any knowledge of it."""

    def __init__(self, docker: FakeDocker, session: aiohttp.ClientSession) -> None:
        self.docker = docker
        self.session = session
        self.streams: list[Stream] = []

    async def close(self) -> None:
        for stream in self.streams:
            stream.response.close()
        await self.session.close()

    async def call(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        async with self.session.request(method, path, **options) as response:
            text = await response.text()
            return response.status, json.loads(text) if text.strip().startswith(("{", "[")) else text

    async def get(self, path: str, **options: Any) -> Any:
        status, body = await self.call("GET", path, **options)
        assert status == 200, body
        return body

    async def subscribe(self, path: str = "/events", **query: Any) -> Stream:
        known = self.docker.subscribers
        params = {key: value if isinstance(value, str) else json.dumps(value) for key, value in query.items()}
        response = await self.session.get(path, params=params, timeout=aiohttp.ClientTimeout(total=None))
        assert response.status == 200
        await self.docker.until(lambda: self.docker.subscribers > known)
        self.streams.append(Stream(response))
        return self.streams[-1]


class Stream:
    """An open event stream."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def take(self, count: int) -> list[Any]:
        return [json.loads(await self.response.content.readline()) for _ in range(count)]

    async def actions(self, count: int) -> list[str]:
        return [_short(event) for event in await self.take(count)]

    async def rest(self) -> list[Any]:
        """Read it to its end."""
        return [json.loads(line) async for line in self.response.content]


def _short(event: dict[str, Any]) -> str:
    return event["Action"] if event["Type"] == "container" else f"{event['Type']} {event['Action']}"


def _at_once(status: str) -> str:
    """Spell the state of a container as a machine would make it be that is in no way busy."""
    return re.sub(r"\d+ seconds?", "Less than a second", status)


async def history(client: Client) -> list[Any]:
    """Return what the ring holds."""
    for until in ("1", "99999999"):
        assert await client.get("/events", params={"since": "1.0", "until": until}) == ""  # `until` hides what is later
    stream = await client.subscribe(since="1.0")
    client.docker.faults.end_streams()
    return await stream.rest()


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[Client]:
    """Run a fake engine, and connect to it."""
    async with FakeDocker(**options) as docker:
        connector = aiohttp.UnixConnector(str(docker.path), limit=0)
        client = Client(docker, aiohttp.ClientSession("http://docker", connector=connector))
        try:
            yield client
        finally:
            await client.close()


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with serving(seed=1, restart_delay=None) as client:
        yield client


@pytest.fixture
def docker(client: Client) -> FakeDocker:
    return client.docker


# ---- the wire


async def test_engine_says_who_it_is_and_what_it_has(client: Client, docker: FakeDocker) -> None:
    for method, body in (("GET", "OK"), ("HEAD", "")):
        async with client.session.request(method, "/_ping") as response:
            headers = [response.headers[name] for name in ("Api-Version", "Ostype", "Server")]
            assert (response.status, headers) == (200, ["1.45", "linux", "Docker/26.1.5 (linux)"])
            assert await response.text() == body
    docker.run("one")
    docker.run("two", paused=True)
    version = await client.get("/v1.40/version")
    assert (version["Version"], version["ApiVersion"], version["MinAPIVersion"]) == ("26.1.5", "1.45", "1.24")
    info = await client.get("/info")
    assert (info["Containers"], info["ContainersRunning"], info["ContainersPaused"]) == (2, 1, 1)
    assert info["ServerVersion"] == "26.1.5"
    assert info["SystemTime"].endswith("Z")
    assert len(info["SystemTime"].partition(".")[2]) > len("123Z")  # finer than milliseconds


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/v1.46/info", 400, "too new"),
        ("/v1.23/info", 400, "too old"),
        ("/nonsense", 404, "page not found"),
        ("/containers/nope/json", 404, "No such container: nope"),
        ("/events?since=abc", 500, "invalid syntax"),
        ("/events?since=5&until=4", 400, "until"),
        ("/events?filters=bad", 400, "filter"),
    ],
)
async def test_what_makes_no_sense_is_refused(client: Client, path: str, status: int, says: str) -> None:
    answer, body = await client.call("GET", path)
    assert answer == status
    assert says in body["message"]


async def test_listing_and_inspection_tell_the_same(client: Client, docker: FakeDocker) -> None:
    container_id = docker.run(
        "web",
        labels={"tier": "front"},
        project="shop",
        health="healthy",
        privileged=True,
        networks={"shop_net": ["10.1.0.9", "fd00::9"]},
        ports={"80/tcp": 8080, "81/udp": None},
        restart="always",
    )
    (item,) = await client.get("/containers/json")
    labels = {"tier": "front", "com.docker.compose.project": "shop"}
    told = (item["Id"], item["Names"], item["Labels"], item["State"])
    assert told == (container_id, ["/web"], labels, "running")
    assert _at_once(item["Status"]) == "Up Less than a second (healthy)"
    assert item["Ports"][0] == {"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}
    assert item["HostConfig"] == {"NetworkMode": "shop_net"}
    assert "Health" not in item

    for name in (container_id, "web", container_id[:12]):
        data = await client.get(f"/containers/{name}/json")
        assert (data["Id"], data["Name"], data["Config"]["Labels"]) == (container_id, "/web", labels)
    assert data["State"]["Pid"] == docker.container("web").pid > 0
    state = (data["State"]["Status"], data["State"]["Health"]["Status"], data["State"]["FinishedAt"])
    assert state == ("running", "healthy", "0001-01-01T00:00:00Z")
    assert data["HostConfig"]["Privileged"] is True
    assert data["HostConfig"]["RestartPolicy"] == {"Name": "always", "MaximumRetryCount": 0}
    assert data["NetworkSettings"]["Ports"]["80/tcp"][0] == {"HostIp": "0.0.0.0", "HostPort": "8080"}
    assert data["NetworkSettings"]["Ports"]["81/udp"] is None
    network = data["NetworkSettings"]["Networks"]["shop_net"]
    assert (network["IPAddress"], network["GlobalIPv6Address"]) == ("10.1.0.9", "fd00::9")
    assert item["NetworkSettings"]["Networks"]["shop_net"]["IPAddress"] == "10.1.0.9"


async def test_default_listing_has_what_lives_or_restarts(client: Client, docker: FakeDocker) -> None:
    docker.create("created")
    docker.run("running")
    docker.run("paused", paused=True)
    docker.run("restarting", restart="always")
    docker.exit("restarting", 3)
    docker.run("exited")
    docker.exit("exited", 4)

    async def listed(path: str) -> dict[str, str]:
        return {item["Names"][0]: _at_once(item["Status"]) for item in await client.get(path)}

    alive = {
        "/running": "Up Less than a second",
        "/paused": "Up Less than a second (Paused)",
        "/restarting": "Restarting (3) Less than a second ago",
    }
    assert await listed("/containers/json") == alive
    dead = {"/exited": "Exited (4) Less than a second ago", "/created": "Created"}
    assert await listed("/containers/json?all=1") == alive | dead


async def test_list_filters(client: Client, docker: FakeDocker) -> None:
    first = docker.run("web-1", labels={"tier": "front", "env": "test"})
    docker.run("web-2", labels={"tier": "front"}, paused=True)
    docker.run("db-1", labels={"tier": "back"})
    docker.exit("db-1")

    async def names(**filters: list[str]) -> set[str]:
        items = await client.get("/containers/json", params={"filters": json.dumps(filters)})
        return {item["Names"][0][1:] for item in items}

    assert await names(status=["exited"]) == {"db-1"}
    assert await names(status=["exited", "paused"]) == {"db-1", "web-2"}
    assert await names(label=["tier=front", "env"]) == {"web-1"}
    assert await names(name=["web"]) == {"web-1", "web-2"}
    assert await names(name=["^/web-1$"]) == {"web-1"}
    assert await names(id=[first[:12]]) == {"web-1"}
    for bad in ({"bogus": ["x"]}, {"status": ["x"]}, ["x"], "x"):
        status, _ = await client.call("GET", "/containers/json", params={"filters": json.dumps(bad)})
        assert status == 400


async def test_health_is_a_field_and_legacy_fields_are_gone_from_1_52_on() -> None:
    async with serving(version="29.0.0", api_version="1.52", min_api_version="1.44") as client:
        new, old = await client.subscribe(), await client.subscribe("/v1.51/events")
        client.docker.run("web", health="unhealthy")
        client.docker.run("db")
        listed = {item["Names"][0]: item for item in await client.get("/containers/json")}
        assert listed["/web"]["Health"] == {"Status": "unhealthy", "FailingStreak": 1}
        assert listed["/db"]["Health"]["Status"] == "none"
        assert "Health" not in (await client.get("/v1.51/containers/json"))[0]
        ((told,), (told_of_old,)) = (await new.take(1), await old.take(1))
        assert told.keys() & {"status", "id", "from"} == set()
        assert told_of_old.keys() >= {"status", "id", "from"}


# ---- operations over the wire, and the events they cause


async def test_a_life_over_the_wire(client: Client, docker: FakeDocker) -> None:
    stream = await client.subscribe()

    async def post(path: str, expected: int, actions: list[str], body: Any = None) -> Any:
        status, answer = await client.call("POST", path, json=body)
        assert (path, status) == (path, expected), answer
        assert await stream.actions(len(actions)) == actions
        return answer

    body = {"Image": "tiny", "Labels": {"a": "b"}, "Healthcheck": {"Test": ["CMD", "/bin/true"]}}
    created = await post("/containers/create?name=life", 201, ["create"], body)
    path = f"/containers/{created['Id']}"
    await post("/containers/create?name=life", 409, [], body)
    await post(f"{path}/pause", 409, [])
    await post(f"{path}/kill", 409, [])
    await post(f"{path}/stop", 304, [])
    await post(f"{path}/start", 204, ["network connect", "start"])
    await post(f"{path}/start", 304, [])
    await post(f"{path}/pause", 204, ["pause"])
    await post(f"{path}/pause", 409, [])
    assert (await client.get(f"{path}/json"))["State"]["Health"]["Status"] == "unhealthy"
    await post(f"{path}/exec", 409, [], {"Cmd": ["/bin/true"]})
    await post(f"{path}/unpause", 204, ["unpause"])
    await post(f"{path}/unpause", 500, [])
    process = await post(f"{path}/exec", 201, ["exec_create: /bin/echo a b"], {"Cmd": ["/bin/echo", "a", "b"]})
    assert (await client.get(f"/exec/{process['Id']}/json"))["ExitCode"] is None
    await post(f"/exec/{process['Id']}/start", 200, ["exec_start: /bin/echo a b", "exec_die"])
    assert (await client.get(f"/exec/{process['Id']}/json"))["ExitCode"] == 0
    await post(f"{path}/rename?name=other", 204, ["rename"])
    await post(f"{path}/rename?name=other", 400, [])
    await post(f"{path}/kill?signal=HUP", 204, ["kill"])
    await post(f"{path}/kill?signal=FOO", 400, [])
    stopping = ["kill", "kill", "network disconnect", "die", "stop"]
    await post(f"{path}/restart?t=0", 204, [*stopping, "network connect", "start", "restart"])
    await post(f"{path}/stop?t=0", 204, stopping)
    await post(f"{path}/start", 204, ["network connect", "start"])
    assert (await client.call("DELETE", path))[0] == 409
    assert (await client.call("DELETE", f"{path}?force=1"))[0] == 204
    assert await stream.actions(4) == ["kill", "network disconnect", "die", "destroy"]
    assert (await client.call("DELETE", path))[0] == 404
    assert docker.requests["start"] == 3


async def test_networks_images_and_volumes(client: Client, docker: FakeDocker) -> None:
    stream = await client.subscribe()
    container_id = docker.run("web")
    await stream.take(3)

    async def status(method: str, path: str, body: Any = None) -> int:
        return (await client.call(method, path, json=body))[0]

    wanted = {"Container": "web", "EndpointConfig": {"IPAMConfig": {"IPv4Address": "10.0.0.7"}}}
    assert await status("POST", "/networks/create", {"Name": "net"}) == 201
    assert await status("POST", "/networks/create", {"Name": "net"}) == 409
    assert await status("POST", "/networks/net/connect", wanted) == 200
    assert await status("POST", "/networks/net/connect", wanted) == 403
    networks = (await client.get("/containers/web/json"))["NetworkSettings"]["Networks"]
    assert networks["net"]["IPAddress"] == "10.0.0.7"
    assert await status("DELETE", "/networks/net") == 403
    assert await status("POST", "/networks/net/disconnect", {"Container": container_id}) == 200
    assert await status("POST", "/networks/net/disconnect", {"Container": "web"}) == 500
    assert await status("DELETE", "/networks/net") == 204
    assert {network["Name"] for network in await client.get("/networks")} == {"bridge", "host", "none"}
    assert await status("POST", "/images/tiny/tag?repo=other") == 201
    assert await status("POST", "/images/nope/tag?repo=other") == 404
    assert await status("POST", "/volumes/create", {"Name": "vol"}) == 201
    assert await status("DELETE", "/volumes/vol") == 204
    assert await status("DELETE", "/volumes/vol") == 404
    events = await stream.take(8)
    assert ", ".join(_short(event) for event in events) == (
        "network create, network connect, network disconnect, network disconnect, network destroy, "
        "image tag, volume create, volume destroy"
    )
    assert events[1]["Actor"]["Attributes"] == {"container": container_id, "name": "net", "type": "bridge"}


async def test_waiting_for_the_exit_over_the_wire(client: Client, docker: FakeDocker) -> None:
    docker.run("job")
    waiting = asyncio.create_task(client.call("POST", "/containers/job/wait"))
    await docker.until(lambda: docker.requests["wait"])
    assert not waiting.done()
    docker.exit("job", 7)
    assert await waiting == (200, {"StatusCode": 7})
    assert await client.call("POST", "/containers/job/wait") == (200, {"StatusCode": 7})


async def test_restart_policy(client: Client, docker: FakeDocker) -> None:
    container_id = docker.run("job", restart="on-failure")
    first = docker.container("job").pid
    stream = await client.subscribe()
    docker.exit(container_id, 3)
    assert await stream.actions(2) == ["network disconnect", "die"]
    state = (await client.get("/containers/job/json"))["State"]
    assert (state["Status"], state["Running"], state["Restarting"], state["Pid"]) == ("restarting", True, True, 0)
    for refused in (docker.pause, docker.exec):
        with pytest.raises(FakeDockerError, match="is restarting"):
            refused(container_id)
    docker.finish_restart(container_id)
    assert await stream.actions(2) == ["network connect", "start"]
    data = await client.get("/containers/job/json")
    assert data["RestartCount"] == 1
    assert data["State"]["Pid"] > first
    docker.exit(container_id, 0)
    assert await stream.actions(2) == ["network disconnect", "die"]
    assert docker.container("job").status == "exited"


async def test_restart_policy_acts_by_itself_after_a_delay() -> None:
    async with serving(restart_delay=0.0) as client:
        client.docker.run("job", restart="always")
        stream = await client.subscribe()
        client.docker.exit("job")
        assert await stream.actions(4) == ["network disconnect", "die", "network connect", "start"]
        client.docker.stop("job")
        client.docker.start("job")
        client.docker.exit("job")
        client.docker.remove("job", force=True)
        assert (await stream.actions(10))[-1] == "destroy"


async def test_what_is_done_to_a_restarting_container(client: Client, docker: FakeDocker) -> None:
    for name in ("stop", "kill", "remove", "restart"):
        docker.run(name, restart="always")
        docker.exit(name)
    stream = await client.subscribe()
    docker.stop("stop")
    docker.kill("kill")
    docker.remove("remove", force=True)
    docker.restart("restart")
    assert await stream.actions(6) == ["stop", "destroy", "stop", "network connect", "start", "restart"]
    assert docker.container("kill").status == "exited"


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        ({}, 137, "kill, kill, network disconnect, die, stop"),
        ({"version": "20.10.24", "api_version": "1.41"}, 137, "kill, kill, die, network disconnect, stop"),
        ({"stop_before_die": True}, 0, "kill, network disconnect, stop, die"),
    ],
    ids=["usual", "20.10", "stop first"],
)
async def test_what_is_told_of_a_stop_and_in_which_order(options: dict[str, Any], code: int, told: str) -> None:
    async with serving(**options) as client:
        client.docker.run("web")
        client.docker.stop("web", exit_code=code)
        events = (await history(client))[3:]
        assert ", ".join(_short(event) for event in events) == told
        (died,) = (event for event in events if event["Action"] == "die")
        assert ("execDuration" in died["Actor"]["Attributes"]) is ("api_version" not in options)


async def test_labels_hide_attributes_but_not_image_and_name(client: Client, docker: FakeDocker) -> None:
    labels = {"exitCode": "x", "oldName": "y", "name": "n", "image": "i", "signal": "s"}
    container_id = docker.run("web", labels=labels)
    docker.rename("web", "new")
    docker.kill("new", signal="SIGKILL")
    events = await history(client)
    rename, kill, die = events[3], events[4], events[6]
    assert rename["Actor"]["Attributes"] == {**labels, "name": "new", "image": "tiny"}
    assert kill["Actor"]["Attributes"]["signal"] == "s"
    assert die["Actor"]["Attributes"]["exitCode"] == "x"
    assert (await client.get(f"/containers/{container_id}/json"))["State"]["ExitCode"] == 137


async def test_rename_tells_both_names(client: Client, docker: FakeDocker) -> None:
    docker.run("old")
    docker.rename("old", "new")
    attributes = (await history(client))[-1]["Actor"]["Attributes"]
    assert (attributes["name"], attributes["oldName"]) == ("new", "/old")
    docker.run("old")
    with pytest.raises(FakeDockerError, match="already in use"):
        docker.rename("new", "old")


async def test_health_is_told_on_change_only_and_an_end_out_of_memory(client: Client, docker: FakeDocker) -> None:
    docker.run("web", health="starting")
    for health in ("healthy", "healthy", "unhealthy", "unhealthy"):
        docker.set_health("web", health)
    assert (await client.get("/containers/web/json"))["State"]["Health"]["FailingStreak"] == 2
    docker.exit("web", 137, oom=True)
    told = [_short(event) for event in await history(client)][3:]
    assert told == ["health_status: healthy", "health_status: unhealthy", "oom", "network disconnect", "die"]
    assert (await client.get("/containers/web/json"))["State"]["OOMKilled"] is True


# ---- the event stream


async def test_events_have_what_docker_sends(client: Client, docker: FakeDocker) -> None:
    stream = await client.subscribe()
    assert stream.response.headers["Content-Type"] == "application/json"
    container_id = docker.run("web", labels={"a": "b"})
    event, of_network = await stream.take(2)
    nanoseconds = event.pop("timeNano")
    assert event.pop("time") == nanoseconds // 10**9
    assert event == {
        "status": "create",
        "id": container_id,
        "from": "tiny",
        "Type": "container",
        "Action": "create",
        "Actor": {"ID": container_id, "Attributes": {"a": "b", "image": "tiny", "name": "web"}},
        "scope": "local",
    }
    assert "status" not in of_network  # networks never had it


async def test_since_replays_inclusively_and_goes_on(client: Client, docker: FakeDocker) -> None:
    for number in range(3):
        docker.emit("container", "start", str(number))
    stamp = (await history(client))[1]["timeNano"]
    stream = await client.subscribe(since=f"{stamp // 10**9}.{stamp % 10**9:09d}")
    docker.emit("container", "start", "3")
    assert [event["Actor"]["ID"] for event in await stream.take(3)] == ["1", "2", "3"]


async def test_the_ring_holds_256_events_of_all_types_whose_time_stamps_increase_strictly(
    client: Client, docker: FakeDocker
) -> None:
    for number in range(300):
        docker.emit("image" if number % 2 else "container", "start", str(number))
    kept = await history(client)
    assert [event["Actor"]["ID"] for event in kept] == [str(number) for number in range(44, 300)]
    stamps = [event["timeNano"] for event in kept]
    assert stamps == sorted(set(stamps))


@pytest.mark.parametrize(
    ("filters", "told"),
    [
        ({"type": ["container"], "event": ["start", "die", "exec_die"]}, "start web, start db, exec_die web, die web"),
        # Some make all of them prefixes.
        (
            {"event": ["st", "health_status"]},
            "start web, start db, health_status: healthy web, stop web, stand x, st x",
        ),
        ({"event": ["st", "exec_create"]}, "start web, start db, exec_create: /bin/true  web, stop web, stand x, st x"),
        ({"event": ["st", "exec_start"]}, "start web, start db, exec_start: /bin/true  web, stop web, stand x, st x"),
        # With the colon they are exact.
        ({"event": {"health_status: healthy": True, "st": True}}, "health_status: healthy web, st x"),
        ({"container": ["web"], "event": ["start"]}, "start web"),
        ({"label": ["tier=back"], "event": ["start"]}, "start db"),
    ],
    ids=str,
)
async def test_event_filters(client: Client, docker: FakeDocker, filters: Any, told: str) -> None:
    stream = await client.subscribe(filters=filters)
    docker.run("web", health="starting", labels={"tier": "front"})
    docker.run("db", labels={"tier": "back"})
    docker.exec("web")
    docker.set_health("web", "healthy")
    docker.stop("web", exit_code=0)
    for action in ("end", "stand", "st"):
        docker.emit("container", action, "x")
    docker.faults.end_streams()
    names = [(_short(event), event["Actor"]["Attributes"].get("name", "x")) for event in await stream.rest()]
    assert ", ".join(f"{action} {name}" for action, name in names) == told


async def test_filters_apply_before_the_buffer_and_the_rest_is_dropped(client: Client, docker: FakeDocker) -> None:
    idle = await client.subscribe(filters={"event": ["rare"]})
    slow = await client.subscribe()
    padding = {"padding": "x" * 20_000}
    for number in range(2000):
        docker.emit("container", "often", str(number), padding)
    docker.emit("container", "rare", "x")
    assert await idle.actions(1) == ["rare"]
    await docker.until(lambda: docker.dropped)
    assert docker.unsent == 1024
    slow.response.close()
    await docker.until(lambda: docker.subscribers == 1)


async def test_five_thousand_events_pass_a_prompt_reader(client: Client, docker: FakeDocker) -> None:
    stream = await client.subscribe()
    for number in range(5000):
        docker.emit("container", "start", str(number))
    assert [event["Actor"]["ID"] for event in await stream.take(5000)] == [str(number) for number in range(5000)]
    assert docker.dropped == 0


# ---- faults of events


def _action(name: str) -> Any:
    return lambda event: event["Action"] == name


async def test_dropped_and_silent_events_are_gone_from_the_ring_too(client: Client, docker: FakeDocker) -> None:
    stream = await client.subscribe()
    with docker.faults.drop(_action("a"), count=1):
        docker.emit("container", "a", "x")
        docker.emit("container", "b", "x")
    with docker.faults.drop(_action("c"), from_ring=False):
        docker.emit("container", "c", "x")
    with docker.faults.silently():
        docker.run("web")
    docker.emit("container", "d", "x")
    assert await stream.actions(2) == ["b", "d"]
    assert [_short(event) for event in await history(client)] == ["b", "c", "d"]


# ---- faults of calls


async def test_faults_of_calls_can_be_limited_to_a_container(client: Client, docker: FakeDocker) -> None:
    one, two = docker.run("one"), docker.run("two")
    with docker.faults.fail("inspect", 503, "go away", id="one"), docker.faults.fail("pause", id=two):
        assert await client.call("GET", f"/containers/{one}/json") == (503, {"message": "go away"})
        assert (await client.get("/containers/two/json"))["Name"] == "/two"
        assert (await client.call("POST", "/containers/two/pause"))[0] == 500
        assert docker.container("two").status == "running"
    with docker.faults.hang("inspect", "one"):
        seen = docker.requests["inspect"]
        hanging = asyncio.create_task(client.get("/containers/one/json"))
        await docker.until(lambda: docker.requests["inspect"] > seen)
        assert (await client.get("/containers/two/json"))["Name"] == "/two"
        assert not hanging.done()
    assert (await hanging)["Name"] == "/one"
    with docker.faults.pause_after("inspect", "two") as gate:
        held = asyncio.create_task(client.get("/containers/two/json"))
        await gate.reached()
        assert (await client.get("/containers/one/json"))["Name"] == "/one"
    assert (await held)["Name"] == "/two"
    docker.faults.fail("events", 500)
    assert (await client.call("GET", "/events"))[0] == 500


async def test_answers_that_are_cut_in_the_middle(client: Client, docker: FakeDocker) -> None:
    docker.run("web")
    (whole,) = await client.get("/containers/json")
    docker.faults.halve("list", count=1)
    async with client.session.get("/containers/json") as response:
        assert response.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    with docker.faults.halve("inspect", "web"), pytest.raises(aiohttp.ClientPayloadError):
        await client.get("/containers/web/json")
    (again,) = await client.get("/containers/json")
    assert again | {"Status": _at_once(again["Status"])} == whole | {"Status": _at_once(whole["Status"])}


async def test_a_stale_listing(client: Client, docker: FakeDocker) -> None:
    docker.run("one", labels={"a": "b"})
    with docker.faults.stale_list():
        docker.exit("one")
        docker.run("two")
        (item,) = await client.get("/containers/json")
        assert (item["Names"], item["State"]) == (["/one"], "running")
        assert (await client.get("/containers/one/json"))["State"]["Status"] == "exited"
    assert [item["Names"] for item in await client.get("/containers/json")] == [["/two"]]


# ---- faults of connections


@pytest.mark.parametrize("how", ["killed", "restarted", "without live-restore"])
async def test_an_engine_that_ends_forgets_its_ring(client: Client, docker: FakeDocker, how: str) -> None:
    docker.run("one")
    pid = docker.container("one").pid
    if how == "killed":
        docker.faults.refuse()
        with pytest.raises(aiohttp.ClientConnectorError) as refused:
            await client.get("/_ping")
        assert isinstance(refused.value.os_error, ConnectionRefusedError)  # the file is still there
        docker.rename("one", "other")
        docker.rename("other", "one")
        await docker.faults.accept()
    else:
        await docker.faults.restart(keep_containers=how == "restarted")
    assert await history(client) == []
    state = (await client.get("/containers/one/json"))["State"]
    assert (state["Running"], state["Pid"]) == ((False, 0) if how == "without live-restore" else (True, pid))
    docker.rename("one", "told")
    assert [_short(event) for event in await history(client)] == ["rename"]


async def test_a_frozen_engine_restarts_nothing() -> None:
    async with serving(restart_delay=0.0) as client:
        docker = client.docker
        docker.run("web", restart="always")
        docker.faults.freeze()
        docker.exit("web")
        for _ in range(3):
            await asyncio.sleep(0)
        assert docker.container("web").status == "restarting"
        stream = asyncio.create_task(client.subscribe(filters={"event": ["start"]}))
        await docker.until(lambda: docker.requests["events"])
        docker.faults.thaw()
        await stream
        assert docker.container("web").status == "running"


async def test_a_clock_that_steps_back_defeats_since(client: Client, docker: FakeDocker) -> None:
    docker.emit("container", "a", "x")
    stamp = (await history(client))[0]["timeNano"]
    docker.faults.shift_clock(-60)
    docker.emit("container", "b", "x")
    stream = await client.subscribe(since=f"{stamp // 10**9}.{stamp % 10**9:09d}")
    docker.faults.end_streams()
    assert [event["Action"] for event in await stream.rest()] == ["a"]


# ---- a clean exit


def _open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_closing_leaves_nothing_behind() -> None:
    before = asyncio.all_tasks(), _open_descriptors()
    async with FakeDocker(restart_delay=3600.0) as docker:
        connector = aiohttp.UnixConnector(str(docker.path))
        client = Client(docker, aiohttp.ClientSession("http://docker", connector=connector))
        docker.run("web", restart="always")
        docker.exit("web")
        await client.subscribe()
        docker.faults.delay(3600.0)
        docker.emit("container", "a", "x")
        docker.faults.hang("list")
        docker.faults.pause_at("info")
        docker.faults.slow("version", 3600.0)
        calls = [asyncio.create_task(client.get(path)) for path in ("/containers/json", "/info", "/version")]
        calls.append(asyncio.create_task(client.call("POST", "/containers/web/wait")))
        await docker.until(lambda: docker.requests["wait"])
        docker.faults.freeze()
        calls.append(asyncio.create_task(client.get("/_ping")))
        await docker.until(lambda: docker.requests["ping"])
        folder = docker.path.parent
    assert not folder.exists()
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(outcome, aiohttp.ClientError)
    await client.close()
    assert (asyncio.all_tasks(), _open_descriptors()) == before


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
            ids.append(docker.run("web"))
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
