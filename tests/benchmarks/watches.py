"""What watches cost, beside what does the same with a bare session or channel: to import, begin, follow and keep."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import Iterator

from tests.benchmarks.engine import MOBY, TIMEOUT, Program, Target
from tests.benchmarks.figures import Figures, Measure, Row, by_turns, in_turn, progress, rows
from whalewatch.testing import FakeDocker

IMPORT = """
import json, sys, time
before = time.process_time()
import {}
cpu = time.process_time() - before
grpc = sum(name.partition(".")[0] in ("grpc", "google") for name in sys.modules)
print(json.dumps({{"cpu": cpu, "modules": len(sys.modules), "grpc": grpc}}))
"""
IMPORTS = {
    "whalewatch.moby": ("asyncio, ssl, attrs, tenacity, httptools", "aiohttp"),
    "whalewatch.containerd": ("grpc.aio",),
}
"""Modules, and what each is measured beside."""

EVENTS = 5_000
CONTAINERS = 100
READERS = (1, 10, 100)
BATCH = 50  # events between looks at whether the reader keeps up
UNSENT = 200  # events that may wait; a reader of Docker's that falls 1,024 behind loses some

WARM_UP = 2  # rounds

AUDIT = 2.0  # seconds between audits, to see what one costs; 300 by default


def imports(options: argparse.Namespace) -> Iterator[Row]:
    """Import whalewatch and what it builds on, by turns, in fresh processes."""

    def imported(module: str) -> Figures:
        with Program("-c", IMPORT.format(module)) as program:
            return program.answer()

    modules = [module for ours, others in IMPORTS.items() for module in (ours, *others)]
    took = by_turns("imports", options.rounds, {module: module for module in modules}, imported)
    for ours, others in IMPORTS.items():
        cpu = Measure("cpu", f"import of {ours}, CPU of it", "ms", 1e3)
        loaded = Measure("modules", f"modules loaded by {ours}")
        for other in others:
            yield from rows((cpu, loaded), took, ours, other)
    yield from rows([Measure("grpc", "gRPC modules loaded by whalewatch.moby", target="0")], took, "whalewatch.moby")


def throughput(options: argparse.Namespace) -> Iterator[Row]:
    """Tell events of a fake engine, pauses and unpauses, to readers of ours or to a bare reader in another process."""
    contenders = {"one bare reader": ("bare", 1)} | {str(count): ("ours", count) for count in READERS}
    took = by_turns(f"{EVENTS:,} events", options.rounds, contenders, lambda one: asyncio.run(_read(*one)))
    for count in READERS:
        seconds = Measure("seconds", f"{EVENTS:,} events, subscriptions: {count}", "ms", 1e3)
        cpu = Measure("cpu", f"CPU of it, subscriptions: {count}", "ms", 1e3)
        yield from rows((seconds, cpu), took, str(count), "one bare reader")


async def _read(who: str, readers: int) -> Figures:
    async with FakeDocker() as docker:
        ids = [docker.run(f"c{number}", project=f"p{number % 10}") for number in range(CONTAINERS)]
        steps = itertools.cycle([*((docker.pause, id) for id in ids), *((docker.unpause, id) for id in ids)])
        with Target(MOBY, str(docker.path), "fake").measured("read", who, readers) as program:
            await asyncio.to_thread(program.answer)
            for number, (step, id) in enumerate(itertools.islice(steps, EVENTS)):
                step(id)
                if number % BATCH == 0:
                    await docker.until(lambda: docker.unsent < UNSENT)
                    await asyncio.sleep(0)
            docker.run("last")
            return await asyncio.to_thread(program.answer)


def _afresh(command: str, rounds: int, target: Target, options: argparse.Namespace) -> dict[str, list[Figures]]:
    """Start contenders by turns, and let each tell its first figures."""

    def tell(who: str) -> Figures:
        if who != "peer":
            with target.measured(command, who) as program:
                return program.answer()
        with Program("sync", target.kind.name, target.socket, command=options.peer) as program:
            said = json.loads(program.communicate(timeout=TIMEOUT)[0].splitlines()[-1])
        return {"seconds": said["ready_s"], "cpu": said["cpu_s"], "rss": said["rss_kb"] / 1024}

    contenders = {"ours": "ours", target.kind.bare: "bare"} | ({"peer": "peer"} if options.peer else {})
    return by_turns(f"{command} in fresh processes", rounds, contenders, tell)


def sync(target: Target, options: argparse.Namespace) -> Iterator[Row]:
    """Synchronise by turns: in fresh processes, then in one that is warm."""
    fresh = _afresh("sync", options.rounds, target, options)
    rounds = WARM_UP + options.rounds
    names = {"ours": "ours", target.kind.bare: "bare"}
    with target.measured("sync", *in_turn(names.values(), rounds)) as program:
        warm = by_turns("sync in a warm process", rounds, names, lambda _: program.answer())
    warm = {name: figures[WARM_UP:] for name, figures in warm.items()}
    for state, took in (("fresh", fresh), ("warm", warm)):
        what = f"initial sync of {took['ours'][0]['containers']:.0f}, {state} process"
        seconds = Measure("seconds", what, "ms", 1e3, "ratio ≤ 1.3")
        cpu = Measure("cpu", f"{what}, CPU of it", "ms", 1e3)
        yield from rows((seconds, cpu), took, beside=target.kind.bare)


def memory(target: Target, options: argparse.Namespace) -> Iterator[Row]:
    """Watch in fresh processes, and look at their memory and calls."""
    took = _afresh("follow", min(options.rounds, 5), target, options)
    resident = Measure("rss", "resident memory of a watch", "MB", target="< 45 MB" if target.kind is MOBY else "")
    proportional = Measure("pss", "proportional memory of a watch", "MB")
    calls = Measure("calls", f"calls of a sync of {took['ours'][0]['containers']:.0f} and of its confirmation")
    yield from rows((resident, proportional, calls), took, beside=target.kind.bare)


def idle(target: Target, options: argparse.Namespace) -> Iterator[Row]:
    """Watch in three processes at once for a while in which nothing happens."""
    progress(f"idle, {options.idle_seconds:g} s")
    arguments: dict[str, list[object]] = {"ours": ["ours"], target.kind.bare: ["bare"], "auditing": ["ours", AUDIT]}
    took: dict[str, list[Figures]] = {}
    with contextlib.ExitStack() as stack:
        programs = {name: stack.enter_context(target.measured("follow", *more)) for name, more in arguments.items()}
        before = {name: program.answer() for name, program in programs.items()}
        time.sleep(options.idle_seconds)
        for name, program in programs.items():
            after = program.finish()
            spent = {key: after[key] - value for key, value in before[name].items()}
            took[name] = [spent | {"minute": spent["cpu"] / spent["clock"] * 60}]
    what = f"CPU of an idle watch of {before['ours']['containers']}, per minute"
    yield from rows([Measure("minute", what, "ms", 1e3)], took, beside=target.kind.bare)
    (quiet,), (auditing,) = took["ours"], took["auditing"]
    if audits := auditing["audits"]:
        took["audit"] = [{"cpu": (auditing["cpu"] - quiet["cpu"]) / audits}]
        audit = Measure("cpu", "CPU of one audit (every 5 minutes by default)", "ms", 1e3)
        yield from rows([audit], took, "audit")
