"""Containers by what they share, sorted; a changed copy costs little, however many there are."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from typing import Any

from whalewatch._core.model import Container
from whalewatch._core.table import Table

__all__ = ["Index"]

LONGEST = 256
"""Most containers of a chunk: a change copies one chunk, and the list of all chunks."""

Key = Callable[[Container], Any]

Chunks = tuple[tuple[Container, ...], ...]
"""Containers in order, in chunks; none of these is empty."""


class Group:
    """The containers that share something; there is at least one.

    Attributes:
        chunks: these, sorted.
        shown: what queries return for them; None as long as nobody has asked.
    """

    __slots__ = ("chunks", "shown")

    def __init__(self, chunks: Chunks) -> None:
        self.chunks = chunks
        self.shown: Any = None


class Index:
    """An immutable index of containers: by their names, projects or pods, for example.

    Args:
        name: returns what a container is found by; None if it is in no group.
        key: sort key of the containers of a group.

    Attributes:
        groups: by what they are found by.
    """

    __slots__ = ("_key", "_name", "groups")

    def __init__(self, name: Callable[[Container], str | None], key: Key) -> None:
        self._name = name
        self._key = key
        self.groups: Table[Group] = Table()

    def changed(self, pairs: Iterable[tuple[Container | None, Container | None]]) -> Index:
        """Return a copy in which the second container of each pair replaces the first; None is no container."""
        touched: dict[str, Chunks] = {}
        for before, after in pairs:
            old = None if before is None else self._name(before)
            new = None if after is None else self._name(after)
            if old is not None:
                touched[old] = self._regrouped(touched, old, before, after if old == new else None)
            if new is not None and new != old:
                touched[new] = self._regrouped(touched, new, None, after)
        changes: list[tuple[str, Group | None]] = []
        for name, chunks in touched.items():
            if chunks:
                changes.append((name, Group(chunks)))
            elif name in self.groups:
                changes.append((name, None))
        index = Index(self._name, self._key)
        index.groups = self.groups.changed(changes)
        return index

    def _regrouped(
        self, touched: dict[str, Chunks], name: str, before: Container | None, after: Container | None
    ) -> Chunks:
        if name in touched:
            chunks = touched[name]
        else:
            group = self.groups.get(name)
            chunks = () if group is None else group.chunks
        if not chunks or (before is not None and len(chunks) == len(chunks[0]) == 1):  # nearly always
            return () if after is None else ((after,),)
        if before is not None:
            number, chunk, position = self._find(chunks, wanted := self._key(before))
            if after is not None and self._key(after) == wanted:
                return _spliced(chunks, number, (*chunk[:position], after, *chunk[position + 1 :]))
            chunks = _spliced(chunks, number, (*chunk[:position], *chunk[position + 1 :]))
        if after is not None:
            number, chunk, position = self._find(chunks, self._key(after))
            chunks = _spliced(chunks, number, (*chunk[:position], after, *chunk[position:]))
        return chunks

    def _find(self, chunks: Chunks, wanted: Any) -> tuple[int, tuple[Container, ...], int]:
        """Return where a container with this key is, or would be: number of a chunk, the chunk, position in it."""
        number = 0
        if len(chunks) > 1:
            number = max(0, bisect_right(chunks, wanted, key=lambda chunk: self._key(chunk[0])) - 1)
        chunk = chunks[number]
        return number, chunk, bisect_left(chunk, wanted, key=self._key)


def _spliced(chunks: Chunks, number: int, chunk: tuple[Container, ...]) -> Chunks:
    """Replace a chunk: the other one is split if it is too long, or joined to its neighbour if both are short."""
    before, after = chunks[:number], chunks[number + 1 :]
    if after and len(chunk) + len(after[0]) <= LONGEST // 2:
        chunk, after = chunk + after[0], after[1:]
    elif before and len(before[-1]) + len(chunk) <= LONGEST // 2:
        chunk, before = before[-1] + chunk, before[:-1]
    half = len(chunk) // 2
    parts = (chunk[:half], chunk[half:]) if len(chunk) > LONGEST else (chunk,) if chunk else ()
    return (*before, *parts, *after)
