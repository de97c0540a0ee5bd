"""Exits that the kernel tells: which processes of containers are watched, and for how long their end is kept in mind.

An engine tells of an exit some time after it, and while it is frozen, dead or polled it tells nothing. The kernel tells
at once, but not why: so what the engine has told before goes with the exit, and what it tells later amends
`Watcher.endings`.

The exit is applied with its code. Kernels tell that when the process was reaped, some milliseconds after its death
(Linux 6.15 and later). Otherwise the engine's word is awaited, but only while it is likely to come.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from whalewatch._core.engine import Engine
from whalewatch._core.feed import Feed
from whalewatch._core.model import Container, FrozenMapping
from whalewatch._core.status import KernelStats

# At once: a program that changes its user may not be able to read it later.
if TYPE_CHECKING or hasattr(os, "pidfd_open"):
    from whalewatch._linux import processes
    from whalewatch._linux.processes import Processes

__all__ = ["Kernel"]

Run = tuple[str, int]
"""A container id and the PID of one of its runs."""

CODE_DELAY = 1.0
"""Most seconds that an exit without a code waits for the engine's word, or for its process to be reaped."""

REAP_DELAY = 0.1
"""Most seconds that it waits for the latter if the picture is not in sync or the engine is polled."""

STALE_FOR = 60.0
"""Seconds for which a reading of a run that has ended is out of date if nothing says whether its process lives."""

MAX_ENDED = 16_384
"""Runs of which the end is kept in mind; more end only while an engine with that many containers is away."""


class Kernel:
    """Watches the processes of containers, and reports their exits; there is one for a watcher.

    Args:
        engine: the engine whose containers they are.
        feed: says whether the picture is in sync.
        now: clock, returns aware UTC.
        enabled: False watches nothing.

    Attributes:
        exited: called with a run that has ended, its exit code if that is known, and when its end was noticed; returns
            whether that is news. The tracker sets it.
    """

    def __init__(self, engine: Engine, feed: Feed, now: Callable[[], datetime], *, enabled: bool) -> None:
        self.exited: Callable[[Container, int | None, datetime], bool] = lambda *_: False
        self._engine = engine
        self._feed = feed
        self._now = now
        self._processes: Processes[Run] | None = None
        if enabled and hasattr(os, "pidfd_open"):
            self._processes = processes.Processes(self._died)
        self._is_local: bool | None = None  # not known yet
        self._runs: dict[Run, Container] = {}
        self._waiting: dict[Run, tuple[datetime, asyncio.TimerHandle]] = {}  # for an exit code
        self._ended: dict[Run, tuple[datetime | None, float]] = {}  # when they began and ended; the latest come last
        self._refused: Counter[str] = Counter()
        self._first = 0

    @property
    def stats(self) -> KernelStats:
        """Return the counters."""
        watched = 0 if self._processes is None else len(self._processes)
        return KernelStats(watched=watched, refused=FrozenMapping(self._refused), first=self._first)

    def open(self) -> None:
        """Find out anew, at the next container, whether the engine is one of this machine."""
        self._is_local = None

    def watch(self, container: Container) -> None:
        """Watch the process of a container that was just read, if that is possible."""
        if self._processes is not None and container.pid is not None and (refusal := self._refusal(container)):
            self._refused[str(refusal)] += 1

    def _refusal(self, container: Container) -> str | None:
        """Watch the process of a container; return why that is not possible, None if it is watched."""
        assert self._processes is not None
        assert container.pid is not None
        if self._is_local is None:
            self._is_local = processes.is_local(self._engine.address)
        if not self._is_local:
            return "engine"
        run = container.id, container.pid
        refusal = self._processes.watch(run, container.pid, container.id.rpartition("/")[2])
        if refusal is None:
            self._runs.setdefault(run, container)
        return refusal

    def has_ended(self, container: Container) -> bool:
        """Return whether a reading shows a run whose end the kernel has told, so that it is out of date.

        If it may be another run with the same PID, it is: as soon as its process is watched. An engine that was frozen
        for long still tells of the run that has ended when it thaws.
        """
        if container.pid is None or (run := (container.id, container.pid)) not in self._ended:
            return False
        began, ended = self._ended[run]
        if None not in {began, container.started_at} and began != container.started_at:
            return False
        if run in self._runs:
            return True
        refusal = self._refusal(container)
        if refusal is None or (refusal not in {"gone", "foreign"} and self._loop_time() - ended > STALE_FOR):
            del self._ended[run]
            return False
        return True

    def close(self) -> None:
        """Watch nothing any more; a forked child has only copies of what its parent watches."""
        if self._feed.forked:
            return
        for _, timer in self._waiting.values():
            timer.cancel()
        self._waiting.clear()
        self._runs.clear()
        if self._processes is not None:
            self._processes.close()

    def _loop_time(self) -> float:
        return asyncio.get_running_loop().time()

    def _died(self, run: Run, code: int | None, final: bool) -> None:  # noqa: FBT001 - as `Processes` calls it
        if (container := self._runs.get(run)) is None:
            return
        if run not in self._waiting:
            self._remember(run, container)
        if code is None:
            in_sync = self._feed.snapshot.synced and self._engine.source != "poll"
            if run not in self._waiting:
                loop = asyncio.get_running_loop()
                delay = CODE_DELAY if in_sync else 0 if final else REAP_DELAY
                self._waiting[run] = self._now(), loop.call_later(delay, self._tell, run)
                return
            if in_sync or not final:
                return
        self._tell(run, code)

    def _tell(self, run: Run, code: int | None = None) -> None:
        noticed, timer = self._waiting.pop(run, (None, None))
        if timer is not None:
            timer.cancel()
        assert self._processes is not None
        self._processes.forget(run)
        self._first += self.exited(self._runs.pop(run), code, noticed or self._now())

    def _remember(self, run: Run, container: Container) -> None:
        self._ended.pop(run, None)
        self._ended[run] = container.started_at, self._loop_time()
        if len(self._ended) > MAX_ENDED:
            del self._ended[next(iter(self._ended))]
