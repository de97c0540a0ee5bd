"""The Docker engines that other tests rely on: real ones do as they are told, and the fake does as they do."""

from __future__ import annotations

import asyncio
import json
import re
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.conftest import Docker
    from tests.support.engines.control import DockerControl

    Step = Callable[[Docker], Awaitable[object]]


# -- what engines show -------------------------------------------------------------------------------------------------


LABELS = {"tier": "front", "env": "test"}

NETWORK = "NetworkSettings.Networks.front"

INSPECTED: dict[str, Any] = {
    **dict.fromkeys(["Id", "Created", "Image", "State.StartedAt", "State.Health.Status"], str),
    **dict.fromkeys([f"{NETWORK}.IPAddress", f"{NETWORK}.NetworkID"], str),
    **dict.fromkeys(["State.Paused", "State.Restarting", "State.Dead", "HostConfig.Privileged"], False),
    **dict.fromkeys(["State.ExitCode", "RestartCount"], 0),
    "Name": "/it",
    "Config.Image": "tiny:latest",
    "Config.Labels": LABELS,
    "HostConfig.NetworkMode": "front",
    "State.Status": "running",
    "State.Running": True,
    "State.Pid": int,
    "State.FinishedAt": "0001-01-01T00:00:00Z",
    "HostConfig.RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3},
    "NetworkSettings.Ports.80/tcp.0": {"HostIp": "0.0.0.0", "HostPort": "18080"},
    "NetworkSettings.Ports.81/udp": None,
    f"{NETWORK}.GlobalIPv6Address": "",
}

LISTED: dict[str, Any] = {
    **dict.fromkeys(["Id", "ImageID", "Status", f"{NETWORK}.IPAddress"], str),
    "Names": ["/it"],
    "Image": "tiny:latest",
    "Labels": LABELS,
    "State": "running",
    "Created": int,
    "HostConfig": {"NetworkMode": "front"},
}


async def test_listing_and_inspection_tell_what_a_container_was_given(docker: Docker) -> None:
    await docker.control.network_create("front")
    given: Any = {"labels": LABELS, "network": "front", "restart": "on-failure:3", "health": "true"}
    container = await docker.control.run("it", ports={"80/tcp": 18080, "81/udp": None}, **given)
    privileged = await docker.control.inspect(await docker.control.create("privileged", privileged=True))
    assert privileged["HostConfig"]["Privileged"] is True
    (listed,) = await docker.control.list()
    inspections = [await docker.control.inspect(name) for name in (container, container[:12], "it")]
    for document, expected in (*((inspection, INSPECTED) for inspection in inspections), (listed, LISTED)):
        for path, value in expected.items():
            found = _field(document, path)
            assert (type(found) if isinstance(value, type) else found) == value, path
        assert document["Id"] == container
    ports = [
        {"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 18080, "Type": "tcp"},
        {"PrivatePort": 81, "Type": "udp"},
    ]
    assert all(port in listed["Ports"] for port in ports)
    await docker.control.network_create("back")
    await docker.control.network_connect("back", container)
    addresses = _addresses(await docker.control.inspect(container))
    assert {name for name, address in addresses.items() if address} == {"front", "back"}
    await docker.control.network_disconnect("front", container)
    assert _addresses(await docker.control.inspect(container)) == {"back": addresses["back"]}


async def test_listings_show_the_state_and_can_be_filtered(docker: Docker) -> None:
    control = docker.control
    await control.create("created")
    running = await control.run("running", labels=LABELS)
    paused = await control.run("paused", labels={"tier": "front"})
    await control.pause(paused)
    await docker.run_and_exit("exited", 4)
    while len(await control.list()) > 2:  # noqa: ASYNC110 - a listing may still show what waiting has seen exit
        await asyncio.sleep(0.01)

    async def names(**filters: Any) -> list[str]:
        listed = await control._json("GET", "/containers/json", params={"filters": json.dumps(filters)})
        return sorted(item["Names"][0] for item in listed)

    shown = {}
    for listed in await control.list(all=True):
        state = (await control.inspect(listed["Id"]))["State"]
        told = (state["Running"], state["Paused"], state["Pid"] > 0, state["ExitCode"])
        status = re.sub(r"\d+ seconds?", "Less than a second", listed["Status"])
        assert listed["Names"] == [f"/{listed['State']}"] == [f"/{state['Status']}"]
        shown[listed["State"]] = (status, *told)
    assert shown == {
        "created": ("Created", False, False, False, 0),
        "running": ("Up Less than a second", True, False, True, 0),
        "paused": ("Up Less than a second (Paused)", True, True, True, 0),
        "exited": ("Exited (4) Less than a second ago", False, False, False, 4),
    }
    assert (await control.truth()).keys() == {running, paused}
    assert await names() == ["/paused", "/running"]
    assert await names(status={"exited": True}) == ["/exited"]
    assert await names(status=["exited", "paused"]) == ["/exited", "/paused"]
    assert await names(label=["tier=front", "env"]) == await names(id=[running[:12]]) == ["/running"]
    assert await names(name=["u"]) == ["/paused", "/running"]
    assert await names(name=["^/paused$"]) == ["/paused"]


COMMAND = {"Image": "tiny", "Cmd": ["/bin/true"]}
BAD_FILTERS = [{"bogus": ["x"]}, {"status": ["x"]}, ["x"], "x"]

REFUSALS: list[tuple[int, str, str, Any]] = [
    (400, "too new", "GET /v1.99/info", None),
    (400, "too old", "GET /v1.11/info", None),
    (404, "page not found", "GET /nonsense", None),
    (404, "No such container: nobody", "GET /containers/nobody/json", None),
    (500, "invalid syntax", "GET /events?since=abc", None),
    (400, "until", "GET /events?since=5&until=4", None),
    *((400, "nvalid filter", f"GET /containers/json?filters={json.dumps(bad)}", None) for bad in BAD_FILTERS),
    (400, "nvalid filter", "GET /events?filters=bad", None),
    (409, "is already in use", "POST /containers/create?name=created", COMMAND),
    (409, "is not running", "POST /containers/created/pause", None),
    (409, "annot kill container", "POST /containers/created/kill", None),
    (304, "", "POST /containers/created/stop", None),
    (304, "", "POST /containers/running/start", None),
    (409, "try unpause instead", "POST /containers/paused/start", None),
    (409, "is already paused", "POST /containers/paused/pause", None),
    (500, "is not paused", "POST /containers/running/unpause", None),
    (409, "unpause the container before exec", "POST /containers/paused/exec", COMMAND),
    (409, "is not running", "POST /containers/created/exec", COMMAND),
    (400, "the same name", "POST /containers/running/rename?name=running", None),
    (409, "is already in use", "POST /containers/running/rename?name=created", None),
    (400, "nvalid signal", "POST /containers/running/kill?signal=FOO", None),
    (409, "remove", "DELETE /containers/running", None),
    (404, "No such container", "DELETE /containers/nobody", None),
    (409, "already exists", "POST /networks/create", {"Name": "net", "CheckDuplicate": True}),
    (403, "already exists", "POST /networks/net/connect", {"Container": "running"}),
    (403, "active endpoints", "DELETE /networks/net", None),
    (500, "is not connected", "POST /networks/net/disconnect", {"Container": "paused"}),
    (404, "No such image: nope", "POST /images/nope/tag?repo=other", None),
    (404, "no such volume", "DELETE /volumes/nope", None),
]


async def test_what_makes_no_sense_is_refused(docker: Docker) -> None:
    await docker.control.network_create("net")
    await docker.control.create("created")
    await docker.control.run("running", network="net")
    await docker.control.pause(await docker.control.run("paused"))
    for status, says, call, body in REFUSALS:
        method, _, path = call.partition(" ")
        async with docker.control._opened().request(method, f"http://docker{path}", json=body) as refused:
            answer = (refused.status, await refused.text())
        if docker.kind == "20.10" and path.endswith(("filters=bad", '["x"]', '"x"')):
            assert answer[0] == 500, call  # what is no JSON, or of another type
        else:
            assert (answer[0], says in answer[1]) == (status, True), (call, answer)


# -- the fake does as the real ones do ---------------------------------------------------------------------------------


def do(name: str, *args: Any, **options: Any) -> Step:
    """Do something to the container named "it"."""
    return lambda docker: getattr(docker if hasattr(docker, name) else docker.control, name)("it", *args, **options)


NETWORKS: list[Step] = [
    lambda docker: docker.control.network_create("front"),
    lambda docker: docker.control.network_create("back"),
    do("run", network="front"),
    lambda docker: docker.control.network_connect("back", "it"),
    lambda docker: docker.control.network_disconnect("front", "it"),
]

# What each scenario, and the forced removal at its end, says on the event stream between "create" and "destroy": all
# that real engines were seen to say, as regular expressions. Docker 23 and later tell "stop" before "die" as a rule;
# both orders are taken for one. An engine that ends a paused container thaws it too. What containerd says of a pause
# reaches the engine once more: if the container was thawed meanwhile, a second pair is told, each half of it before or
# after the signal that comes next. Of these races all outcomes are listed, the rarest though they were not seen.
_KILLED = "kill 9, die 137"
_STOPPED = "kill 15, kill 9, die 137, stop"
_PAUSED_TWICE = "pause, unpause, kill 9|pause, kill 9|pause, kill 9, unpause|kill 9, pause|kill 9, pause, unpause"

SCENARIOS: dict[str, tuple[list[Step], str]] = {
    "stop": ([do("run_command"), do("stop")], f"start, {_STOPPED}"),
    "kill": ([do("run"), do("kill"), do("wait")], f"start, {_KILLED}"),
    "harmless-signal": ([do("run_command"), do("kill", "SIGUSR1")], f"start, kill 10, {_KILLED}"),
    "restart": ([do("run_command"), do("restart")], f"start, {_STOPPED}, start, restart, {_KILLED}"),
    "start-again": ([do("run_command"), do("stop"), do("start")], f"start, {_STOPPED}, start, {_KILLED}"),
    "start-twice": ([do("run"), do("start")], f"start, {_KILLED}"),
    "pause": ([do("run"), do("pause"), do("unpause")], f"start, pause, unpause, (kill 9|{_PAUSED_TWICE}), die 137"),
    "kill-paused": (
        [do("run"), do("pause"), do("kill"), do("wait")],
        "start, pause, (kill 9|kill 9, unpause|unpause, kill 9), die 137",
    ),
    "stop-paused": (
        [do("run_command"), do("pause"), do("stop")],
        "start, pause, kill 15, (unpause, kill 9|kill 9, unpause), die 137, stop",
    ),
    "rename": ([do("run"), do("rename", "other")], f"start, rename /it, {_KILLED}"),
    "exit": ([do("run_and_exit", 3)], "start, die 3"),
    "exec": (
        [do("run"), do("exec", ["/bin/echo", "a", "b"])],
        f"start, exec_create: /bin/echo a b, exec_start: /bin/echo a b, exec_die 0, {_KILLED}",
    ),
    "never-started": ([do("create")], ""),
    "networks": (NETWORKS, f"start, {_KILLED}"),
}


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_engine_tells_what_happens_to_a_container(docker: Docker, scenario: str) -> None:
    steps, expected = SCENARIOS[scenario]
    events = await _watch(docker, *steps)
    created, *between, destroyed = [_told(event) for event in events if event["Type"] == "container"]
    assert (created, destroyed) == ("create", "destroy")
    assert re.fullmatch(expected, ", ".join(between).replace("stop, die 137", "die 137, stop"))


async def test_engine_tells_what_happens_to_networks_images_and_volumes(docker: Docker) -> None:
    others: list[Step] = [
        lambda docker: docker.control.tag("tiny", "other"),
        lambda docker: docker.control._call("POST", "/volumes/create", body={"Name": "vol"}),
        lambda docker: docker.control._call("DELETE", "/volumes/vol"),
    ]
    events = await _watch(docker, *NETWORKS, *others)
    (container,) = {event["Actor"]["ID"] for event in events if event["Type"] == "container"}
    actors = [(event, event["Actor"]["Attributes"]) for event in events if event["Type"] != "container"]
    told = [(event["Action"], of["name"]) for event, of in actors if of.get("container") == container]
    # Real engines tell twice that a running container was disconnected.
    assert [told[0], *(this for last, this in pairwise(told) if this != last)] == [
        (action, network) for action in ("connect", "disconnect") for network in ("front", "back")
    ]
    assert {of["type"] for _, of in actors if "container" in of} == {"bridge"}
    told_of_others = ", ".join(f"{event['Type']} {event['Action']}" for event, of in actors if "container" not in of)
    assert told_of_others == (
        "network create, network create, image tag, volume create, volume destroy, network destroy, network destroy"
    )
    assert {event["Type"] for event in events if "status" in event} == {"container", "image"}


async def test_events_carry_what_tells_a_container(docker: Docker) -> None:
    labels = {"some": "label", "exitCode": "x", "oldName": "y", "name": "n", "image": "i", "signal": "s"}
    events = await _watch(docker, do("run", labels=labels), do("rename", "other"))
    events = [event for event in events if event["Type"] == "container"]
    for event in events:
        identifier, attributes = event["Actor"]["ID"], event["Actor"]["Attributes"]
        name = "it" if event["Action"] in {"create", "start"} else "other"
        attributes.pop("execDuration", None)
        assert attributes == labels | {"name": name, "image": "tiny:latest"}, "labels hide what else is told"
        assert (event["status"], event["id"], event["from"]) == (event["Action"], identifier, "tiny:latest")
        assert (event["scope"], event["time"]) == ("local", event["timeNano"] // 1_000_000_000)
    assert [event["Action"] for event in events] == ["create", "start", "rename", "kill", "die", "destroy"]
    assert len({event["Actor"]["ID"] for event in events}) == 1
    assert [event["timeNano"] for event in events] == sorted(event["timeNano"] for event in events)


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
        while not found or found[-1]["Actor"]["ID"] != ended:
            found.append(await anext(events))
    begins = max(number for number, event in enumerate(found) if event["Actor"]["ID"] == begun)
    return found[begins + 1 : -1]


async def _marker(control: DockerControl) -> str:
    """Make the engine say something recognisable."""
    container = await control.create("marker")
    await control.remove(container)
    return container


DETAILS = {"kill": "signal", "die": "exitCode", "exec_die": "exitCode", "rename": "oldName"}


def _told(event: dict[str, Any]) -> str:
    action = str(event["Action"])
    return f"{action} {event['Actor']['Attributes'][DETAILS[action]]}" if action in DETAILS else action


def _addresses(inspection: dict[str, Any]) -> dict[str, str]:
    networks = inspection["NetworkSettings"]["Networks"]
    return {name: network["IPAddress"] for name, network in networks.items()}


def _field(document: Any, path: str) -> Any:
    for step in path.split("."):
        document = document[int(step)] if isinstance(document, list) else document[step]
    return document
