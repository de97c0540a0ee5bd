"""The engines that the other tests rely on: the real ones do as they are told, and the fake does as they do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import ssl
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.conftest import VERSIONS
from tests.support.engines.control import ControlError, DockerControl
from tests.support.engines.dockerd import Dockerd
from tests.support.engines.process import EngineFailedError, alive

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.conftest import Docker

    Step = Callable[[Docker], Awaitable[object]]
    MakeDockerd = Callable[..., Dockerd]

live = pytest.mark.live


# -- real engines do as they are told ----------------------------------------------------------------------------------


async def test_only_what_runs_is_alive(docker: Docker) -> None:
    container = await docker.control.run("web", labels={"a": "b"})
    await docker.control.create("created")
    exited = await docker.run_and_exit("exited", 3)
    assert (await docker.control.inspect(exited))["State"]["ExitCode"] == 3
    truth = await docker.control.truth()
    assert {id: (alive["Name"], alive["Config"]["Labels"]) for id, alive in truth.items()} == {
        container: ("/web", {"a": "b"})
    }
    await docker.control.remove(container)
    assert await docker.control.truth() == {}
    assert {listed["Names"][0] for listed in await docker.control.list(all=True)} == {"/created", "/exited"}
    with pytest.raises(ControlError) as refused:
        await docker.control.inspect("nobody")
    assert refused.value.status == 404


async def test_container_in_bridge_networks_has_an_address_in_each(docker: Docker) -> None:
    for network in ("front", "back"):
        await docker.control.network_create(network)
    container = await docker.control.run("web", network="front")
    await docker.control.network_connect("back", container)
    addresses = _addresses(await docker.control.inspect(container))
    assert addresses.keys() == {"front", "back"}
    assert all(addresses.values())
    await docker.control.network_disconnect("front", container)
    assert _addresses(await docker.control.inspect(container)) == {"back": addresses["back"]}


@pytest.fixture
async def engine(request: pytest.FixtureRequest, make_dockerd: MakeDockerd) -> Dockerd:
    """A real engine for one test alone."""
    version, options = request.param
    return await asyncio.to_thread(make_dockerd, version, **options)


def real(**options: bool) -> pytest.MarkDecorator:
    """Run a test with each of the real engines, started with these options."""
    engines = [pytest.param((version, options), id=version, marks=live) for version in VERSIONS]
    return pytest.mark.parametrize("engine", engines, indirect=True)


@real(live_restore=True)
async def test_containers_outlive_an_engine_that_is_frozen_or_killed_with_live_restore(engine: Dockerd) -> None:
    async with DockerControl(engine.socket) as control:
        container = await control.run("survivor")
        pid = (await control.inspect(container))["State"]["Pid"]
        engine.freeze()
        waiting = asyncio.create_task(control.info())  # it is connected, and not answered
        answered, _ = await asyncio.wait({waiting}, timeout=0.3)
        assert (answered, engine.running) == (set(), True)
        engine.thaw()
        assert (await waiting)["ContainersRunning"] == 1
        async with control.events() as events:
            await asyncio.to_thread(engine.kill)
            assert [event async for event in events] == []
        assert not engine.running
        with pytest.raises(aiohttp.ClientError):
            await control.info()
        await asyncio.to_thread(engine.start)
        assert {key: alive["State"]["Pid"] for key, alive in (await control.truth()).items()} == {container: pid}


@real()
async def test_containers_die_with_a_restarted_engine_and_closing_it_leaves_nothing_behind(engine: Dockerd) -> None:
    async with DockerControl(engine.socket) as control:
        container = await control.run("victim", stop_signal="SIGKILL")
        await asyncio.to_thread(engine.restart)
        assert await control.truth() == {}
        assert [listed["Id"] for listed in await control.list(all=True)] == [container]
        orphan = await control.run("orphan")
        pid = (await control.inspect(orphan))["State"]["Pid"]
    await asyncio.to_thread(engine.kill)
    await asyncio.to_thread(engine.close)
    assert _traces(engine, pid) == []


@real(tls=True)
async def test_engine_with_tls_talks_to_those_with_its_certificate(engine: Dockerd) -> None:
    assert engine.certificates is not None
    url = engine.tcp_address.replace("tcp://", "https://") + "/_ping"
    tls = ssl.create_default_context(cafile=str(engine.certificates / "ca.pem"))
    with pytest.raises(aiohttp.ClientError):
        await _read(url, tls)
    tls.load_cert_chain(engine.certificates / "cert.pem", engine.certificates / "key.pem")
    assert await _read(url, tls) == "OK"


@live
def test_engine_that_cannot_start_tells_why(make_dockerd: MakeDockerd, need: Callable[[str, str], None]) -> None:
    need("Docker", "20.10")
    root = Path(tempfile.mkdtemp(prefix="ww-"))  # pytest's own folders are too deep for sockets
    (root / "data").write_text("not a folder")
    with pytest.raises(EngineFailedError, match="points to a file"):
        make_dockerd("20.10", root=root)
    assert not root.exists()


def test_folder_too_deep_for_a_socket_is_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        Dockerd("20.10", Path("/tmp") / ("x" * 80))  # noqa: S108 - nothing is written there


# -- the fake does as the real ones do ---------------------------------------------------------------------------------


def do(name: str, *arguments: Any, **options: Any) -> Step:
    """Do something to the container named "it"."""
    return lambda docker: getattr(docker if hasattr(docker, name) else docker.control, name)(
        "it", *arguments, **options
    )


NETWORKS: list[Step] = [
    lambda docker: docker.control.network_create("front"),
    lambda docker: docker.control.network_create("back"),
    do("run", network="front"),
    lambda docker: docker.control.network_connect("back", "it"),
    lambda docker: docker.control.network_disconnect("front", "it"),
]

# What each scenario, and the forced removal at its end, says on the event stream: all that real engines were seen to
# say, as regular expressions. Docker 23 and later tell "stop" before "die" as a rule; both orders are taken for one.
# An engine that ends a paused container thaws it too. What containerd says of a pause reaches the engine once more: if
# the container was thawed meanwhile, a second pair is told, each half of it before or after the signal that comes next.
# Of these races all outcomes are listed, the rarest though they were not seen.
_KILLED = "kill 9, die 137"
_STOPPED = "kill 15, kill 9, die 137, stop"
_PAUSED_TWICE = "pause, unpause, kill 9|pause, kill 9|pause, kill 9, unpause|kill 9, pause|kill 9, pause, unpause"

SCENARIOS: dict[str, tuple[list[Step], str]] = {
    "stop": ([do("run_command"), do("stop")], f"create, start, {_STOPPED}, destroy"),
    "kill": ([do("run"), do("kill"), do("wait")], f"create, start, {_KILLED}, destroy"),
    "harmless-signal": ([do("run_command"), do("kill", "SIGUSR1")], f"create, start, kill 10, {_KILLED}, destroy"),
    "restart": (
        [do("run_command"), do("restart")],
        f"create, start, {_STOPPED}, start, restart, {_KILLED}, destroy",
    ),
    "start-again": (
        [do("run_command"), do("stop"), do("start")],
        f"create, start, {_STOPPED}, start, {_KILLED}, destroy",
    ),
    "start-twice": ([do("run"), do("start")], f"create, start, {_KILLED}, destroy"),
    "pause": (
        [do("run"), do("pause"), do("unpause")],
        f"create, start, pause, unpause, (kill 9|{_PAUSED_TWICE}), die 137, destroy",
    ),
    "kill-paused": (
        [do("run"), do("pause"), do("kill"), do("wait")],
        "create, start, pause, (kill 9|kill 9, unpause|unpause, kill 9), die 137, destroy",
    ),
    "stop-paused": (
        [do("run_command"), do("pause"), do("stop")],
        "create, start, pause, kill 15, (unpause, kill 9|kill 9, unpause), die 137, stop, destroy",
    ),
    "rename": ([do("run"), do("rename", "other")], f"create, start, rename /it, {_KILLED}, destroy"),
    "exit": ([do("run_and_exit", 3)], "create, start, die 3, destroy"),
    "exec": (
        [do("run"), do("exec", ["/bin/true"])],
        f"create, start, exec_create, exec_start, exec_die 0, {_KILLED}, destroy",
    ),
    "never-started": ([do("create")], "create, destroy"),
    "networks": (NETWORKS, f"create, start, {_KILLED}, destroy"),
}


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_engine_tells_what_happens_to_a_container(docker: Docker, scenario: str) -> None:
    steps, expected = SCENARIOS[scenario]
    events = await _watch(docker, *steps)
    told = ", ".join(_told(event) for event in events if event["Type"] == "container")
    told = told.replace("stop, die 137", "die 137, stop")
    assert re.fullmatch(expected, told)


async def test_engine_tells_what_happens_to_a_containers_networks(docker: Docker) -> None:
    events = await _watch(docker, *NETWORKS)
    (container,) = {event["Actor"]["ID"] for event in events if event["Type"] == "container"}
    told = [
        (event["Action"], event["Actor"]["Attributes"]["name"], event["Actor"]["Attributes"]["container"])
        for event in events
        if event["Type"] == "network" and "container" in event["Actor"]["Attributes"]
    ]
    # Real engines tell twice that a running container was disconnected.
    assert [told[0], *(this for last, this in pairwise(told) if this != last)] == [
        (action, network, container) for action in ("connect", "disconnect") for network in ("front", "back")
    ]


async def test_events_carry_what_tells_a_container(docker: Docker) -> None:
    events = await _watch(docker, do("run", labels={"some": "label"}))
    events = [event for event in events if event["Type"] == "container"]
    for event in events:
        assert event["Actor"]["Attributes"].items() >= {"name": "it", "image": "tiny:latest", "some": "label"}.items()
        assert event["time"] == event["timeNano"] // 1_000_000_000
        assert event["scope"] == "local"
    assert len({event["Actor"]["ID"] for event in events}) == 1
    assert [event["timeNano"] for event in events] == sorted(event["timeNano"] for event in events)


INSPECTED = {
    str: """
        Id Created Name Image State.Status State.StartedAt State.FinishedAt State.Health.Status Config.Image
        HostConfig.NetworkMode NetworkSettings.Ports.80/tcp.0.HostIp NetworkSettings.Ports.80/tcp.0.HostPort
        NetworkSettings.Networks.front.IPAddress NetworkSettings.Networks.front.GlobalIPv6Address
        NetworkSettings.Networks.front.NetworkID""",
    int: "RestartCount State.Pid State.ExitCode",
    bool: "State.Running State.Paused State.Restarting State.Dead HostConfig.Privileged",
    dict: "Config.Labels NetworkSettings.Ports",
}

LISTED = {
    str: "Id Names.0 Image ImageID State Status Ports.0.Type NetworkSettings.Networks.front.IPAddress",
    int: "Created Ports.0.PrivatePort Ports.0.PublicPort",
    dict: "Labels",
}


async def test_inspections_and_listings_have_the_same_fields(docker: Docker) -> None:
    await docker.control.network_create("front")
    container = await docker.control.run("it", network="front", ports={"80/tcp": 0}, health="true")
    inspection = await docker.control.inspect(container)
    (listed,) = await docker.control.list()
    for document, fields in ((inspection, INSPECTED), (listed, LISTED)):
        expected = {path: kind for kind, paths in fields.items() for path in paths.split()}
        assert {path: type(_field(document, path)) for path in expected} == expected


async def test_inspections_show_the_state(docker: Docker) -> None:
    for name, change in {"running": None, "paused": docker.control.pause, "exited": docker.control.stop}.items():
        container = await docker.control.run(name)
        if change is not None:
            await change(container)
        state = (await docker.control.inspect(container))["State"]
        assert (state["Status"], state["Paused"]) == (name, name == "paused")
        assert state["Running"] is (state["Pid"] > 0) is (name != "exited")


# -- helpers -----------------------------------------------------------------------------------------------------------


async def _watch(docker: Docker, *scenario: Step) -> list[dict[str, Any]]:
    """Return the events of a scenario and of the clean-up after it, up to those of a container that marks the end."""
    begun = await _marker(docker.control)
    found: list[dict[str, Any]] = []
    # The stream's header comes before its subscription; asking for the past too makes it cover everything.
    async with docker.control.events(since="1") as events, asyncio.timeout(30):
        for step in scenario:
            await step(docker)
        await docker.control.clean()
        ended = await _marker(docker.control)
        collecting = False
        async for event in events:
            identifier, action = event["Actor"]["ID"], event["Action"]
            if identifier == ended:
                break
            if collecting:
                found.append(event)
            elif identifier == begun and action == "destroy":
                collecting = True
    return found


async def _marker(control: DockerControl) -> str:
    """Make the engine say something recognisable."""
    container = await control.create("marker")
    await control.remove(container)
    return container


def _told(event: dict[str, Any]) -> str:
    attributes = event["Actor"]["Attributes"]
    action = str(event["Action"]).partition(":")[0]
    detail = {
        "kill": attributes.get("signal"),
        "die": attributes.get("exitCode"),
        "exec_die": attributes.get("exitCode"),
        "rename": attributes.get("oldName"),
    }.get(action)
    return action if detail is None else f"{action} {detail}"


def _addresses(inspection: dict[str, Any]) -> dict[str, str]:
    networks = inspection["NetworkSettings"]["Networks"]
    return {name: network["IPAddress"] for name, network in networks.items()}


def _field(document: Any, path: str) -> Any:
    for step in path.split("."):
        document = document[int(step)] if isinstance(document, list) else document[step]
    return document


def _traces(engine: Dockerd, pid: int) -> list[str]:
    """Return what is still there of an engine and of a process in one of its containers."""
    root = str(engine.root)
    traces = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if root in line]
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):  # it has just ended
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if root in line:
                    traces.append(f"{folder.name} {line}")
    if alive(pid):
        traces.append(f"process {pid}")
    return traces + ([root] if engine.root.exists() else [])


async def _read(url: str, tls: ssl.SSLContext) -> str:
    async with aiohttp.ClientSession() as session, session.get(url, ssl=tls) as response:
        return await response.text()
