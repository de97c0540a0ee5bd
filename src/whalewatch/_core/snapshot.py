"""The immutable picture of all containers at one moment, with its indexes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import chain
from typing import Any, ClassVar, Self

import attrs

from whalewatch._core.document import ReadableDocument, plain, read
from whalewatch._core.groups import Index
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
from whalewatch._core.table import Table

__all__ = ["Snapshot"]

NO_PROJECT = Project("")


def _digits(container: Container) -> str | None:
    return container.id[:LEAST_DIGITS] if len(container.id) == ID_DIGITS else None


BY_NAME = Index(lambda container: container.name, earliest)
BY_DIGITS = Index(_digits, earliest)
PROJECTS = Index(lambda container: container.project, by_name)
PODS = Index(lambda container: container.labels.get(POD_UID) or None, by_name)


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
    _by_id: Table[Container] = attrs.field(factory=Table, repr=False, alias="by_id")
    # Engines other than Docker allow several containers with the same name. The earliest started is found.
    _by_name: Index = attrs.field(default=BY_NAME, repr=False, alias="by_name")
    # For ids of 64 digits, by their beginning.
    _by_digits: Index = attrs.field(default=BY_DIGITS, repr=False, alias="by_digits")
    _projects: Index = attrs.field(default=PROJECTS, repr=False, alias="projects")
    _pods: Index = attrs.field(default=PODS, repr=False, alias="pods")

    def names(self) -> tuple[str, ...]:
        """Return the sorted names of the projects, without ""."""
        return tuple(sorted(name for name in self._projects.groups if name))

    def projects(self) -> tuple[Project, ...]:
        """Return all projects, sorted by name; the first is "", even if it has no containers."""
        return tuple(project for name in ("", *self.names()) if (project := self.project(name)) is not None)

    def project(self, name: str) -> Project | None:
        """Return one project; None if none of its containers is alive. The project "" is never None."""
        group = self._projects.groups.get(name)
        if group is None:
            return None if name else NO_PROJECT
        if group.shown is None:
            group.shown = Project(name, tuple(chain(*group.chunks)))
        found: Project = group.shown
        return found

    def containers(self, project: str | None = None) -> tuple[Container, ...]:
        """Return all containers in the order in which they were first seen, or those of one project by name."""
        if project is None:
            return tuple(self._by_id.values())
        found = self.project(project)
        return () if found is None else found.containers

    def container(self, name_or_id: str) -> Container | None:
        """Find a container by its id, the first 12 or more digits of an id of 64, or its name; None if there is none.

        A full id wins over a name, and a name over the beginning of an id; of several containers with the same name,
        the earliest started is returned.
        """
        found = self._by_id.get(name_or_id)
        if found is not None:
            return found
        named = self._by_name.groups.get(name_or_id)
        if named is not None:
            return named.chunks[0][0]
        alike = self._by_digits.groups.get(name_or_id[:LEAST_DIGITS])
        if alike is None:
            return None
        return next((container for container in chain(*alike.chunks) if is_called(container, name_or_id)), None)

    def pods(self) -> tuple[Pod, ...]:
        """Return all Kubernetes pods that have a container alive, sorted by namespace and name."""
        pods = [pod for uid in self._pods.groups if (pod := self.pod(uid)) is not None]
        return tuple(sorted(pods, key=lambda pod: (pod.namespace, pod.name, pod.uid)))

    def pod(self, uid: str) -> Pod | None:
        """Return one Kubernetes pod; None if none of its containers is alive."""
        group = self._pods.groups.get(uid)
        if group is None:
            return None
        if group.shown is None:
            group.shown = Pod._of(uid, chain(*group.chunks))
        found: Pod = group.shown
        return found

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
        return empty._of(found, empty.revision, empty.as_of, empty.synced)

    @classmethod
    def _of(cls, containers: Iterable[Container], revision: int, as_of: datetime, synced: bool) -> Self:  # noqa: FBT001
        news = [(None, container) for container in containers]
        return cls(revision=0, as_of=as_of)._changed(news, revision=revision, as_of=as_of, synced=synced)

    def __reduce__(self) -> tuple[Any, ...]:  # the indexes are made anew: they consist of more than data
        return (type(self)._of, (tuple(self), self.revision, self.as_of, self.synced))

    def _get(self, id: str) -> Container | None:
        return self._by_id.get(id)

    def _with(self, before: Container | None, after: Container | None) -> Self:
        """Make a picture with `after` instead of `before`; None is no container."""
        return self._changed([(before, after)], revision=self.revision, as_of=self.as_of, synced=self.synced)

    def _changed(
        self,
        changes: Iterable[tuple[Container | None, Container | None]],
        *,
        revision: int,
        as_of: datetime,
        synced: bool,
    ) -> Self:
        """Make the next picture. Each pair is one container in this picture and in the next one.

        Readers need no lock, as no picture is ever changed. It shares with the one before what is the same in both.
        """
        pairs = [*changes]
        alive: list[tuple[str, Container | None]] = []
        for before, after in pairs:
            if after is not None:
                alive.append((after.id, after))
            elif before is not None:
                alive.append((before.id, None))
        return type(self)(
            revision=revision,
            as_of=as_of,
            synced=synced,
            by_id=self._by_id.changed(alive),
            by_name=self._by_name.changed(pairs),
            by_digits=self._by_digits.changed(pairs),
            projects=self._projects.changed(pairs),
            pods=self._pods.changed(pairs),
        )
