"""What chaos does to any containerd and its shims, and what it hears of them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from random import Random

import grpc.aio

from tests.chaos.connection import KILLING, during
from tests.chaos.witness import Told
from tests.chaos.world import Fault
from tests.support.engines.containerd import Containerd
from tests.support.engines.containerd_control import ContainerdControl

REFUSALS: tuple[type[Exception], ...] = (grpc.aio.AioRpcError, OSError, TimeoutError, LookupError)
"""What operations raise while a containerd is away, or will not."""


def engine_faults(
    engine: Containerd, dice: Random, pids: Callable[[], Awaitable[list[int]]]
) -> dict[str, dict[str, Fault]]:
    """The faults by place and name; `pids` tells the processes of containers that may be killed."""

    @asynccontextmanager
    async def away(leave: Callable[[], None], *, killing: bool = False) -> AsyncIterator[None]:
        alive = await pids() if killing else []
        await asyncio.to_thread(leave)
        try:
            for pid in dice.sample(sorted(alive), k=min(len(alive), 3)):
                kill(pid)
            yield
        finally:
            await asyncio.to_thread(engine.start)

    @asynccontextmanager
    async def shim_frozen() -> AsyncIterator[None]:
        shims = engine.shims()
        chosen = dice.sample(sorted(shims), k=min(len(shims), 2))
        for pid in chosen:
            _signal(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in chosen:
                _signal(pid, signal.SIGCONT)

    @asynccontextmanager
    async def shim_killed() -> AsyncIterator[None]:
        if shims := engine.shims():
            kill(dice.choice(sorted(shims)))
        yield

    return {
        "engine": {
            "engine killed": lambda: away(engine.kill),
            KILLING: lambda: away(engine.kill, killing=True),
            "engine stopped": lambda: away(engine.stop),
            "engine frozen": lambda: during(engine.freeze, engine.thaw),
        },
        "shim": {"shim frozen": shim_frozen, "shim killed": shim_killed},
    }


async def hear(
    engine: Containerd, heard: deque[str], told: Told, exits: set[tuple[str, int]], shown: Callable[[str, str], str]
) -> None:
    """Take down for ever what an engine tells of tasks and of changes of containers, beside all watchers.

    Each exit is kept by id and PID; `shown` makes of a namespace and an id there the id that watchers know.
    """
    async with ContainerdControl(engine.socket) as control:
        while True:
            with suppress(*REFUSALS):
                async with control.events('topic~="^/tasks/"', 'topic=="/containers/update"') as events:
                    heard.append("a stream begins")
                    with told.hearing():
                        async for event in events:
                            moment = datetime.fromtimestamp(event.timestamp / 1e9, UTC)
                            what = str(event.event).replace("\n", " ")
                            heard.append(f"{moment:%H:%M:%S.%f} {event.namespace} {event.topic} {what}")
                            tasks = event.topic.startswith("/tasks/")
                            id = shown(event.namespace, event.event.container_id if tasks else event.event.id)
                            told.note(id, event.timestamp, getattr(event.event, "exit_status", None))
                            if event.topic == "/tasks/exit":
                                exits.add((id, event.event.pid))
            heard.append("the stream has ended")
            await asyncio.sleep(0.1)


def kill(pid: int) -> None:
    """Kill a process; one that has gone is no error."""
    _signal(pid, signal.SIGKILL)


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
