"""The data that applications attach to containers: an error in an application's function never ends the watch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import attrs

from whalewatch._adapter.once import Once
from whalewatch._core.model import Container

__all__ = ["Packer"]

T = TypeVar("T")


class Packer(Generic[T]):
    """Fills rucksacks with the results of the application's ``pack(container, inspection)``.

    If it raises, the container is kept without a rucksack, and the error is logged once per container.
    """

    def __init__(self, pack: Callable[[Container, T], Any] | None, log: logging.Logger) -> None:
        self._pack = pack
        self._log = log
        self._failed = Once()

    def __bool__(self) -> bool:
        """Return whether the application has given a ``pack`` function."""
        return self._pack is not None

    def pack(self, container: Container, inspection: T) -> Container:
        """Return the container with its rucksack."""
        if self._pack is None:
            return container
        try:
            return attrs.evolve(container, rucksack=self._pack(container, inspection))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001 - every error is logged, also cancellation: nothing here was awaited
            if self._failed.first(container.id):
                self._log.exception("pack() failed for container %s: it is kept without a rucksack", container.id)
            return container
