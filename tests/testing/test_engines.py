"""The engines that the other tests rely on: the real ones do as they are told, and the fake does as they do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.support.engines.control import ControlError, DockerControl
from tests.support.engines.dockerd import Dockerd
from tests.support.engines.process import EngineFailedError, alive

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.conftest import Docker

    Scenario = Callable[[Docker], Awaitable[None]]
    MakeDockerd = Callable[..., Dockerd]

live = pytest.mark.live
each_version = pytest.mark.parametrize("version", ["20.10", "26.1"])


# -- real engines do as they are told ----------------------------------------------------------------------------------


async def test_container_runs_until_it_is_removed(docker: Docker) -> None:
    container = await docker.control.run("web", labels={"a": "b"})
    truth = await docker.control.truth()
    assert list(truth) == [container]
    assert truth[container]["Name"] == "/web"
    assert truth[container]["Config"]["Labels"] == {"a": "b"}
    await docker.control.remove(container)
    assert await docker.control.truth() == {}


async def test_created_and_exited_containers_are_not_alive(docker: Docker) -> None:
    await docker.control.create("created")
    exited = await docker.run_and_exit("exited", 3)
    assert (await docker.control.inspect(exited))["State"]["ExitCode"] == 3
    assert await docker.control.truth() == {}
    assert {listed["Names"][0] for listed in await docker.control.list(all=True)} == {"/created", "/exited"}


async def test_unknown_container_is_refused_with_404(docker: Docker) -> None:
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


@live
@each_version
async def test_frozen_engine_accepts_connections_and_answers_only_when_thawed(
    make_dockerd: MakeDockerd, version: str
) -> None:
    engine = await asyncio.to_thread(make_dockerd, version)
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(engine.socket))) as session:
        engine.freeze()
        with pytest.raises(asyncio.TimeoutError):
            await session.get("http://docker/_ping", timeout=aiohttp.ClientTimeout(total=0.3))
        assert engine.running
        engine.thaw()
        async with session.get("http://docker/_ping") as response:
            assert await response.text() == "OK"


@live
@each_version
async def test_containers_outlive_a_killed_engine_with_live_restore(make_dockerd: MakeDockerd, version: str) -> None:
    engine = await asyncio.to_thread(make_dockerd, version, live_restore=True)
    async with DockerControl(engine.socket) as control:
        container = await control.run("survivor")
        pid = (await control.inspect(container))["State"]["Pid"]
        async with control.events() as events:
            await asyncio.to_thread(engine.kill)
            assert [event async for event in events] == []
        assert not engine.running
        with pytest.raises(aiohttp.ClientError):
            await control.info()
        await asyncio.to_thread(engine.start)
        assert {key: alive["State"]["Pid"] for key, alive in (await control.truth()).items()} == {container: pid}


@live
@each_version
async def test_containers_die_with_a_restarted_engine_without_live_restore(
    make_dockerd: MakeDockerd, version: str
) -> None:
    engine = await asyncio.to_thread(make_dockerd, version)
    async with DockerControl(engine.socket) as control:
        container = await control.run("victim", stop_signal="SIGKILL")
        await asyncio.to_thread(engine.restart)
        assert await control.truth() == {}
        assert [listed["Id"] for listed in await control.list(all=True)] == [container]


@live
@each_version
async def test_closing_leaves_nothing_behind_even_of_a_killed_engine(make_dockerd: MakeDockerd, version: str) -> None:
    engine = await asyncio.to_thread(make_dockerd, version)
    async with DockerControl(engine.socket) as control:
        container = await control.run("orphan")
        pid = (await control.inspect(container))["State"]["Pid"]
    await asyncio.to_thread(engine.kill)
    await asyncio.to_thread(engine.close)
    assert _traces(engine, pid) == []


@live
@each_version
async def test_engine_with_tls_talks_to_those_with_its_certificate(make_dockerd: MakeDockerd, version: str) -> None:
    engine = await asyncio.to_thread(make_dockerd, version, tls=True)
    assert engine.certificates is not None
    url = engine.tcp_address.replace("tcp://", "https://") + "/_ping"
    command = ["curl", "--silent", "--show-error", "--cacert", f"{engine.certificates}/ca.pem", url]
    assert await _exit_code(*command) != 0
    client = ["--cert", f"{engine.certificates}/cert.pem", "--key", f"{engine.certificates}/key.pem"]
    assert await _exit_code(*command, *client) == 0


@live
def test_engine_that_cannot_start_tells_why(make_dockerd: MakeDockerd) -> None:
    root = Path(tempfile.mkdtemp(prefix="ww-"))  # pytest's own folders are too deep for sockets
    (root / "data").write_text("not a folder")
    with pytest.raises(EngineFailedError, match="points to a file"):
        make_dockerd("20.10", root=root)
    assert not root.exists()


def test_folder_too_deep_for_a_socket_is_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        Dockerd("20.10", Path("/tmp") / ("x" * 80))  # noqa: S108 - nothing is written there


# -- the fake does as the real ones do ---------------------------------------------------------------------------------


async def _stop(docker: Docker) -> None:
    await docker.control.stop(await docker.run_command("it"))


async def _kill(docker: Docker) -> None:
    container = await docker.control.run("it")
    await docker.control.kill(container)
    await docker.control.wait(container)


async def _harmless_signal(docker: Docker) -> None:
    await docker.control.kill(await docker.run_command("it"), "SIGUSR1")


async def _restart(docker: Docker) -> None:
    await docker.control.restart(await docker.run_command("it"))


async def _start_again(docker: Docker) -> None:
    container = await docker.run_command("it")
    await docker.control.stop(container)
    await docker.control.start(container)


async def _start_twice(docker: Docker) -> None:
    await docker.control.start(await docker.control.run("it"))


async def _pause(docker: Docker) -> None:
    container = await docker.control.run("it")
    await docker.control.pause(container)
    await docker.control.unpause(container)


async def _kill_paused(docker: Docker) -> None:
    container = await docker.control.run("it")
    await docker.control.pause(container)
    await docker.control.kill(container)
    await docker.control.wait(container)


async def _stop_paused(docker: Docker) -> None:
    container = await docker.run_command("it")
    await docker.control.pause(container)
    await docker.control.stop(container)


async def _rename(docker: Docker) -> None:
    await docker.control.rename(await docker.control.run("it"), "other")


async def _exit(docker: Docker) -> None:
    await docker.run_and_exit("it", 3)


async def _exec(docker: Docker) -> None:
    await docker.control.exec(await docker.control.run("it"), ["/bin/true"])


async def _never_started(docker: Docker) -> None:
    await docker.control.create("it")


async def _networks(docker: Docker) -> None:
    await docker.control.network_create("front")
    await docker.control.network_create("back")
    container = await docker.control.run("it", network="front")
    await docker.control.network_connect("back", container)
    await docker.control.network_disconnect("front", container)


# What each scenario, and the forced removal at its end, says on the event stream: all that real engines were seen to
# say, as regular expressions. Docker 23 and later tell "stop" before "die" as a rule; both orders are taken for one.
# An engine that ends a paused container thaws it too. What containerd says of a pause reaches the engine once more: if
# the container was thawed meanwhile, a second pair is told, each half of it before or after the signal that comes next.
# Of these races all outcomes are listed, the rarest though they were not seen.
_KILLED = "kill 9, die 137"
_STOPPED = "kill 15, kill 9, die 137, stop"

SCENARIOS: dict[Scenario, str] = {
    _stop: f"create, start, {_STOPPED}, destroy",
    _kill: f"create, start, {_KILLED}, destroy",
    _harmless_signal: f"create, start, kill 10, {_KILLED}, destroy",
    _restart: f"create, start, {_STOPPED}, start, restart, {_KILLED}, destroy",
    _start_again: f"create, start, {_STOPPED}, start, {_KILLED}, destroy",
    _start_twice: f"create, start, {_KILLED}, destroy",
    _pause: (
        "create, start, pause, unpause, "
        "(kill 9|pause, unpause, kill 9|pause, kill 9|pause, kill 9, unpause|kill 9, pause|kill 9, pause, unpause), "
        "die 137, destroy"
    ),
    _kill_paused: "create, start, pause, (kill 9|kill 9, unpause|unpause, kill 9), die 137, destroy",
    _stop_paused: "create, start, pause, kill 15, (unpause, kill 9|kill 9, unpause), die 137, stop, destroy",
    _rename: f"create, start, rename /it, {_KILLED}, destroy",
    _exit: "create, start, die 3, destroy",
    _exec: f"create, start, exec_create, exec_start, exec_die 0, {_KILLED}, destroy",
    _never_started: "create, destroy",
    _networks: f"create, start, {_KILLED}, destroy",
}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__.strip("_"))
async def test_engine_tells_what_happens_to_a_container(docker: Docker, scenario: Scenario) -> None:
    events = await _watch(docker, scenario)
    told = ", ".join(_told(event) for event in events if event["Type"] == "container")
    told = told.replace("stop, die 137", "die 137, stop")
    assert re.fullmatch(SCENARIOS[scenario], told)


async def test_engine_tells_what_happens_to_a_containers_networks(docker: Docker) -> None:
    events = await _watch(docker, _networks)
    (container,) = {event["Actor"]["ID"] for event in events if event["Type"] == "container"}
    told = [
        (event["Action"], event["Actor"]["Attributes"]["name"], event["Actor"]["Attributes"]["container"])
        for event in events
        if event["Type"] == "network" and "container" in event["Actor"]["Attributes"]
    ]
    # Real engines tell twice that a running container was disconnected.
    assert [told[0], *(this for last, this in pairwise(told) if this != last)] == [
        ("connect", "front", container),
        ("connect", "back", container),
        ("disconnect", "front", container),
        ("disconnect", "back", container),
    ]


async def test_events_carry_what_tells_a_container(docker: Docker) -> None:
    async def labelled(docker: Docker) -> None:
        await docker.control.run("it", labels={"some": "label"})

    events = [event for event in await _watch(docker, labelled) if event["Type"] == "container"]
    for event in events:
        assert event["Actor"]["Attributes"].items() >= {"name": "it", "image": "tiny:latest", "some": "label"}.items()
        assert event["time"] == event["timeNano"] // 1_000_000_000
        assert event["scope"] == "local"
    assert len({event["Actor"]["ID"] for event in events}) == 1
    assert [event["timeNano"] for event in events] == sorted(event["timeNano"] for event in events)


INSPECTED = [
    ("Id", str),
    ("Created", str),
    ("Name", str),
    ("Image", str),
    ("RestartCount", int),
    ("State.Status", str),
    ("State.Running", bool),
    ("State.Paused", bool),
    ("State.Restarting", bool),
    ("State.Dead", bool),
    ("State.Pid", int),
    ("State.ExitCode", int),
    ("State.StartedAt", str),
    ("State.FinishedAt", str),
    ("State.Health.Status", str),
    ("Config.Image", str),
    ("Config.Labels", dict),
    ("HostConfig.Privileged", bool),
    ("HostConfig.NetworkMode", str),
    ("NetworkSettings.Ports", dict),
    ("NetworkSettings.Ports.80/tcp.0.HostIp", str),
    ("NetworkSettings.Ports.80/tcp.0.HostPort", str),
    ("NetworkSettings.Networks.front.IPAddress", str),
    ("NetworkSettings.Networks.front.GlobalIPv6Address", str),
    ("NetworkSettings.Networks.front.NetworkID", str),
]

LISTED = [
    ("Id", str),
    ("Names.0", str),
    ("Image", str),
    ("ImageID", str),
    ("Created", int),
    ("Labels", dict),
    ("State", str),
    ("Status", str),
    ("Ports.0.PrivatePort", int),
    ("Ports.0.PublicPort", int),
    ("Ports.0.Type", str),
    ("NetworkSettings.Networks.front.IPAddress", str),
]


async def test_inspections_and_listings_have_the_same_fields(docker: Docker) -> None:
    await docker.control.network_create("front")
    container = await docker.control.run("it", network="front", ports={"80/tcp": 0}, health="true")
    inspection = await docker.control.inspect(container)
    (listed,) = await docker.control.list()
    for document, fields in ((inspection, INSPECTED), (listed, LISTED)):
        assert [(path, type(_field(document, path))) for path, _ in fields] == fields


@pytest.mark.parametrize(("signal_or_pause", "status"), [("pause", "paused"), ("stop", "exited"), ("none", "running")])
async def test_inspections_show_the_state(docker: Docker, signal_or_pause: str, status: str) -> None:
    container = await docker.control.run("it")
    if signal_or_pause == "pause":
        await docker.control.pause(container)
    elif signal_or_pause == "stop":
        await docker.control.stop(container)
    state = (await docker.control.inspect(container))["State"]
    assert state["Status"] == status
    assert state["Paused"] is (status == "paused")
    assert state["Running"] is (status != "exited")
    assert (state["Pid"] > 0) is (status != "exited")


# -- helpers -----------------------------------------------------------------------------------------------------------


async def _watch(docker: Docker, scenario: Scenario) -> list[dict[str, Any]]:
    """Return the events of a scenario and of the clean-up after it, up to those of a container that marks the end."""
    begun = await _marker(docker.control)
    found: list[dict[str, Any]] = []
    # The stream's header comes before its subscription; asking for the past too makes it cover everything.
    async with docker.control.events(since="1") as events, asyncio.timeout(30):
        await scenario(docker)
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


async def _exit_code(*command: str) -> int:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    return await process.wait()
