"""An immutable dictionary of which a changed copy is made at little cost, however many keys there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, KeysView, Mapping, ValuesView
from math import isqrt
from typing import Any, Final, TypeVar

__all__ = ["Table"]

V = TypeVar("V")

GONE: Final = object()


class Table(Mapping[str, V]):
    """An immutable mapping that keeps the order in which its keys were added.

    It consists of a dictionary that it shares with others, and of the few changes since that one was made. When there
    are too many of these, or somebody asks for all values, a new dictionary is made. So among 10,000 keys the change of
    one takes a few microseconds. Any thread may use it: these parts are replaced together, and never changed.
    """

    __slots__ = ("_count", "_parts")

    def __init__(self) -> None:
        # A dictionary; what has changed since, values and GONE; and the keys that were removed and added again, so that
        # they come last now.
        self._parts: tuple[dict[str, V], dict[str, Any], set[str]] = {}, {}, set()
        self._count = 0

    def get(self, key: str, default: Any = None) -> V | Any:
        """Return the value of a key."""
        base, changes, _ = self._parts
        found = changes.get(key)
        if found is None:
            return base.get(key, default)
        return default if found is GONE else found

    def __getitem__(self, key: str) -> V:
        found: V | None = self.get(key)
        if found is None:
            raise KeyError(key)
        return found

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole())

    def keys(self) -> KeysView[str]:  # `Mapping` has these two, but slower
        """Return all keys, in their order."""
        return self._whole().keys()

    def values(self) -> ValuesView[V]:
        """Return all values, in the order of their keys."""
        return self._whole().values()

    def changed(self, changes: Iterable[tuple[str, V | None]]) -> Table[V]:
        """Return a copy with other values of some keys, one after another; None removes a key, which must be there."""
        new: Table[V] = object.__new__(Table)
        (base, former, former_again), count = self._parts, self._count
        news, again = former.copy(), former_again.copy()
        for key, value in changes:
            known = news.get(key, base.get(key, GONE))
            count += (value is not None) - (known is not GONE)
            if known is GONE and news.pop(key, None) is not None:
                again.add(key)
            news[key] = GONE if value is None else value
        new._parts, new._count = (base, news, again), count
        if len(news) > 2 * isqrt(count) + 8:
            new._whole()
        return new

    def _whole(self) -> dict[str, V]:
        """Return a dictionary of everything, which is not to be changed."""
        base, changes, again = self._parts
        if not changes:
            return base
        whole = base.copy()
        for key in again:
            whole.pop(key, None)
        for key, value in changes.items():
            if value is GONE:
                whole.pop(key, None)
            else:
                whole[key] = value
        self._parts = whole, {}, set()
        return whole
