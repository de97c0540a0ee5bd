"""What applications attach to containers: called where inspection data is read, and never the watch's undoing."""

from __future__ import annotations

import logging
from asyncio import CancelledError
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import attrs

from whalewatch._core.model import Container

__all__ = ["Packer"]

T = TypeVar("T")

MEMORY = 16384
"""Containers remembered, the latest, of which it was logged that they could not be packed: more than live at a time."""


class Packer(Generic[T]):
    """Fills rucksacks by the application's ``pack(container, inspection)``.

    If it raises, the container is kept without a rucksack, and the error is logged once per container.
    """

    def __init__(self, pack: Callable[[Container, T], Any] | None, log: logging.Logger) -> None:
        self._pack = pack
        self._log = log
        self._unpacked: dict[str, None] = {}

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return self._pack is not None

    def packed(self, container: Container, inspection: T) -> Container:
        """Return the container with its rucksack."""
        if self._pack is None:
            return container
        try:
            return attrs.evolve(container, rucksack=self._pack(container, inspection))
        except (Exception, CancelledError):  # noqa: BLE001 - whatever it is, it is logged; nothing here was awaited
            if container.id not in self._unpacked:
                self._unpacked[container.id] = None
                if len(self._unpacked) > MEMORY:
                    del self._unpacked[next(iter(self._unpacked))]
                self._log.exception("pack() failed for container %s: it is kept without a rucksack", container.id)
            return container
