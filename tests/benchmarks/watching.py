"""What a watch of a still engine costs: memory, modules, time to import, and CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.benchmarks import run
from tests.benchmarks.engine import Target
from tests.benchmarks.figures import Row

IMPORT = """
import sys, time
before = time.perf_counter()
import {module}
seconds = time.perf_counter() - before
grpc = sum(name.partition(".")[0] in ("grpc", "google") for name in sys.modules)
print('{{"seconds": %f, "modules": %d, "grpc": %d}}' % (seconds, len(sys.modules), grpc))
"""

AUDIT = 2.0  # seconds between audits, to see what one costs; 300 by default


IMPORTS = {"whalewatch.moby": ("aiodocker", "aiohttp"), "whalewatch.containerd": ("grpc.aio",)}
"""Modules, and what each is measured beside."""


def imports(rounds: int, progress: Callable[[str], None]) -> Iterator[Row]:
    """Import whalewatch and what it builds on, by turns, in fresh processes."""
    modules = [module for ours, others in IMPORTS.items() for module in (ours, *others)]
    took: dict[str, list[dict[str, float]]] = {module: [] for module in modules}
    for turn in range(rounds):
        progress(f"imports, {turn + 1} of {rounds}")
        for module in modules if turn % 2 else reversed(modules):
            took[module].append(run.python(IMPORT.format(module=module)))
    for ours, others in IMPORTS.items():
        for module in others:
            kinds = (("import of", "ms", "seconds", 1e3), ("modules loaded by", "", "modules", 1))
            for what, unit, key, factor in kinds:
                our, their = ([one[key] * factor for one in took[name]] for name in (ours, module))
                yield Row.of("import", f"{what} {ours}", unit, our, (module, their))
    loaded = [one["grpc"] for one in took["whalewatch.moby"]]
    yield Row.of("import", "gRPC modules loaded by whalewatch.moby", "", loaded, target="0")


def calls(target: Target, progress: Callable[[str], None]) -> Iterator[Row]:
    """Count what a synchronisation asks of the engine, with the listing that confirms it."""
    progress("calls")
    ours = run.once("ours", "watch", target.kind, target.socket, 0)
    bare = run.once(target.bare, "watch", target.socket, 0)
    what = f"calls of a sync of {ours['containers']} and of its confirmation"
    our, their = ([sum(one["calls"].values())] for one in (ours, bare))
    yield Row.of("calls", what, "", our, (target.bare_is, their), engine=target.version)


def memory(target: Target, rounds: int, peer: run.Peer | None, progress: Callable[[str], None]) -> Iterator[Row]:
    """Watch in fresh processes, and look at their memory."""
    ours, bare, peers = [], [], []
    for turn in range(rounds):
        progress(f"memory, {turn + 1} of {rounds}")
        ours.append(run.once("ours", "watch", target.kind, target.socket, 0)["before"])
        bare.append(run.once(target.bare, "watch", target.socket, 0)["before"])
        if peer is not None:
            peers.append(peer.sync(target.kind, target.socket)["rss_kb"] / 1024)
    for what, key, hope in (
        ("resident memory", "rss", "< 45 MB" if target.kind == "moby" else ""),
        ("proportional memory", "pss", ""),
    ):
        our, their = ([one[key] for one in sample] for sample in (ours, bare))
        yield Row.of(
            *("memory", f"{what} of a watch", "MB", our, (target.bare_is, their)),
            engine=target.version,
            peer=peers if key == "rss" else [],
            target=hope,
        )


def idle(target: Target, seconds: float, progress: Callable[[str], None]) -> Iterator[Row]:
    """Watch in three processes at once for a while in which nothing happens."""
    progress(f"idle, {seconds:g} s")
    with (
        run.program("ours", "watch", target.kind, target.socket, seconds) as ours,
        run.program("ours", "watch", target.kind, target.socket, seconds, AUDIT) as auditing,
        run.program(target.bare, "watch", target.socket, seconds) as bare,
    ):
        quiet, busy, still = (one.finish() for one in (ours, auditing, bare))
    used, used_busy, used_still = (one["after"]["cpu"] - one["before"]["cpu"] for one in (quiet, busy, still))
    what = f"CPU of an idle watch of {quiet['containers']}, per minute"
    our, their = ([cpu / seconds * 60e3] for cpu in (used, used_still))
    yield Row.of("idle", what, "ms", our, (target.bare_is, their), engine=target.version)
    if busy["audits"]:
        each = (used_busy - used) / busy["audits"] * 1e3
        yield Row.of("idle", "CPU of one audit (every 5 minutes by default)", "ms", [each], engine=target.version)
