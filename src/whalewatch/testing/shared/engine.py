"""What all fake engines have in common: a socket, event streams, and calls that are counted."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from types import TracebackType

    from whalewatch.testing.shared.event_bus import EventBus


class FakeEngine(ABC):
    """An engine that serves at a Unix socket; enter it once, as an async context manager.

    Attributes:
        requests: The calls that have arrived, by kind.
    """

    _events: EventBus[Any, Any]

    def __init__(self, path: str | os.PathLike[str] | None, socket: str) -> None:
        """Prepare an engine.

        Args:
            path: The Unix socket to serve at. Default: a socket in a temporary folder.
            socket: The name of that socket.
        """
        self.requests: Counter[str] = Counter()
        self._path = None if path is None else Path(path)
        self._socket = socket
        self._own_folder: Path | None = None
        self._entered = False
        self._waiting: list[tuple[Callable[[], object], asyncio.Future[None]]] = []

    @abstractmethod
    async def _serve(self, path: Path, folder: Path) -> None:
        """Serve at a socket; ``folder`` is a temporary folder for other files."""

    @abstractmethod
    async def _stop(self) -> None:
        """Cut all connections."""

    async def __aenter__(self) -> Self:
        """Start to serve.

        Raises:
            RuntimeError: It was entered before.
            OSError: The socket cannot be made.
        """
        if self._entered:
            raise RuntimeError(f"a {type(self).__name__} can be entered only once")
        self._entered = True
        self._own_folder = Path(tempfile.mkdtemp(prefix="fake-engine-"))
        if self._path is None:
            self._path = self._own_folder / self._socket
        try:
            await self._serve(self._path, self._own_folder)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Cut all connections, and remove all tasks, sockets and files."""
        await self._close()

    async def _close(self) -> None:
        try:
            await self._stop()
        finally:
            if self._own_folder is not None:
                shutil.rmtree(self._own_folder, ignore_errors=True)

    # ---- where it is

    @property
    def path(self) -> Path:
        """The Unix socket at which it serves; known after it is entered."""
        if self._path is None:
            raise RuntimeError(f"the socket of this {type(self).__name__} is chosen when it is entered")
        return self._path

    @property
    def address(self) -> str:
        """The Unix socket as a URL, "unix:///..."; known after it is entered."""
        return f"unix://{self.path}"

    # ---- its event streams

    @property
    def subscribers(self) -> int:
        """The number of open event streams that the engine knows."""
        return len(self._events.subscribers)

    @property
    def unsent(self) -> int:
        """The number of events that wait to be sent on an event stream; the stream with the most counts."""
        return max((subscriber.pending for subscriber in self._events.subscribers), default=0)

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition holds.

        Args:
            condition: Returns whether to stop waiting. It is called each time `requests`, `subscribers` or `unsent`
                changes, so it should depend only on these.
        """
        if condition():
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (condition, future)
        self._waiting.append(entry)
        try:
            await future
        finally:
            self._waiting.remove(entry)

    def _changed(self) -> None:
        for condition, future in self._waiting:
            if not future.done() and condition():
                future.set_result(None)
