"""What a watch of a still engine costs: memory, modules, time to import, and CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.benchmarks import run
from tests.benchmarks.figures import Row, Spread, paired

IMPORT = """
import sys, time
before = time.perf_counter()
import {module}
seconds = time.perf_counter() - before
grpc = sum(name.partition(".")[0] in ("grpc", "google") for name in sys.modules)
print('{{"seconds": %f, "modules": %d, "grpc": %d}}' % (seconds, len(sys.modules), grpc))
"""

AUDIT = 2.0  # seconds between audits, to see what one costs; 300 by default


def imports(rounds: int, progress: Callable[[str], None]) -> Iterator[Row]:
    """Import whalewatch and what it builds on, by turns, in fresh processes."""
    modules = ("whalewatch.moby", "aiodocker", "aiohttp")
    took: dict[str, list[dict[str, float]]] = {module: [] for module in modules}
    for turn in range(rounds):
        progress(f"imports, {turn + 1} of {rounds}")
        for module in modules if turn % 2 else reversed(modules):
            took[module].append(run.python(IMPORT.format(module=module)))
    ours = took["whalewatch.moby"]
    for module in modules[1:]:
        for what, unit, key, factor in (("import of", "ms", "seconds", 1e3), ("modules loaded by", "", "modules", 1)):
            our, their = ([one[key] * factor for one in sample] for sample in (ours, took[module]))
            yield Row(
                benchmark="import",
                what=f"{what} whalewatch.moby",
                unit=unit,
                ours=Spread.of(our),
                beside=Spread.of(their),
                beside_is=module,
                ratio=paired(our, their),
            )
    yield Row(
        benchmark="import",
        what="gRPC modules loaded by whalewatch.moby",
        unit="",
        ours=Spread.of(one["grpc"] for one in ours),
        target="0",
    )


def memory(
    socket: str, engine: str, rounds: int, peer: run.Peer | None, progress: Callable[[str], None]
) -> Iterator[Row]:
    """Watch in fresh processes, and look at their memory."""
    ours, bare, peers = [], [], []
    for turn in range(rounds):
        progress(f"memory, {turn + 1} of {rounds}")
        ours.append(run.once("ours", "watch", socket, 0)["before"])
        bare.append(run.once("bare", "watch", socket, 0)["before"])
        if peer is not None:
            peers.append(peer.sync(socket)["rss_kb"] / 1024)
    for what, key, target in (("resident memory", "rss", "< 45 MB"), ("proportional memory", "pss", "")):
        our, their = ([one[key] for one in sample] for sample in (ours, bare))
        yield Row(
            benchmark="memory",
            what=f"{what} of a watch",
            unit="MB",
            engine=engine,
            ours=Spread.of(our),
            beside=Spread.of(their),
            beside_is="bare session",
            ratio=paired(our, their),
            peer=Spread.of(peers) if peers and key == "rss" else None,
            target=target,
        )


def idle(socket: str, engine: str, seconds: float, progress: Callable[[str], None]) -> Iterator[Row]:
    """Watch in three processes at once for a while in which nothing happens."""
    progress(f"idle, {seconds:g} s")
    with (
        run.program("ours", "watch", socket, seconds) as ours,
        run.program("ours", "watch", socket, seconds, AUDIT) as auditing,
        run.program("bare", "watch", socket, seconds) as bare,
    ):
        quiet, busy, still = (one.finish() for one in (ours, auditing, bare))
    used, used_busy, used_still = (one["after"]["cpu"] - one["before"]["cpu"] for one in (quiet, busy, still))
    yield Row(
        benchmark="idle",
        what=f"CPU of an idle watch of {quiet['containers']}, per minute",
        unit="ms",
        engine=engine,
        ours=Spread.of([used / seconds * 60e3]),
        beside=Spread.of([used_still / seconds * 60e3]),
        beside_is="bare session",
    )
    if busy["audits"]:
        yield Row(
            benchmark="idle",
            what="CPU of one audit (every 5 minutes by default)",
            unit="ms",
            engine=engine,
            ours=Spread.of([(used_busy - used) / busy["audits"] * 1e3]),
        )
