"""Processes of containers, and their exits: by their pidfd, without a privilege, and without a child of ours.

Facts about the kernel, and since when (pidfd_open(2), ioctl_pidfd(2), epoll(7)):

* A pidfd refers to one process for ever, also when its PID is used again; it becomes readable when the process is dead
  (5.3), and reports a hang-up once its parent has reaped it (6.9).
* PIDFD_GET_INFO with PIDFD_INFO_EXIT gives the wait status of a process that was reaped (6.15), to everybody.
* /proc/PID/cgroup is world-readable, and names the cgroups of a process as they are seen from here.

Between an inspect and `pidfd_open`, a PID may be used again, and a PID of another namespace is that of another process
here. So first the pidfd is opened, then the cgroup that the PID has now must name the container, and then the process
must still be alive: as long as it is, its PID belongs to no other.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
import resource
import select
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from typing import Generic, TypeVar

__all__ = ["Processes", "Refusal", "exit_code", "is_local", "names_container"]

K = TypeVar("K")

GET_INFO = 0xC040FF0B
"""PIDFD_GET_INFO: ``_IOWR(0xFF, 11, struct pidfd_info)``, of which the first version has 64 bytes."""
INFO_SIZE, INFO_EXIT, STATUS_OFFSET = 64, 1 << 3, 60

MAX_READ = 65_536
"""Most bytes that are read of a file of /proc: 16 lines of paths, each as long as paths may be."""

SHORT_ID = 12
"""Ids with fewer characters are chosen by people, and may be called like any cgroup."""

CHECK_ROOM_EVERY = 64
"""So many descriptors are opened before it is looked again how many are left."""

EVENTS_PER_TURN = 64
"""Most deaths that are handled before the loop has a turn."""


class Refusal(StrEnum):
    """Why a process is not watched."""

    GONE = "gone"
    """There is no such process, or it has just died."""
    FOREIGN = "foreign"
    """Its cgroup does not name the container: it is another process, of another namespace or machine."""
    LIMIT = "limit"
    """Half of the descriptors that this process may open are in use."""
    DENIED = "denied"
    """The kernel, or a sandbox, does not allow it."""


def names_container(cgroups: bytes, id: str) -> bool:
    """Return whether a part of a process's cgroups, as /proc/PID/cgroup lists them, is that of a container.

    Engines call it by the container's id, or with systemd, such as ``docker-ID.scope`` (Docker, containerd, CRI-O,
    Podman). A container may have cgroups of its own below, but not if its id is so short that it may be a common word.
    """
    name, at = id.encode(), -1
    ends = (b"\n",) if len(name) < SHORT_ID else (b"\n", b"/")
    while (at := cgroups.find(name, at + 1)) >= 0:
        end = at + len(name)
        before, after = cgroups[max(0, at - 1) : at], cgroups[end : end + len(b".scope/")] + b"\n"
        if before in {b"-", b":"} and after.startswith(b".scope"):
            after = after.removeprefix(b".scope")
        if before in {b"/", b"-", b":"} and after.startswith(ends):
            return True
    return False


def exit_code(status: int) -> int:
    """Return the exit code of a wait status, as engines tell it: 128 and the number of the signal that was its end."""
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def is_local(address: str) -> bool | None:
    """Return whether who listens at an address, a URL, is a process of our PID namespace; None if it cannot be reached.

    Then PIDs mean the same to both, unless it is a proxy. /proc has to be of that namespace, too.
    """
    path = address.removeprefix("unix://")
    if path == address:
        return False
    try:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.setblocking(False)  # noqa: FBT003 - it takes no keyword
            peer.connect(path)
            listener, _, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    except OSError:
        return None
    try:
        ours, theirs = (_read(f"/proc/{pid}/status") for pid in ("self", listener))
    except OSError:
        return False  # there is no process 0, as those of other namespaces are called
    is_of_our_namespace = re.search(rb"^Pid:\s+%d$" % os.getpid(), ours, re.MULTILINE)
    return is_of_our_namespace is not None and re.search(rb"^NSpid:\s+\d+$", theirs, re.MULTILINE) is not None


def _read(path: str) -> bytes:
    """Read a file of /proc, which never waits."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return os.read(file, MAX_READ)
    finally:
        os.close(file)


class Processes(Generic[K]):
    """Watches processes of containers until they die. It belongs to the event loop that runs when it is first used.

    Args:
        died: called with the key of a process that is dead, its exit code if that is known yet, and whether nothing
            more will be told of it. If not, it is called again once the process was reaped.
    """

    def __init__(self, died: Callable[[K, int | None, bool], None]) -> None:
        self._died = died
        self._files: dict[K, int] = {}
        self._keys: dict[int, K] = {}
        self._most = self._opened = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._events: select.epoll | None = None
        self._alive = select.poll()

    def __len__(self) -> int:
        return len(self._files)

    def watch(self, key: K, pid: int, id: str) -> Refusal | None:
        """Watch the process with this PID, if it is one of the container with this id; return None if it is watched.

        A key that is watched already remains so.
        """
        if key in self._files:
            return None
        file = -1
        try:
            if not self._has_room():
                return Refusal.LIMIT
            file = os.pidfd_open(pid)
            cgroups = _read(f"/proc/{pid}/cgroup")
            if self._is_dead(file):
                refusal = Refusal.GONE
            elif not names_container(cgroups, id):
                refusal = Refusal.FOREIGN
            else:
                self._register(file)
                self._files[key], self._keys[file] = file, key
                return None
        except (OSError, ValueError, OverflowError) as error:  # also if it is no PID, or no id
            refusal = _REFUSALS.get(getattr(error, "errno", None) or 0, Refusal.DENIED)
        if file >= 0:
            os.close(file)
        return refusal

    def forget(self, key: K) -> None:
        """Tell nothing more of a process."""
        if (file := self._files.pop(key, None)) is not None:
            del self._keys[file]
            with suppress(OSError):  # if somebody else has closed it
                if self._events is not None:
                    self._events.unregister(file)  # closing is not enough if a forked child has it open, too
                os.close(file)

    def close(self) -> None:
        """Forget all processes."""
        for key in [*self._files]:
            self.forget(key)
        if self._events is not None and self._loop is not None:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._events.fileno())
            self._events.close()
            self._events = self._loop = None

    def _has_room(self) -> bool:
        """Return whether less than half of the descriptors is in use here that the others of this process leave."""
        watched = len(self._files)
        if watched >= self._most or self._opened >= CHECK_ROOM_EVERY:
            self._most = (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - (_opened() - watched)) // 2
            self._opened = 0
        self._opened += 1
        return watched < self._most

    def _is_dead(self, file: int) -> bool:
        self._alive.register(file, select.POLLIN)
        try:
            return bool(self._alive.poll(0))
        finally:
            self._alive.unregister(file)

    def _register(self, file: int) -> None:
        if self._events is None:
            self._loop = asyncio.get_running_loop()
            self._events = select.epoll()
            self._loop.add_reader(self._events.fileno(), self._read)
        self._events.register(file, select.EPOLLIN | select.EPOLLET)  # once when it dies, once when it was reaped

    def _read(self) -> None:
        assert self._events is not None
        for file, event in self._events.poll(0, EVENTS_PER_TURN):
            if (key := self._keys.get(file)) is None:
                continue  # forgotten meanwhile
            try:
                status = wait_status(file)
                final = status is not None or bool(event & select.EPOLLHUP)
            except OSError:
                status, final = None, True  # an older kernel
            if final:
                self.forget(key)
            try:
                self._died(key, None if status is None else exit_code(status), final)
            except Exception as error:  # noqa: BLE001 - the others are told once only, too
                asyncio.get_running_loop().call_exception_handler({"message": "an exit is lost", "exception": error})
            if self._loop is None:
                return  # closed meanwhile


_REFUSALS = {
    errno.ESRCH: Refusal.GONE,
    errno.ENOENT: Refusal.GONE,
    errno.EMFILE: Refusal.LIMIT,
    errno.ENFILE: Refusal.LIMIT,
}


def _opened() -> int:
    """Return how many descriptors this process has open: a size since 6.2, else the lowest that is free."""
    try:
        folder = os.open("/proc/self/fd", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except PermissionError:  # as is usual of a process that has changed its user
        folder = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # of size 0
    try:
        return os.fstat(folder).st_size or folder
    finally:
        os.close(folder)


def wait_status(file: int) -> int | None:
    """Return the wait status of a process by its pidfd; None if it was not reaped yet.

    Raises:
        OSError: this kernel does not tell it.
    """
    info = bytearray(INFO_SIZE)
    struct.pack_into("=Q", info, 0, INFO_EXIT)
    fcntl.ioctl(file, GET_INFO, info)
    known = struct.unpack_from("=Q", info)[0] & INFO_EXIT
    return int(struct.unpack_from("=i", info, STATUS_OFFSET)[0]) if known else None
