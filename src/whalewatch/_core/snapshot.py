"""The immutable picture of all containers at one moment, with its indexes."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, ClassVar, Self, TypeVar

import attrs

from whalewatch._core.document import ReadableDocument, plain, read
from whalewatch._core.model import (
    ID_DIGITS,
    LEAST_DIGITS,
    POD_UID,
    Container,
    Pod,
    Project,
    by_name,
    earliest,
    is_called,
)

__all__ = ["Snapshot"]


T = TypeVar("T")

NO_PROJECT = Project("")


@attrs.frozen(eq=False, kw_only=True)
class Snapshot(ReadableDocument):
    """An immutable picture of the containers that are alive; it may be kept and passed to any thread.

    ``len``, iteration and ``in`` (a `Container`, an id or a name) work on its containers, in the order in which they
    were first seen.

    Example::

        snapshot = watcher.portfolio.snapshot()
        paused = [container.name for container in snapshot if container.paused]
    """

    _document: ClassVar = "snapshot"

    revision: int
    """Number of the picture: it grows with every change, and only then."""
    as_of: datetime
    """When this picture was last known to be true, in UTC."""
    synced: bool = False
    """Whether the watcher was in sync with the engine at that time. If not, this is the last known picture."""
    _by_id: dict[str, Container] = attrs.field(factory=dict, repr=False, alias="by_id")
    # Engines other than Docker allow several containers with the same name. The earliest started comes first.
    _by_name: dict[str, tuple[Container, ...]] = attrs.field(factory=dict, repr=False, alias="by_name")
    # For ids of 64 digits, by their beginning.
    _by_digits: dict[str, tuple[Container, ...]] = attrs.field(factory=dict, repr=False, alias="by_digits")
    _projects: dict[str, Project] = attrs.field(factory=dict, repr=False, alias="projects")
    _pods: dict[str, Pod] = attrs.field(factory=dict, repr=False, alias="pods")

    def names(self) -> tuple[str, ...]:
        """Return the sorted names of the projects, without ""."""
        return tuple(sorted(name for name in self._projects if name))

    def projects(self) -> tuple[Project, ...]:
        """Return all projects, sorted by name; the first is "", even if it has no containers."""
        return (self._projects.get("", NO_PROJECT), *(self._projects[name] for name in self.names()))

    def project(self, name: str) -> Project | None:
        """Return one project; None if none of its containers is alive. The project "" is never None."""
        return self._projects.get(name) if name else self._projects.get("", NO_PROJECT)

    def containers(self, project: str | None = None) -> tuple[Container, ...]:
        """Return all containers in the order in which they were first seen, or those of one project by name."""
        if project is None:
            return tuple(self._by_id.values())
        found = self._projects.get(project)
        return found.containers if found else ()

    def container(self, name_or_id: str) -> Container | None:
        """Find a container by its id, the first 12 or more digits of an id of 64, or its name; None if there is none.

        A full id wins over a name, and a name over the beginning of an id; of several containers with the same name,
        the earliest started is returned.
        """
        found = self._by_id.get(name_or_id)
        if found is not None:
            return found
        named = self._by_name.get(name_or_id)
        if named:
            return named[0]
        alike = self._by_digits.get(name_or_id[:LEAST_DIGITS], ())
        return next((container for container in alike if is_called(container, name_or_id)), None)

    def pods(self) -> tuple[Pod, ...]:
        """Return all Kubernetes pods that have a container alive, sorted by namespace and name."""
        return tuple(sorted(self._pods.values(), key=lambda pod: (pod.namespace, pod.name, pod.uid)))

    def pod(self, uid: str) -> Pod | None:
        """Return one Kubernetes pod; None if none of its containers is alive."""
        return self._pods.get(uid)

    def total(self) -> int:
        """Return the number of containers that are alive."""
        return len(self._by_id)

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Container]:
        return iter(self._by_id.values())

    def __contains__(self, item: object) -> bool:
        if isinstance(item, str):
            return self.container(item) is not None
        return isinstance(item, Container) and self._by_id.get(item.id) == item

    def to_dict(self) -> dict[str, Any]:
        """Return the picture in plain types of JSON, by the schema in docs/json.md."""
        return super().to_dict() | {"containers": [plain(container) for container in self]}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """Read what `to_dict` has returned; see `Container.from_dict`."""
        empty = super().from_dict(document)
        found = read(tuple[Container, ...], document.get("containers"), "containers")
        if len({container.id for container in found}) < len(found):
            raise ValueError("containers has several with the same id")
        news = [(None, container) for container in found]
        return empty._changed(news, revision=empty.revision, as_of=empty.as_of, synced=empty.synced)

    def _get(self, id: str) -> Container | None:
        return self._by_id.get(id)

    def _changed(
        self,
        changes: Iterable[tuple[Container | None, Container | None]],
        *,
        revision: int,
        as_of: datetime,
        synced: bool,
    ) -> Self:
        """Make the next picture. Each pair is one container in this picture and in the next one.

        Copying five dictionaries costs some 10 ns for each container that is alive; in return, readers need no lock.
        """
        by_id, named, digits, projects, pods = (
            self._by_id.copy(),
            self._by_name.copy(),
            self._by_digits.copy(),
            self._projects.copy(),
            self._pods.copy(),
        )
        of_name: _Touched = {}
        of_digits: _Touched = {}
        of_project: _Touched = {}
        of_pod: dict[str, dict[str, Container]] = {}

        def pod_of(container: Container) -> dict[str, Container]:
            uid = container.labels.get(POD_UID)
            if not uid:
                return {}
            if uid not in of_pod:
                pod = pods.get(uid)
                of_pod[uid] = {} if pod is None else {c.id: c for c in (pod.sandbox, *pod) if c is not None}
            return of_pod[uid]

        for before, after in changes:
            if before is not None:
                _remove(before, _touch(of_name, before.name, named), earliest)
                if len(before.id) == ID_DIGITS:
                    _remove(before, _touch(of_digits, before.id[:LEAST_DIGITS], digits), earliest)
                _remove(before, _touch(of_project, before.project, projects), by_name)
                pod_of(before).pop(before.id, None)
                if after is None:
                    del by_id[before.id]
            if after is not None:
                insort(_touch(of_name, after.name, named), after, key=earliest)
                if len(after.id) == ID_DIGITS:
                    insort(_touch(of_digits, after.id[:LEAST_DIGITS], digits), after, key=earliest)
                insort(_touch(of_project, after.project, projects), after, key=by_name)
                pod_of(after)[after.id] = after
                by_id[after.id] = after
        _replace(named, {name: tuple(members) for name, members in of_name.items() if members}, of_name)
        _replace(digits, {begin: tuple(members) for begin, members in of_digits.items() if members}, of_digits)
        _replace(projects, {name: Project(name, tuple(m)) for name, m in of_project.items() if m}, of_project)
        _replace(pods, {uid: Pod._of(uid, members.values()) for uid, members in of_pod.items() if members}, of_pod)
        return type(self)(
            revision=revision,
            as_of=as_of,
            synced=synced,
            by_id=by_id,
            by_name=named,
            by_digits=digits,
            projects=projects,
            pods=pods,
        )


_Touched = dict[str, list[Container]]
"""The sorted members of the groups that a change affects."""


def _touch(touched: _Touched, name: str, groups: Mapping[str, Iterable[Container]]) -> list[Container]:
    if name not in touched:
        touched[name] = list(groups.get(name, ()))
    return touched[name]


def _remove(container: Container, members: list[Container], key: Callable[[Container], Any]) -> None:
    del members[bisect_left(members, key(container), key=key)]


def _replace(groups: dict[str, T], remaining: dict[str, T], touched: Iterable[str]) -> None:
    """Replace the groups that were touched; remove those that are empty now."""
    for name in touched:
        if name in remaining:
            groups[name] = remaining[name]
        else:
            groups.pop(name, None)
