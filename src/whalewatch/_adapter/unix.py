"""What the kernel reports about a Unix socket: which process listens there, and why it cannot be reached."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable
from pathlib import Path

__all__ = [
    "MAX_PATH",
    "Identity",
    "connect",
    "connected",
    "engine_pid",
    "listener",
    "listener_identity",
    "refusal",
    "unreachable",
]

MAX_PATH = 107
"""Most bytes that the path of a Unix socket may have on Linux."""


Identity = tuple[int, ...]
"""Who listens at a path: the PID, and the file's device, inode and ctime."""


def listener(path: str) -> int | None:
    """Return the PID of the process that listens on a socket; None if it cannot be known."""
    try:
        return engine_pid(listener_identity(path))
    except OSError:
        return None


def engine_pid(identity: Identity) -> int | None:
    """Return the PID of an engine, by who listens; None if it cannot be known.

    The kernel remembers which process called listen(). With socket activation that is systemd, not the engine.
    """
    pid = identity[0]
    try:
        if pid == 1 and Path("/proc/1/comm").read_text().strip() in {"systemd", "init"}:
            return None
    except OSError:
        return None
    return pid or None


def listener_identity(path: str) -> Identity:
    """Return who listens at a path. See `connect`."""
    peer, identity = connect(path)
    peer.close()
    return identity


def connect(path: str) -> tuple[socket.socket, Identity]:
    """Connect as `connected` does; return also who listens, which changes when another process begins to.

    An engine removes the file and makes it anew when it starts, and a link to it may be moved; so the file counts too
    where the PID is not known (another PID namespace) or is used again. With socket activation neither ever changes.

    Raises:
        OSError: nobody listens there, or the file was replaced meanwhile.
    """
    before = _file(path)
    peer = connected(path)
    try:
        if _file(path) != before:
            raise ConnectionError("the socket was replaced meanwhile")  # noqa: TRY301 - as if it had failed
        credentials = bytes(12)
        if hasattr(socket, "SO_PEERCRED"):
            credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, len(credentials))
    except BaseException:
        peer.close()
        raise
    return peer, (struct.unpack("3i", credentials)[0], *before)


def _file(path: str) -> Identity:
    found = Path(path).stat()
    return found.st_dev, found.st_ino, found.st_ctime_ns


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
