"""What watches cost, beside what does the same with a bare session or channel: to import, begin, follow and keep."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

from tests.benchmarks.engine import CONTAINERD, MOBY, Target
from tests.benchmarks.figures import Figures, Measure, Row, by_turns, in_turn, progress, rows
from tests.benchmarks.processes import TIMEOUT, Program, measured
from tests.benchmarks.programs import contender

IMPORT = """
import json, sys, time
before = time.perf_counter()
import {}
seconds = time.perf_counter() - before
grpc = sum(name.partition(".")[0] in ("grpc", "google") for name in sys.modules)
print(json.dumps({{"seconds": seconds, "modules": len(sys.modules), "grpc": grpc}}))
"""
IMPORTS = {"whalewatch.moby": ("aiodocker", "aiohttp"), "whalewatch.containerd": ("grpc.aio",)}
"""Modules, and what each is measured beside."""

EVENTS = 5_000
CONTAINERS = 100
READERS = (1, 10, 100)

WARM_UP = 2  # rounds

AUDIT = 2.0  # seconds between audits, to see what one costs; 300 by default


def imports(options: argparse.Namespace) -> Iterator[Row]:
    """Import whalewatch and what it builds on, by turns, in fresh processes."""

    def imported(module: str) -> Figures:
        with Program("-c", IMPORT.format(module)) as program:
            return program.answer()

    modules = [module for ours, others in IMPORTS.items() for module in (ours, *others)]
    took = by_turns("imports", options.rounds, dict(zip(modules, modules, strict=True)), imported)
    for ours, others in IMPORTS.items():
        seconds = Measure("seconds", f"import of {ours}", "ms", 1e3)
        loaded = Measure("modules", f"modules loaded by {ours}")
        for other in others:
            yield from rows((seconds, loaded), took, ours, other)
    yield from rows([Measure("grpc", "gRPC modules loaded by whalewatch.moby", target="0")], took, "whalewatch.moby")


def throughput(options: argparse.Namespace) -> Iterator[Row]:
    """Let a fake engine in another process tell events, to readers of ours or to a bare reader."""
    contenders = {"one bare reader": ("bare", 1)} | {str(count): ("ours", count) for count in READERS}
    with Program("-m", "tests.benchmarks.programs.fake", CONTAINERS) as engine:
        socket = engine.answer()["socket"]

        def read(contender: tuple[str, int]) -> Figures:
            return asyncio.run(_read(engine, socket, *contender))

        took = by_turns(f"{EVENTS} events", options.rounds, contenders, read)
    for count in READERS:
        seconds = Measure("seconds", f"{EVENTS:,} events, subscriptions: {count}", "ms", 1e3)
        cpu = Measure("cpu", f"CPU of it, subscriptions: {count}", "ms", 1e3)
        yield from rows((seconds, cpu), took, str(count), "one bare reader")


async def _read(engine: Program, socket: str, who: str, readers: int) -> dict[str, float]:
    async def read_to_the_last(one: Any) -> None:
        # Not counted: an event that an inspect has read already is rightly not told again.
        async with contextlib.aclosing(one.events()) as events:
            async for type_, *_ in events:
                if type_ == "started":
                    return

    async with contender(who, "moby", socket) as one:
        reading = [asyncio.create_task(read_to_the_last(one)) for _ in range(readers)]
        await asyncio.sleep(0.2)  # until all of them wait, and the confirming listing has been made
        before, cpu = time.perf_counter(), time.process_time()
        engine.ask(str(EVENTS))
        async with asyncio.timeout(TIMEOUT):
            await asyncio.gather(*reading)
        took = {"seconds": time.perf_counter() - before, "cpu": time.process_time() - cpu}
        await asyncio.to_thread(engine.answer)
        return took


def _contenders(target: Target, options: argparse.Namespace) -> dict[str, str]:
    return {"ours": "ours", target.kind.bare: "bare"} | ({"peer": "peer"} if options.peer else {})


def _peer_synced(target: Target, options: argparse.Namespace) -> Figures:
    with Program("sync", target.kind.name, target.socket, command=options.peer) as program:
        said = json.loads(program.communicate(timeout=TIMEOUT)[0].splitlines()[-1])
    return {"seconds": said["ready_s"], "cpu": said["cpu_s"], "rss": said["rss_kb"] / 1024}


def sync(target: Target, options: argparse.Namespace) -> Iterator[Row]:
    """Synchronise by turns: in fresh processes, then in one that is warm."""

    def synced(who: str) -> Figures:
        if who == "peer":
            return _peer_synced(target, options)
        with measured("sync", target, who) as program:
            return program.answer()

    fresh = by_turns("sync in fresh processes", options.rounds, _contenders(target, options), synced)
    progress("sync in a warm process")
    order = in_turn(("ours", "bare"), WARM_UP + options.rounds)
    with measured("sync", target, *order) as program:
        told = [(who, program.answer()) for who in order][2 * WARM_UP :]
    warm = {
        name: [one for who, one in told if who == whose]
        for name, whose in (("ours", "ours"), (target.kind.bare, "bare"))
    }
    for state, took in (("fresh", fresh), ("warm", warm)):
        what = f"initial sync of {took['ours'][0]['containers']:.0f}, {state} process"
        seconds = Measure("seconds", what, "ms", 1e3, "ratio ≤ 1.3")
        cpu = Measure("cpu", f"{what}, CPU of it", "ms", 1e3)
        yield from rows((seconds, cpu), took, beside=target.kind.bare)


def _still(target: Target, who: str) -> Figures:
    with measured("follow", target, who) as program:
        return program.answer()


def calls(target: Target, options: argparse.Namespace) -> Iterator[Row]:
    """Count what a synchronisation asks of containerd, with the listing that confirms it.

    Of Docker it asks one call, and one for each container.
    """
    if target.kind is CONTAINERD:
        took = {"ours": [_still(target, "ours")], target.kind.bare: [_still(target, "bare")]}
        what = f"calls of a sync of {took['ours'][0]['containers']:.0f} and of its confirmation"
        yield from rows([Measure("calls", what)], took, beside=target.kind.bare)


def memory(target: Target, options: argparse.Namespace) -> Iterator[Row]:
    """Watch in fresh processes, and look at their memory."""

    def watched(who: str) -> Figures:
        return _peer_synced(target, options) if who == "peer" else _still(target, who)

    took = by_turns("memory", min(options.rounds, 5), _contenders(target, options), watched)
    resident = Measure("rss", "resident memory of a watch", "MB", target="< 45 MB" if target.kind is MOBY else "")
    yield from rows((resident, Measure("pss", "proportional memory of a watch", "MB")), took, beside=target.kind.bare)


def idle(target: Target, options: argparse.Namespace) -> Iterator[Row]:
    """Watch in three processes at once for a while in which nothing happens."""
    progress(f"idle, {options.idle_seconds:g} s")
    arguments: dict[str, list[object]] = {"ours": ["ours"], target.kind.bare: ["bare"], "auditing": ["ours", AUDIT]}
    took: dict[str, list[Figures]] = {}
    with contextlib.ExitStack() as stack:
        programs = {name: stack.enter_context(measured("follow", target, *more)) for name, more in arguments.items()}
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
