"""The handle of a fault that is in force."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

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
