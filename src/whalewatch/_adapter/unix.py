"""What the kernel reports about a Unix socket: which process listens there, and why it cannot be reached."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Hashable, Iterable
from pathlib import Path

__all__ = ["MAX_PATH", "connected", "listener", "listener_identity", "refusal", "unreachable"]

MAX_PATH = 107
"""Most bytes that the path of a Unix socket may have on Linux."""


def listener(path: str) -> int | None:
    """Return the PID of the process that listens on a socket; None if it cannot be known.

    The kernel remembers which process called listen(). With socket activation that is systemd, not the engine.
    """
    try:
        pid = _peer(path)
        if pid == 1 and Path("/proc/1/comm").read_text().strip() in {"systemd", "init"}:
            return None
    except OSError:
        return None
    return pid or None


def _peer(path: str) -> int:
    """Return the PID of the process that listens on a socket; 0 if the kernel does not tell it."""
    with connected(path) as peer:
        if not hasattr(socket, "SO_PEERCRED"):
            return 0
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", credentials)[0]
    return pid


def listener_identity(path: str) -> Hashable:
    """Return a value that changes when another process begins to listen at a path: its PID, and which file it is.

    An engine removes the file and makes it anew when it starts, and a link to it may be moved; so the file counts too
    where the PID is not known (another PID namespace) or is used again. With socket activation neither ever changes.

    Raises:
        OSError: nobody listens there.
    """
    file = Path(path).stat()
    return _peer(path), file.st_dev, file.st_ino, file.st_ctime_ns


def refusal(path: str) -> OSError | None:
    """Try to connect; return the kernel's reason if that fails, None if it succeeds."""
    try:
        with connected(path):
            return None
    except BlockingIOError:
        return None  # a process listens, but its queue of connections is full
    except OSError as error:
        return error


def unreachable(refused: OSError, path: str, remedy: str, usual: Iterable[str] = ()) -> str:
    """Return why a socket cannot be reached, and what can be done about it; "" if the reason is not known here.

    Args:
        refused: the error that connecting has raised.
        path: path of the socket.
        remedy: what to do if the permission is missing.
        usual: other paths at which the socket may be; those that exist are named. A variable in them is expanded.
    """
    if refused.errno in {errno.ENOENT, errno.ENOTDIR}:
        # Path.exists() would raise if a folder may not be read.
        others = [other for other in map(os.path.expandvars, usual) if os.path.exists(other)]  # noqa: PTH110
        found = f" (there is one at {' and at '.join(others)})" if others else ""
        return f"no socket at {path}: start the engine, or correct the address{found}"
    if refused.errno in {errno.EACCES, errno.EPERM}:
        return f"permission denied on {path}: {remedy}"
    if refused.errno == errno.ECONNREFUSED:
        if Path(path).exists() and not Path(path).is_socket():
            return f"{path} is no socket: correct the address"
        # An engine that starts makes a new socket. A mount of the old one itself, usual in containers, keeps the old.
        return (
            "connection refused: the engine is not running; or it was restarted, and its socket is mounted here as a "
            "file: then mount its folder"
        )
    return ""


def connected(path: str) -> socket.socket:
    """Connect to a socket without waiting; if its queue of connections is full, that is a `BlockingIOError`."""
    peer = socket.socket(socket.AF_UNIX)
    try:
        peer.setblocking(False)  # noqa: FBT003 - it takes no keyword
        peer.connect(path)
    except BaseException:
        peer.close()
        raise
    return peer
