"""The immutable picture of one moment, with its indexes."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, TypeVar

import attrs

from whalewatch._core.model import POD_UID, Container, Pod, Project, by_name, earliest

__all__ = ["Snapshot"]


T = TypeVar("T")

NO_PROJECT = Project("")


@attrs.frozen(eq=False, kw_only=True)
class Snapshot:
    """An immutable picture of the containers that are alive; may be kept and handed to any thread.

    ``len``, iteration (in order of first sight) and ``in`` (a `Container`, an id or a name) work on its containers.
    """

    revision: int
    """Number of the picture: it grows with every change, and only then."""
    as_of: datetime
    """When this picture was last known to be true (UTC)."""
    synced: bool = False
    """Whether the engine was being followed at that time; if not, the picture is the last one known."""
    _by_id: dict[str, Container] = attrs.field(factory=dict, repr=False, alias="by_id")
    # One name, several containers: engines other than Docker allow it. The earliest started comes first.
    _by_name: dict[str, tuple[Container, ...]] = attrs.field(factory=dict, repr=False, alias="by_name")
    _projects: dict[str, Project] = attrs.field(factory=dict, repr=False, alias="projects")
    _pods: dict[str, Pod] = attrs.field(factory=dict, repr=False, alias="pods")

    def names(self) -> tuple[str, ...]:
        """Names of the projects, sorted, without ""."""
        return tuple(sorted(name for name in self._projects if name))

    def projects(self) -> tuple[Project, ...]:
        """All projects by name, beginning with "", which is there even if it is empty."""
        return (self._projects.get("", NO_PROJECT), *(self._projects[name] for name in self.names()))

    def project(self, name: str) -> Project | None:
        """One project; None if no container of it is alive. The project "" is never None."""
        return self._projects.get(name) if name else self._projects.get("", NO_PROJECT)

    def containers(self, project: str | None = None) -> tuple[Container, ...]:
        """All containers in order of first sight, or those of one project by name."""
        if project is None:
            return tuple(self._by_id.values())
        found = self._projects.get(project)
        return found.containers if found else ()

    def container(self, name_or_id: str) -> Container | None:
        """Find a container by full id or by name.

        An id wins over a name; of several containers with one name, the earliest started is it.
        """
        found = self._by_id.get(name_or_id)
        if found is not None:
            return found
        named = self._by_name.get(name_or_id)
        return named[0] if named else None

    def pods(self) -> tuple[Pod, ...]:
        """All Kubernetes pods of which a container is alive, by namespace and name."""
        return tuple(sorted(self._pods.values(), key=lambda pod: (pod.namespace, pod.name, pod.uid)))

    def pod(self, uid: str) -> Pod | None:
        """One Kubernetes pod; None if no container of it is alive."""
        return self._pods.get(uid)

    def total(self) -> int:
        """How many containers are alive."""
        return len(self._by_id)

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Container]:
        return iter(self._by_id.values())

    def __contains__(self, item: object) -> bool:
        if isinstance(item, str):
            return self.container(item) is not None
        return isinstance(item, Container) and self._by_id.get(item.id) == item

    def _get(self, id: str) -> Container | None:
        return self._by_id.get(id)

    def _changed(
        self,
        changes: Iterable[tuple[Container | None, Container | None]],
        *,
        revision: int,
        as_of: datetime,
        synced: bool,
    ) -> Snapshot:
        """The next picture: each pair is one container as this picture has it and as the next is to have it.

        Copying four dictionaries costs some 10 ns per container alive; what it buys is that readers need no lock.
        """
        by_id, named, projects, pods = (
            self._by_id.copy(),
            self._by_name.copy(),
            self._projects.copy(),
            self._pods.copy(),
        )
        of_name: _Touched = {}
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
                _remove(before, _touch(of_project, before.project, projects), by_name)
                pod_of(before).pop(before.id, None)
                if after is None:
                    del by_id[before.id]
            if after is not None:
                insort(_touch(of_name, after.name, named), after, key=earliest)
                insort(_touch(of_project, after.project, projects), after, key=by_name)
                pod_of(after)[after.id] = after
                by_id[after.id] = after
        _replace(named, {name: tuple(members) for name, members in of_name.items() if members}, of_name)
        _replace(projects, {name: Project(name, tuple(m)) for name, m in of_project.items() if m}, of_project)
        _replace(pods, {uid: Pod._of(uid, members.values()) for uid, members in of_pod.items() if members}, of_pod)
        return Snapshot(
            revision=revision, as_of=as_of, synced=synced, by_id=by_id, by_name=named, projects=projects, pods=pods
        )


_Touched = dict[str, list[Container]]
"""Members of the groups that a change touches, sorted."""


def _touch(touched: _Touched, name: str, groups: Mapping[str, Iterable[Container]]) -> list[Container]:
    if name not in touched:
        touched[name] = list(groups.get(name, ()))
    return touched[name]


def _remove(container: Container, members: list[Container], key: Callable[[Container], Any]) -> None:
    del members[bisect_left(members, key(container), key=key)]


def _replace(groups: dict[str, T], remaining: dict[str, T], touched: Iterable[str]) -> None:
    """Put in what is left of the groups that were touched, and leave out what is empty."""
    for name in touched:
        if name in remaining:
            groups[name] = remaining[name]
        else:
            groups.pop(name, None)
