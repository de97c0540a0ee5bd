"""Check at the door what an engine lists: what has no valid id is left out."""

from __future__ import annotations

import logging

from whalewatch._adapter.ids import MAX_ID_LENGTH, is_id
from whalewatch._adapter.once import Once
from whalewatch._core.text import printable

__all__ = ["Door"]


class Door:
    """What of all that an engine lists is taken: so many items of one kind, and those with a valid id.

    Args:
        log: where those are logged that are not valid.
        engine: kind of engine and its address, for messages.
        max_containers: most items of one kind in a listing.

    Attributes:
        max_items: that number.
        left_out: number of items without a valid id; each counts once.

    Raises:
        ValueError: `max_containers` is less than 1.
    """

    def __init__(self, log: logging.Logger, engine: str, max_containers: int) -> None:
        if not max_containers >= 1:
            msg = f"max_containers must be at least 1, not {max_containers}"
            raise ValueError(msg)
        self.max_items: int = max_containers
        self.left_out: int = 0
        self._log = log
        self._engine = engine
        self._known = Once()

    def read(self, kind: str, id: bytes) -> str | None:
        """Return an id; None if it is not valid, which is logged once: the first as a warning, others for debugging."""
        found = id.decode("utf-8", "replace")
        if (id.isalnum() and len(id) <= MAX_ID_LENGTH) or is_id(found):  # the first, for most ids, is ten times as fast
            return found
        shown = printable(found)
        if self._known.first((kind, shown)):
            self.left_out += 1
            level = logging.WARNING if self.left_out == 1 else logging.DEBUG
            self._log.log(level, "%s: its %s have the id %r, which is not valid: left out", self._engine, kind, shown)
        return None
