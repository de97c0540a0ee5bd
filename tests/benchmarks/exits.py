"""How soon a consumer knows of an exit, from the kernel and from the engine alone: `python -m tests.benchmarks.exits`.

Containers are killed one by one, on a quiet machine, beside ten busy processes, and while the engine is frozen. Two
programs follow the same exits at the same time, one with the kernel and one without.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tests.benchmarks.engine import Program
from tests.benchmarks.figures import Measure, Row, progress, rows
from tests.promises.conftest import CONTAINERDS, CRIS, DOCKERS, Subject, subject_of
from tests.support.engines import install
from tests.support.engines.containerd import Containerd
from tests.support.engines.dockerd import Dockerd
from tests.support.processes import ContainerProcesses
from whalewatch._linux.processes import Processes

BATCH = 20  # containers that run at a time
PAUSE = 0.05  # seconds between two kills
PATIENCE = 30.0  # seconds after the last kill, for who is slow
LOAD = 10  # processes that do nothing but compute

BUSY = "while True: pass"
TARGETS = {"quiet": "median ≤ 5 ms", "at load 10": "median ≤ 20 ms", "engine frozen": "median ≤ 20 ms"}


def measure(options: argparse.Namespace) -> Iterator[Row]:
    """Kill containers of each engine, in each situation."""
    yield from _costs(options)
    for name in (*DOCKERS, *CONTAINERDS, *CRIS):
        version = name.split()[1]
        if options.engine and version not in options.engine:
            continue
        if why := install.missing(version):
            progress(f"{name} is left out: {why}")
            continue
        took = asyncio.run(_measured(name, options.rounds * 4))
        for situation, target in TARGETS.items():
            told = Measure("exit", f"kill to consumer, {situation}", "ms", tail=True, target=target)
            for row in rows([told], took[situation], ours="kernel", beside="engine"):
                yield replace(row, engine=name, beside_is="engine alone")


async def _measured(name: str, kills: int) -> dict[str, dict[str, list[dict[str, float]]]]:
    took = {}
    with contextlib.ExitStack() as engines:
        makers = [
            lambda *given, kind=kind, **how: engines.enter_context(kind(*given, **how))
            for kind in (Dockerd, Containerd)
        ]
        async with subject_of(name, *makers) as subject:
            for situation in TARGETS:
                with contextlib.ExitStack() as stack:
                    for _ in range(LOAD if situation == "at load 10" else 0):
                        stack.enter_context(_busy())
                    took[situation] = await _in_situation(subject, kills, frozen=situation == "engine frozen")
                progress(f"{name}, {situation}: {kills} killed")
    return took


@contextlib.contextmanager
def _busy() -> Iterator[None]:
    process = subprocess.Popen((sys.executable, "-c", BUSY))
    try:
        yield
    finally:
        process.kill()
        process.wait()


async def _in_situation(subject: Subject, kills: int, *, frozen: bool) -> dict[str, list[dict[str, float]]]:
    """Return the milliseconds from each kill to each of the programs."""
    found: dict[str, list[dict[str, float]]] = {"kernel": [], "engine": []}
    alone = frozen or subject.source == "pod-events"  # of which each is given to one program only
    done, module = 0, {"docker": "moby"}.get(subject.kind, subject.kind)
    while done < kills:
        ids = [await subject.run(f"exit-{number}") for number in range(min(BATCH, kills - done))]
        truth = await subject.check(subject.watch(subject.engine.address)).truth()
        killed: dict[str, int] = {}
        with contextlib.ExitStack() as stack:
            source = [subject.source] if subject.source else []
            programs = {
                who: stack.enter_context(
                    Program("-m", "tests.benchmarks.programs", "exits", module, subject.engine.socket, who, *source)
                )
                for who in (["kernel"] if alone else found)
            }
            for program in programs.values():
                await asyncio.to_thread(program.answer)
            if frozen:
                await asyncio.to_thread(subject.engine.freeze)
            for id in ids:
                pid = truth[id]["pid"]
                killed[id] = time.monotonic_ns()
                os.kill(pid, signal.SIGKILL)
                await asyncio.sleep(PAUSE)
            for who, program in programs.items():
                for _ in ids:
                    told: dict[str, Any] = await asyncio.to_thread(program.answer)
                    found[who].append({"exit": (told["t"] - killed[told["id"]]) / 1e6})
            if frozen:
                subject.engine.thaw()
        for id in ids:
            await subject.remove(id)
        done += len(ids)
    return found


def _costs(options: argparse.Namespace) -> Iterator[Row]:
    """Tell the CPU that it takes to watch a process, and to forget it."""
    with ContainerProcesses() as processes:
        ids = [f"{number:064x}" for number in range(300)]
        pids = [process.pid for process in processes.start_all(ids)]
        took = asyncio.run(_watched(dict(zip(ids, pids, strict=True)), options.rounds))
    yield from rows(
        [Measure("watch", "CPU to watch one process, and to forget it", "µs", 1e6, "≤ 25 µs")], {"ours": took}
    )


async def _watched(pids: dict[str, int], rounds: int) -> list[dict[str, float]]:
    took = []
    for _ in range(rounds):
        watching: Processes[str] = Processes(lambda *_: None)
        began = time.thread_time()
        for id, pid in pids.items():
            watching.watch(id, pid, id)
        for id in pids:
            watching.forget(id)
        took.append({"watch": (time.thread_time() - began) / len(pids)})
        watching.close()
    return took


if __name__ == "__main__":
    from tests.benchmarks.__main__ import main

    sys.exit(main(["exits", *sys.argv[1:]]))
