"""The immutable picture of one moment, with its indexes."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from datetime import datetime

import attrs

from whalewatch._model import Container, Project, by_name, earliest

__all__ = ["Snapshot"]


NO_PROJECT = Project("")


@attrs.frozen(eq=False, kw_only=True)
class Snapshot:
    """An immutable picture of the containers that are alive; may be kept and handed to any thread.

    ``len``, iteration (in order of first sight) and ``in`` (a `Container`, an id or a name) work on its containers.

    Attributes:
        revision: number of the picture: it grows with every change, and only then.
        as_of: when this picture was last known to be true (UTC).
        synced: whether the engine was being followed at that time; if not, the picture is the last one known.
    """

    revision: int
    as_of: datetime
    synced: bool = False
    _by_id: dict[str, Container] = attrs.field(factory=dict, repr=False, alias="by_id")
    # One name, several containers: engines other than Docker allow it. The earliest started comes first.
    _by_name: dict[str, tuple[Container, ...]] = attrs.field(factory=dict, repr=False, alias="by_name")
    _projects: dict[str, Project] = attrs.field(factory=dict, repr=False, alias="projects")

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

        Copying three dictionaries costs some 10 ns per container alive; what it buys is that readers need no lock.
        """
        by_id, named, projects = self._by_id.copy(), self._by_name.copy(), self._projects.copy()
        touched: dict[str, list[Container]] = {}

        def members(project: str) -> list[Container]:
            if project not in touched:
                touched[project] = list(projects[project].containers) if project in projects else []
            return touched[project]

        for before, after in changes:
            if before is not None:
                of_project = members(before.project)
                del of_project[bisect_left(of_project, by_name(before), key=by_name)]
                rest = tuple(c for c in named.pop(before.name) if c.id != before.id)
                if rest:
                    named[before.name] = rest
                if after is None:
                    del by_id[before.id]
            if after is not None:
                insort(members(after.project), after, key=by_name)
                named[after.name] = tuple(sorted((*named.get(after.name, ()), after), key=earliest))
                by_id[after.id] = after
        for project, of_project in touched.items():
            if of_project:
                projects[project] = Project(project, tuple(of_project))
            else:
                projects.pop(project, None)
        return Snapshot(revision=revision, as_of=as_of, synced=synced, by_id=by_id, by_name=named, projects=projects)
