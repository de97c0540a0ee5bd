"""See what a test has left behind: tasks, threads, file descriptors and sockets."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import threading
import time
from dataclasses import dataclass
from pathlib import Path

TURNS = 200
"""Looks within which all must have closed: a transport closes in the loop's next turn, a thread when it can."""

_TURN = 0.01  # seconds between two looks at least: a machine that stands still in between is no leak


@dataclass(frozen=True, slots=True)
class Held:
    """The threads of this process at one moment, and its descriptors with what they stand for: "socket:[4711]"."""

    threads: frozenset[tuple[int | None, str]]
    descriptors: frozenset[tuple[int, str]]

    @classmethod
    def now(cls) -> Held:
        return cls(frozenset((thread.ident, thread.name) for thread in threading.enumerate()), _descriptors())

    def leaked(self) -> list[str]:
        """Wait, within bounds, until nothing is held that was not held then; return what still is, told for people."""
        for _ in range(TURNS):
            now = Held.now()
            threads = [f"thread {name}" for _, name in sorted(now.threads - self.threads, key=str)]
            descriptors = sorted(now.descriptors - self.descriptors)
            if not threads and not descriptors:
                break
            gc.collect()
            time.sleep(_TURN)
        return threads + [f"descriptor {number}: {_told(target)}" for number, target in descriptors]


async def leaked_tasks() -> list[str]:
    """Wait, within bounds, until the running loop has no task but this one; return those it still has."""
    for _ in range(TURNS):
        if not (left := asyncio.all_tasks() - {asyncio.current_task()}):
            break
        gc.collect()
        await asyncio.sleep(_TURN)
    return sorted(f"task {task!r}" for task in left)


def _descriptors() -> frozenset[tuple[int, str]]:
    found = set()
    eventfds = itertools.count()  # in place of numbers: gRPC replaces its own after a fork
    with contextlib.suppress(OSError):
        for entry in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):  # the one that reads this folder
                target = str(entry.readlink())
                found.add((next(eventfds) if target == "anon_inode:[eventfd]" else int(entry.name), target))
    return frozenset(found)


def _told(target: str) -> str:
    """Tell which socket a socket is, where the kernel tells it."""
    if not target.startswith("socket:["):
        return target
    inode = target.removeprefix("socket:[").removesuffix("]")
    for family, column in (("unix", 6), ("tcp", 9), ("tcp6", 9)):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/self/net/{family}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[column] == inode:
                    return f"{target} {family} {' '.join(fields[column + 1 :] if family == 'unix' else fields[1:3])}"
    return target
