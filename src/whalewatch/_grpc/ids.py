"""Check at the door what an engine lists: what has no valid id is left out."""

from __future__ import annotations

import logging

from whalewatch._adapter.ids import is_id
from whalewatch._adapter.once import Once
from whalewatch._core.text import printable

__all__ = ["Ids"]


class Ids:
    """Checks the ids of all that an engine lists.

    Args:
        log: where those are logged that are not valid.
        engine: kind of engine and its address, for messages.

    Attributes:
        left_out: number of items without a valid id; each counts once.
    """

    def __init__(self, log: logging.Logger, engine: str) -> None:
        self.left_out = 0
        self._log = log
        self._engine = engine
        self._known = Once()

    def read(self, kind: str, id: bytes) -> str | None:
        """Return an id; None if it is not valid, which is logged once: the first as a warning, others for debugging."""
        found = id.decode("utf-8", "replace")
        if is_id(found):
            return found
        shown = printable(found)
        if self._known.first((kind, shown)):
            self.left_out += 1
            level = logging.WARNING if self.left_out == 1 else logging.DEBUG
            self._log.log(level, "%s: its %s have the id %r, which is not valid: left out", self._engine, kind, shown)
        return None
