"""What once broke something: a recording, and the mutations of its answers. `python -m tests.fuzz` prints new ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.fuzz.answers import Mutation

MILLION = 1_000_000
LISTED, INSPECTED = "/containers/json", "/containers/ID/json"
CONTAINERS, SANDBOXES = "RuntimeService/ListContainers", "RuntimeService/ListPodSandbox"
DNS = ("body", 0, "NetworkSettings", "Ports", "53/udp", 0, "HostPort")  # of the container "web"
TASK, FOUND = ("body", 0, 1, 0, 2, 0), ("body", 0, 1, 0, 1, 0)  # ids of containerd's first task and container


def _listed_as(id: str) -> tuple[str, list[Mutation]]:
    return "docker-26.1", [(LISTED, "set", ("body", 0, 0, "Id"), id), (INSPECTED, "set", ("body", 0, "Id"), id)]


def _inspected(path: tuple[str | int, ...], value: str, version: str = "26.1") -> tuple[str, list[Mutation]]:
    return f"docker-{version}", [(INSPECTED, "set", ("body", 0, *path), value)]


def _many(recording: str, kind: str, path: tuple[str | int, ...], item: str) -> tuple[str, list[Mutation]]:
    return recording, [(kind, "set", path, item), (kind, "repeat", path, MILLION)]


def _task_as(id: str) -> tuple[str, list[Mutation]]:
    return "containerd-1.7", [("Tasks/List", "set", TASK, id), ("Containers/ListStream", "set", FOUND, id)]


SEEDS: Mapping[str, tuple[str, Sequence[Mutation]]] = {
    "an inspect has an id that forges a line of the log": _inspected(("Id",), "forged"),
    "a listed id forges a line of the log": _listed_as("forged"),
    "a listed id is two dots": _listed_as("dots"),
    "a listed id is empty": _listed_as("empty text"),
    "an event has an id of two dots": ("docker-26.1", [("/events", "set", ("body", 1, "Actor", "ID"), "dots")]),
    "a listed container is a number": ("docker-26.1", [(LISTED, "set", ("body", 0, 0), "zero")]),
    "an event has a number as actor": ("docker-26.1", [("/events", "set", ("body", 1, "Actor"), "zero")]),
    "an inspect has null as state": _inspected(("State",), "null"),
    "a call of containerd is answered without a message": (
        "containerd-1.7",
        [("Introspection/Server", "drop", ("body", 0), "")],
    ),
    "a PID has 4200 digits": _inspected(("State", "Pid"), "4200 digits"),
    "a PID is too large": _inspected(("State", "Pid"), "2**31"),
    "a PID is true": _inspected(("State", "Pid"), "true"),
    "a host port is too large": _inspected(DNS[2:], "text 99999"),
    "a host port is negative": _inspected(DNS[2:], "text -1"),
    "a host port has 5000 digits": _inspected(DNS[2:], "5000 digits"),
    "a scope id of an address has escapes": _inspected(("NetworkSettings", "Networks", "net", "IPAddress"), "scope"),
    "a start is in the year 9999": _inspected(("State", "StartedAt"), "year 9999", "20.10"),
    "a million newlines among the events": ("docker-26.1", [("/events", "put", (300,), "newlines")]),
    "a million newlines, compressed": (
        "docker-26.1",
        [("/events", "insert", ("head", 1), "Content-Encoding: gzip"), ("/events", "insert", ("body", 0), "newlines")],
    ),
    "a million objects without newlines": _many("docker-26.1", "/events", ("body", 0), "objects without newlines"),
    "a million empty containers of Docker": _many("docker-26.1", LISTED, ("body", 0, 0), "object"),
    "a million empty containers of the CRI": _many("cri-poll-1.6", CONTAINERS, ("body", 0, 1, 0), "empty text"),
    "a million empty sandboxes": _many("cri-poll-1.6", SANDBOXES, ("body", 0, 1, 0), "empty text"),
    "a million empty tasks": _many("containerd-1.7", "Tasks/List", ("body", 0, 1, 0), "empty text"),
    "a million empty namespaces": _many("containerd-1.7", "Namespaces/List", ("body", 0, 1, 0), "empty text"),
    "a namespace forges a line": ("containerd-1.7", [("Namespaces/List", "set", ("body", 0, 1, 0, 1), "forged")]),
    "a namespace has a character that no id has": ("containerd-1.6", [("Namespaces/List", "flip", (4,), 2)]),
    "an id of the CRI has a control character": ("cri-native-1.7", [(CONTAINERS, "set", FOUND, "nul")]),
    "an id of the CRI has a million letters": ("cri-native-1.6", [(CONTAINERS, "set", FOUND, "a million letters")]),
    "an inspect has an id that is half a character": _inspected(("Id",), "lone surrogate"),
    "a namespace has 5000 digits": (
        "containerd-1.7",
        [("Namespaces/List", "set", ("body", 0, 1, 1, 1, 0), "5000 digits")],
    ),
    "a namespace has a million newlines": ("containerd-1.7", [("Namespaces/List", "set", FOUND, "newlines")]),
    "an event has a namespace with a quote": (
        "containerd-1.7",
        [("Events/Subscribe", "set", ("body", 2, 2, 0), "lone surrogate")],
    ),
    "an answer of containerd is about a million newlines": (
        "containerd-1.7",
        [("Containers/Get", "set", ("body", 0, 1, 0, 1), "newlines")],
    ),
    "an id of containerd forges a line of the log": _task_as("forged"),
    "an id of containerd is two dots": _task_as("dots"),
}
