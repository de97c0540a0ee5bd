"""Real processes of made-up containers: in cgroups that have their ids, as engines make them. For root only."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

TELLS_CODES = tuple(int(part) for part in platform.release().split(".")[:2]) >= (6, 15)
"""Whether this kernel tells the exit codes of others' processes."""

SLEEP = ("/bin/sleep", "1000000")
LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


def _hierarchy() -> Path:
    first = Path("/sys/fs/cgroup/pids")
    return first if first.is_dir() else first.parent


def missing() -> str | None:
    """Why there can be no such processes here; None if there can."""
    return None if os.access(_hierarchy(), os.W_OK) else f"no permission to make cgroups in {_hierarchy()}"


class ContainerProcesses:
    """Starts processes, each in the cgroup of a container, and ends them all when it is left."""

    def __init__(self) -> None:
        self._folder = _hierarchy() / f"whalewatch-{os.getpid()}"
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self._folder.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._started:
            process.kill()
        for process in self._started:
            process.communicate()
        for folder in (*self._folder.iterdir(), self._folder):
            if folder.is_dir():
                _remove(folder)

    def start(self, id: str | None, *command: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """Start a process in a container, or outside of all; it becomes a zombie at its end, until somebody waits."""
        return self.start_all([id], *command, stdin=stdin)[0]

    def start_all(
        self, ids: Sequence[str | None], *command: str, stdin: int = subprocess.DEVNULL
    ) -> list[subprocess.Popen[bytes]]:
        """Start a process in each of these containers."""
        places = [self._folder / id if id else self._folder for id in ids]
        for place in places:
            place.mkdir(exist_ok=True)
        enter = ("/bin/sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"')
        started = [subprocess.Popen((*enter, str(place), *(command or SLEEP)), stdin=stdin) for place in places]
        self._started += started
        for process, place in zip(started, places, strict=True):
            group = Path(f"/proc/{process.pid}/cgroup")
            while f"/{place.relative_to(self._folder.parent)}\n" not in group.read_text():
                time.sleep(0.001)
        return started

    def start_as(self, pid: int, id: str | None) -> subprocess.Popen[bytes]:
        """Start a process that has a certain PID, which was another's."""
        for _ in range(100):
            LAST_PID.write_text(str(pid - 1))
            process = self.start(id)
            if process.pid == pid:
                return process
            process.kill()
            process.wait()
        message = f"others are always faster to have the PID {pid}"
        raise AssertionError(message)


def _remove(folder: Path) -> None:
    """Remove a cgroup, which is empty some time after its last process has ended."""
    deadline = time.monotonic() + 5
    while True:
        try:
            folder.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
