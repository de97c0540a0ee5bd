"""Programs that watch without an event loop: `python -m tests.support.without_loop PROGRAM [ADDRESS [ENGINE]]`."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

import whalewatch
from tests.support.followed import eventually
from tests.support.scripted import PATIENCE, Hold, ScriptedEngine, box
from whalewatch import BlockingWatcher, Watcher, moby

WAITS: dict[str, tuple[Callable[[BlockingWatcher], object], str]] = {
    "ready": (BlockingWatcher.ready, "Watcher.ready"),
    "names": (BlockingWatcher.names, "first_picture"),
    "wait_for": (lambda watcher: watcher.wait_for("web"), "Portfolio.wait_for"),
    "wait_gone": (lambda watcher: watcher.wait_gone("web"), "Portfolio.wait_gone"),
    "wait_healthy": (lambda watcher: watcher.wait_healthy("web"), "Portfolio.wait_healthy"),
    "in_sync": (BlockingWatcher.in_sync, "Portfolio.in_sync"),
    "events": (lambda watcher: list(watcher.events()), "Subscription._more"),
    "status_changes": (lambda watcher: list(watcher.status_changes()), "Wakeup.until"),
}
"""All that waits before the first synchronisation, and the coroutine that waits in the watcher's loop."""

IMMEDIATE = 1.0
"""Seconds within which a program knows that it was interrupted."""


async def _only(*coroutines: str) -> None:
    known = {coroutine for _, coroutine in WAITS.values()}

    def waiting() -> list[str]:
        awaited = (getattr(task.get_coro(), "cr_await", None) for task in asyncio.all_tasks())
        names = (getattr(coroutine, "__qualname__", "") for coroutine in awaited)
        return sorted(name for name in names if name in known)

    await eventually(lambda: waiting() == sorted(coroutines))


def until_waiting(watcher: BlockingWatcher, *coroutines: str) -> None:
    """Wait until these coroutines and no others wait in the watcher's loop for callers in other threads."""
    watcher._wait(_only, *coroutines)


def there(watcher: BlockingWatcher, do: Callable[..., object], *arguments: Any) -> None:
    """Do something in the watcher's loop."""
    assert watcher._loop is not None
    watcher._loop.call_soon_threadsafe(do, *arguments)


@contextmanager
def unsynced() -> Iterator[tuple[BlockingWatcher[ScriptedEngine], Hold]]:
    """Watch an engine with one container, which answers when it is released."""
    engine = ScriptedEngine(box("web"))
    with engine.hold("connect") as hold, whalewatch.in_thread(Watcher(engine)) as watcher:
        yield watcher, hold


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def until_held(hold: Hold) -> None:
    while not hold.held:
        time.sleep(0.001)


def interrupted(work: Callable[[], object], when: Callable[[], None]) -> None:
    """Work, interrupted by Ctrl-C once `when` has returned."""
    moment = 0.0

    def interrupt() -> None:
        nonlocal moment
        when()
        moment = time.monotonic()
        os.kill(os.getpid(), signal.SIGINT)

    other = threading.Thread(target=interrupt)
    other.start()
    with pytest.raises(KeyboardInterrupt):
        work()
    assert time.monotonic() - moment < IMMEDIATE
    other.join()


def interrupt() -> None:
    """Be interrupted in all that waits, then go on as if nothing had happened; at last in leaving."""
    with unsynced() as (watcher, hold):
        events = watcher.events()
        for name, (wait, coroutine) in WAITS.items():
            interrupted(partial(wait, watcher), partial(until_waiting, watcher, coroutine))
            until_waiting(watcher)
            say(name)
        interrupted(partial(next, events), partial(until_waiting, watcher, "Subscription._more"))
        there(watcher, hold.release)
        watcher.ready(PATIENCE)
        assert [event.container.name for event in (next(events),)] == ["web"]
        with watcher.engine.hold("close") as closing:
            leave = watcher.__exit__
            interrupted(partial(leave, None, None, None), partial(until_held, closing))
            say("leaving")
            there(watcher, closing.release)
            leave(None, None, None)
    say(" ".join(thread.name for thread in threading.enumerate()))


def fork(address: str) -> None:
    """Fork while watching: the child learns that it must not, and the parent goes on."""
    with whalewatch.in_thread(moby.watch(address, audit=None)) as watcher:
        watcher.ready(PATIENCE)
        watcher._wait(eventually, lambda: watcher.stats.audits)
        events = watcher.events(replay=False)
        child = os.fork()
        if child == 0:
            _misuse(watcher, events)
            del watcher, events
            gc.collect()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        say(f"child {status}")
        watcher.wait_for("later", PATIENCE)
        stats = watcher.stats
        say(f"{stats.calls['events']} stream, {stats.outages} outages, {stats.reopened} reopened")


def _misuse(watcher: BlockingWatcher, events: whalewatch.BlockingSubscription) -> None:
    uses: list[Callable[[], object]] = [
        *(partial(wait, watcher) for wait, _ in WAITS.values()),
        *(watcher.snapshot, watcher.total, watcher.__enter__, watcher.events),
        *(lambda: watcher.status, lambda: watcher.stats, lambda: next(events)),
    ]
    for use in uses:
        with pytest.raises(RuntimeError, match="fork"):
            use()
    watcher.__exit__(None, None, None)
    assert not watcher._leave.done()


def forget(address: str, engine: str) -> None:
    """Never leave."""
    watcher = whalewatch.in_thread(getattr(whalewatch, engine).watch(address)).__enter__()
    watcher.ready(PATIENCE)
    say(str("web" in watcher.snapshot()))


PROGRAMS: dict[str, Callable[..., None]] = {"interrupt": interrupt, "fork": fork, "forget": forget}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](*sys.argv[2:])
