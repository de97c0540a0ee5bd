"""The restart policy of the fake Docker engine: it starts containers again after a delay."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from whalewatch.testing.docker.state import FakeDockerContainer


class Restarts:
    """Starts containers after a delay; while the engine is stopped, it waits until the engine continues."""

    def __init__(self, start: Callable[[FakeDockerContainer], None], delay: float | None) -> None:
        """Call ``start`` after ``delay`` seconds; None for never."""
        self.held: bool = False
        self._start = start
        self._delay = delay
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._overdue: dict[str, FakeDockerContainer] = {}

    def schedule(self, container: FakeDockerContainer) -> None:
        """Start a container after the delay."""
        if self._delay is not None:
            loop = asyncio.get_running_loop()
            self._timers[container.id] = loop.call_later(self._delay, self._due, container)

    def cancel(self, container: FakeDockerContainer) -> None:
        """Do not start a container any more."""
        self._overdue.pop(container.id, None)
        if timer := self._timers.pop(container.id, None):
            timer.cancel()

    def hold(self) -> None:
        """Start nothing until `resume`."""
        self.held = True

    def resume(self) -> None:
        """Start the containers whose delay ended since `hold`."""
        self.held = False
        overdue, self._overdue = self._overdue, {}
        for container in overdue.values():
            self._start(container)

    def close(self) -> None:
        """Cancel all timers."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _due(self, container: FakeDockerContainer) -> None:
        del self._timers[container.id]
        if self.held:
            self._overdue[container.id] = container
        else:
            self._start(container)
