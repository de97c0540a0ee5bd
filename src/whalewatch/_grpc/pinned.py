"""Hold on to the socket that was found at a path, so that all connections lead to one peer."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

from whalewatch._adapter.unix import listener

__all__ = ["PinnedSocket"]

OPENED = Path("/proc/self/fd")


class PinnedSocket:
    """The socket that is at a path when this is made, whatever is put into its place later.

    A socket's file belongs to one listening socket as long as it exists, so who connects to that file reaches the same
    peer each time. Where the kernel cannot hold on to it (it is not Linux, or there is no /proc), or there is no file
    yet, the path itself is used.

    Attributes:
        path: where to connect.
    """

    def __init__(self, path: str) -> None:
        self._original = self.path = path
        self._file: int | None = None
        self._missing = False
        if hasattr(os, "O_PATH") and OPENED.exists():
            try:
                self._file = os.open(path, os.O_PATH)
            except OSError:
                self._missing = True  # a call tells why
                return
            self.path = str(OPENED / str(self._file))
            self._release = weakref.finalize(self, os.close, self._file)

    def replaced(self) -> bool:
        """Return whether another file is at the path by now; False if there is none, or nobody can tell."""
        if self._file is None:
            return self._missing
        try:
            return not os.path.samestat(os.fstat(self._file), Path(self._original).stat())
        except OSError:
            return False

    def pid(self) -> int | None:
        """Return the PID of the process that listens; None if it cannot be known."""
        return listener(self.path)

    def close(self) -> None:
        """Let go of it; `path` leads nowhere then."""
        if self._file is not None:
            self._file, self._missing = None, False
            self._release()
