"""Faults that are in force, and the handles that undo them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


class Fault:
    """A fault in force; as a context manager it is undone at the end of the block."""

    def __init__(self, undo: Callable[[], None]) -> None:
        """Take effect; ``undo`` is called once, at the first `undo`."""
        self._undo = undo
        self._active = True

    @property
    def active(self) -> bool:
        """Whether it is still in force."""
        return self._active

    def undo(self) -> None:
        """End the fault; a second time does nothing."""
        if self._active:
            self._active = False
            self._undo()

    def __enter__(self) -> Self:
        """Return this fault."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Undo it."""
        self.undo()


_F = TypeVar("_F", bound=Fault)


class InForce:
    """The faults that are in force."""

    def __init__(self) -> None:
        """Start without any."""
        self._faults: list[Fault] = []

    def _keep(self, fault: _F) -> _F:
        self._faults = [known for known in self._faults if known.active]
        self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Undo all faults that are in force, the latest first; a refusing engine needs `accept` besides."""
        for fault in reversed(self._faults):
            fault.undo()
        self._faults.clear()
