"""Processes of private engines: start them, hang them, end them, and leave nothing of them behind."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import ClassVar, Self

from tests.support.engines import install

START_TIMEOUT = 60.0
"""Seconds an engine may take to answer: 0.2 to 2 measured, 10 when it first has to end orphaned containers."""

STOP_TIMEOUT = 30.0  # seconds a process may take to end before it is killed: dockerd gives each of its containers 10

_POLL = 0.02
_SOCKET_PATH_MAX = 107  # bytes, of AF_UNIX on Linux


class EngineFailedError(Exception):
    """An engine did not do what it was told; the message ends with the last lines of its log."""


class PrivateEngine(ABC):
    """An engine of our own; a context manager: entering starts it, leaving closes it.

    All that it writes is below an empty or missing folder, a temporary one if `root` is None. It is to be short: socket
    paths end at 107 bytes, the deepest below that folder too.
    """

    log_tails: ClassVar[Mapping[str, int]] = {}
    """The logs to quote when something fails, with the number of lines."""

    socket_name: ClassVar[str]
    deepest: ClassVar[str]  # the longest path of a socket below the folder

    def __init__(self, version: str, root: Path | None) -> None:
        self.expected = version
        self.version = ""
        self.root = Path(tempfile.mkdtemp(prefix="ww-")) if root is None else root
        if len(os.fsencode(self.root / self.deepest)) > _SOCKET_PATH_MAX:
            message = f"{self.root} is too long for the sockets in it"
            raise ValueError(message)
        self.socket = self.root / self.socket_name
        self.address = f"unix://{self.socket}"
        self._engine: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.version or self.expected} at {self.address}>"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        assert self._engine is not None, f"{self!r} is not running"
        return self._engine.pid

    @property
    def running(self) -> bool:
        """Whether the engine has been started and not ended; frozen counts as running."""
        return self._engine is not None and self._engine.poll() is None

    def start(self) -> None:
        """Start the engine, and wait until it answers; also again after `stop` and `kill`, with the same data."""
        if self.running:
            return
        atexit.register(self.close)
        self.root.mkdir(parents=True, exist_ok=True)
        self._start()

    @abstractmethod
    def _start(self) -> None:
        """Start what is not running, and wait until it answers."""

    def stop(self) -> None:
        self.thaw()
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self._engine is not None:
            end(self._engine, how)
        self._engine = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Make the engine hang, and wait until it does: the kernel accepts connections, but nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)
        self._wait_for("freeze", lambda: thread_states(self.pid) == {"T"}, STOP_TIMEOUT)

    def thaw(self) -> None:
        if self.running:
            os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """End everything that was started here and remove everything it wrote; closing twice is fine."""
        atexit.unregister(self.close)
        self.thaw()
        self._close()
        for mount in _mounts_below(self.root):
            subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)
        shutil.rmtree(self.root, ignore_errors=True)

    @abstractmethod
    def _close(self) -> None:
        """End what was started."""

    def _log_tail(self) -> str:
        """Return the last lines that the engine's processes have logged."""
        lines: list[str] = []
        for name, count in self.log_tails.items():
            if (log := self.root / f"{name}.log").exists():
                lines += [f"{name}: {line}" for line in log.read_text(errors="replace").splitlines()[-count:]]
        return "\n".join(lines)

    def _spawn(self, name: str, command: Iterable[str]) -> subprocess.Popen[bytes]:
        with (self.root / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                list(command),
                env=self._environment(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # an interrupt at the keyboard must not end it before its containers
            )

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DOCKER_", "CONTAINERD_"))}
        libraries = install.ld_library_path()
        return kept | {"PATH": ":".join(install.search_path(self.expected)), "LD_LIBRARY_PATH": libraries}

    def _run(self, *command: str) -> str:
        """Run a client of the engine's makers, and return what it prints; raises `subprocess.SubprocessError`."""
        environment = self._environment()
        ran = subprocess.run(command, env=environment, timeout=STOP_TIMEOUT, check=True, capture_output=True, text=True)
        return ran.stdout

    @abstractmethod
    def _told_version(self) -> str:
        """Return the version that the engine tells, or raise as `_run` does."""

    def _answers(self) -> bool:
        try:
            self.version = self._told_version()
        except subprocess.SubprocessError:
            return False
        if not self.version.startswith(self.expected):
            message = f"{self!r} was meant to be {self.expected}"
            raise EngineFailedError(message)
        return True

    def _processes(self) -> Iterable[subprocess.Popen[bytes] | None]:
        """Return what must be running."""
        return (self._engine,)

    def _wait_for(self, what: str, reached: Callable[[], bool], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not reached():
            ended = [code for process in self._processes() if process and (code := process.poll()) is not None]
            if ended or time.monotonic() > deadline:
                why = f"a process ended with {ended[0]}" if ended else f"took over {timeout:g} s"
                message = f"{self!r}: did not {what}: {why}\n{self._log_tail()}"
                raise EngineFailedError(message)
            time.sleep(_POLL)


def listens(path: Path) -> bool:
    """Tell whether somebody accepts connections at a unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def end(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """End a child of ours and reap it, so that its PID cannot be taken for somebody else's."""
    process.send_signal(how)
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def descendants(parent: int) -> list[int]:
    """Return the PIDs of all that descend from a process."""
    children: list[int] = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{parent}/task").iterdir():
            children += [int(pid) for pid in (thread / "children").read_text().split()]
    return children + [pid for child in children for pid in descendants(child)]


def kill_all(pids: Iterable[int]) -> None:
    """Kill processes that are not our children, and wait until they are gone."""
    left = list(pids)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + STOP_TIMEOUT
    while any(alive(pid) for pid in left) and time.monotonic() < deadline:
        time.sleep(_POLL)


def alive(pid: int) -> bool:
    return bool(thread_states(pid) - {"Z"})


def thread_states(pid: int) -> set[str]:
    """Return the states of a process's threads, such as "S", "T" or "Z"; none if it is gone."""
    states = set()
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                states.add((thread / "stat").read_text().rpartition(")")[2].split()[0])
    return states


def _mounts_below(root: Path) -> list[str]:
    """Return what is mounted below a folder, the deepest first."""
    inside = f"{root.resolve()}/"
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    mounts = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    return sorted((mount for mount in mounts if mount.startswith(inside)), key=len, reverse=True)
