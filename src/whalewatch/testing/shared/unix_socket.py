"""The Unix socket of a fake engine: it replaces and removes sockets, and nothing else."""

from __future__ import annotations

import errno
import socket
from pathlib import Path


def bind(path: Path) -> socket.socket:
    """Make a socket at a path, in place of one that a former engine has left there.

    Raises:
        FileExistsError: Something else is there.
        OSError: The socket cannot be made.
    """
    if path.is_symlink() or (path.exists() and not path.is_socket()):
        remedy = "is no socket, so a fake engine does not replace it: remove it, or choose another path"
        raise FileExistsError(errno.EEXIST, remedy, str(path))
    path.unlink(missing_ok=True)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.bind(str(path))
    except OSError:
        bound.close()
        raise
    return bound


def remove(path: Path) -> None:
    """Remove the socket at a path, unless something else is there by now."""
    if path.is_socket() and not path.is_symlink():
        path.unlink(missing_ok=True)
