"""The handle of an active fault."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


class Fault:
    """An active fault; as a context manager, it is undone at the end of the block.

    Example::

        with docker.faults.hang("inspect"):
            docker.run("web")
    """

    def __init__(self, undo: Callable[[], None]) -> None:
        """Make the handle of a fault; ``undo`` is called once, at the first `undo`."""
        self._undo = undo
        self._active = True

    @property
    def active(self) -> bool:
        """Whether it is still active."""
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
