"""The answers of the fake CRI to single calls."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from attrs import frozen

from whalewatch.testing.cri.messages import (
    container_info,
    container_status,
    listed_container,
    listed_pod,
    pod_info,
    pod_status,
)
from whalewatch.testing.cri.state import CONTAINER_STATES, FakeCRIError, FakePod, FakePodContainer
from whalewatch.testing.shared.protobuf import (
    Fields,
    dictionary,
    integer,
    mapping,
    message,
    raw,
    repeated,
    submessage,
    text,
    texts,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from whalewatch.testing.cri.engine import CRIState
    from whalewatch.testing.shared.protobuf import Text

_SERVICE = "/runtime.v1.RuntimeService/"

KINDS = {
    f"{_SERVICE}ContainerStatus": "container_status",
    f"{_SERVICE}CreateContainer": "container_create",
    f"{_SERVICE}GetContainerEvents": "events",
    f"{_SERVICE}ListContainers": "container_list",
    f"{_SERVICE}ListPodSandbox": "pod_list",
    f"{_SERVICE}PodSandboxStatus": "pod_status",
    f"{_SERVICE}RemoveContainer": "container_remove",
    f"{_SERVICE}RemovePodSandbox": "pod_remove",
    f"{_SERVICE}RunPodSandbox": "pod_run",
    f"{_SERVICE}StartContainer": "container_start",
    f"{_SERVICE}Status": "status",
    f"{_SERVICE}StopContainer": "container_stop",
    f"{_SERVICE}StopPodSandbox": "pod_stop",
    f"{_SERVICE}Version": "version",
}
"""All calls by path, each with its kind in ``FakeCRI.requests``."""

_LISTINGS = frozenset({"container_list", "pod_list"})
_ABOUT_ONE = frozenset(
    kind for kind in KINDS.values() if kind not in {*_LISTINGS, "events", "pod_run", "status", "version"}
)
_STATE = 2  # the number of the filters' field
_CONTAINERD = "containerd"
_T = TypeVar("_T", FakePod, FakePodContainer)


@frozen
class Runtime:
    """The identity that the engine reports.

    Attributes:
        name: Its name, such as "cri-o".
        version: Its version, such as "1.33.0".
    """

    name: str
    version: str

    @property
    def ignores_missing(self) -> bool:
        """Whether a call to stop a container or pod that does not exist succeeds."""
        return not (self.name == _CONTAINERD and self.version.startswith("1.6."))


def about(kind: str, request: Fields) -> str:
    """Return the id that a call is about; "" if it is about all or none."""
    if kind in _LISTINGS:
        return text(submessage(request, 1), 1)
    return text(request, 1) if kind in _ABOUT_ONE else ""


class Answers:
    """Executes the calls."""

    def __init__(self, state: CRIState, runtime: Runtime) -> None:
        """Answer from this state."""
        self._state = state
        self._runtime = runtime
        self._routes: dict[str, Callable[[Fields], bytes]] = {
            "container_create": self._create,
            "container_list": self._container_list,
            "container_remove": self._container_remove,
            "container_start": self._start,
            "container_status": self._container_status,
            "container_stop": self._container_stop,
            "pod_list": self._pod_list,
            "pod_remove": self._pod_remove,
            "pod_run": self._run_pod,
            "pod_status": self._pod_status,
            "pod_stop": self._pod_stop,
            "status": lambda _: message((1, repeated(1, [message((1, "RuntimeReady"), (2, 1))]))),
            "version": lambda _: message((1, "0.1.0"), (2, runtime.name), (3, runtime.version), (4, "v1")),
        }

    def answer(self, kind: str, request: Fields) -> bytes:
        """Execute a call.

        Raises:
            FakeCRIError: It is refused.
        """
        return self._routes[kind](request)

    # ---- reading

    def _container_list(self, request: Fields) -> bytes:
        wanted = submessage(request, 1)
        pod = text(wanted, 3)
        found = [
            listed_container(container, self._state.reported_state(container))
            for container in self._chosen(text(wanted, 1), self._state.containers, self._state.container)
            if _in_state(wanted, CONTAINER_STATES.index(self._state.reported_state(container)))
            and (not pod or container.pod.startswith(pod))
            and _selected(container.labels, dictionary(wanted, 4))
        ]
        return repeated(1, found)

    def _pod_list(self, request: Fields) -> bytes:
        wanted = submessage(request, 1)
        found = [
            listed_pod(pod)
            for pod in self._chosen(text(wanted, 1), self._state.pods, self._state.pod)
            if _in_state(wanted, int(not pod.ready)) and _selected(pod.labels, dictionary(wanted, 3))
        ]
        return repeated(1, found)

    def _chosen(self, id: str, known: dict[str, _T], one: Callable[[str], _T]) -> Iterator[_T]:
        """Find the items that a filter for an id selects; an empty filter selects all."""
        if not id:
            yield from known.values()
            return
        try:
            found = one(id)
        except FakeCRIError:
            return
        yield found

    def _container_status(self, request: Fields) -> bytes:
        container = self._state.container(text(request, 1))
        status = container_status(container, self._state.reported_state(container))
        return message((1, status)) + self._info(request, container.id, container_info(container))

    def _pod_status(self, request: Fields) -> bytes:
        pod = self._state.pod(text(request, 1))
        return message((1, pod_status(pod))) + self._info(request, pod.id, pod_info(pod))

    def _info(self, request: Fields, id: str, true_info: str) -> bytes:
        if not integer(request, 2):
            return b""
        info: Text | None = true_info
        for target, false_info in self._state.infos:
            if target in {"", id}:
                info = false_info
        return b"" if info is None else mapping(2, {"info": info})

    # ---- changing

    @contextmanager
    def _ignore_missing(self, *, refused: bool = False) -> Iterator[None]:
        """Do nothing if the object does not exist; if ``refused``, raise the error."""
        try:
            yield
        except FakeCRIError as error:
            if refused or error.code != "NOT_FOUND":
                raise

    def _run_pod(self, request: Fields) -> bytes:
        config = submessage(request, 1)
        metadata = submessage(config, 1)
        if not metadata:
            raise FakeCRIError("UNKNOWN", "sandbox config must include metadata")
        pod = self._state.run_pod(
            text(metadata, 1),
            text(metadata, 3),
            uid=text(metadata, 2),
            attempt=integer(metadata, 4),
            labels=dictionary(config, 6),
            annotations=dictionary(config, 7),
            infra=True,
        )
        return message((1, pod.id))

    def _pod_stop(self, request: Fields) -> bytes:
        with self._ignore_missing(refused=not self._runtime.ignores_missing):
            self._state.stop_pod(self._state.pod(text(request, 1)))
        return b""

    def _pod_remove(self, request: Fields) -> bytes:
        with self._ignore_missing():
            self._state.remove_pod(self._state.pod(text(request, 1)))
        return b""

    def _create(self, request: Fields) -> bytes:
        config = submessage(request, 2)
        metadata = submessage(config, 1)
        container = self._state.create(
            self._state.pod(text(request, 1)),
            text(metadata, 1),
            attempt=integer(metadata, 2),
            labels=dictionary(config, 9),
            annotations=dictionary(config, 10),
            image=text(submessage(config, 2), 1),
            command=texts(config, 3),
        )
        return message((1, container.id))

    def _start(self, request: Fields) -> bytes:
        self._state.start(self._state.container(text(request, 1)))
        return b""

    def _container_stop(self, request: Fields) -> bytes:
        with self._ignore_missing(refused=not self._runtime.ignores_missing):
            self._state.stop(self._state.container(text(request, 1)))
        return b""

    def _container_remove(self, request: Fields) -> bytes:
        with self._ignore_missing():
            self._state.remove(self._state.container(text(request, 1)))
        return b""


def _in_state(wanted: Fields, state: int) -> bool:
    """Return whether a state matches a filter: one without the field matches all; an empty field means state 0."""
    return _STATE not in wanted or integer(submessage(wanted, _STATE), 1) == state


def _selected(labels: Mapping[Text, Text], wanted: Mapping[Text, Text]) -> bool:
    """Return whether labels contain all wanted ones."""
    actual = {raw(key): raw(value) for key, value in labels.items()}
    return all(actual.get(raw(key)) == raw(value) for key, value in wanted.items())
