"""Run the benchmarks and print a table: `python -m tests.benchmarks --help`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from tests.benchmarks import exits, latency, pictures, recovery, watches
from tests.benchmarks.engine import CONTAINERD, KINDS, MOBY, Target, installed
from tests.benchmarks.figures import Row, progress, table

BY_THEMSELVES = {
    "lookups": pictures.lookups,
    "changes": pictures.changes,
    "throughput": watches.throughput,
    "import": watches.imports,
    "recovery": recovery.measure,
    "exits": exits.measure,
}
WITH_ENGINE = {
    "sync": watches.sync,
    "latency": latency.measure,
    "memory": watches.memory,
    "idle": watches.idle,
}

REFERENCE = (
    "For reference, the Go module whalewatcher 2.0.1 with Docker, measured on another day: median latency 0.95 ms.\n"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, and return 1 if anything took longer than it may."""
    options = _options().parse_args(arguments)
    started = datetime.now(UTC)
    rows: list[Row] = []
    for row in _measured(options):
        rows.append(row)
        if options.json:  # what there is survives an interrupt
            told = {"circumstances": _circumstances(started), "rows": [asdict(row) for row in rows]}
            options.json.write_text(json.dumps(told, indent=1))
    sys.stdout.write(f"{_circumstances(started)} Seed {options.seed}.\n\n{table(rows)}\n\n")
    if any(row.benchmark == "latency" for row in rows):
        sys.stdout.write(REFERENCE)
    return int(not rows or any(max(row.ours, default=0.0) > row.measure.bound for row in rows))


def _measured(options: argparse.Namespace) -> Iterator[Row]:
    wanted = options.benchmark or {*BY_THEMSELVES, *WITH_ENGINE} - {"recovery", "exits"}
    for name, measure in BY_THEMSELVES.items():
        if name in wanted:
            yield from (replace(row, benchmark=name) for row in measure(options))
    for engine_version in installed(KINDS, options) if not WITH_ENGINE.keys().isdisjoint(wanted) else ():
        kind = KINDS[engine_version]
        progress(f"engine {engine_version} starts")
        with kind.engine(engine_version) as running:
            target = Target(kind, str(running.socket), f"{type(running).__name__} {running.version}")
            asyncio.run(target.fill(options.containers or kind.containers))
            time.sleep(options.settle)
            for name, measure_with in WITH_ENGINE.items():
                if name in wanted:
                    for row in measure_with(target, options):
                        yield replace(row, benchmark=name, engine=target.version)
            progress(f"engine {engine_version} ends")


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Measure whalewatch beside a bare protocol of asyncio's or a bare gRPC channel, and how soon it "
        "notices hangs and recovers from outages (some ten minutes, fails beyond the bounds). Engines are started for "
        "the purpose, with data of their own, which takes root.",
    )
    add = parser.add_argument
    names = [*BY_THEMSELVES, *WITH_ENGINE]
    told = f"of {', '.join(names)}; default: all but recovery and exits"
    add("benchmark", nargs="*", choices=[[], *names], metavar="BENCHMARK", help=told)
    add("--engine", action="append", choices=KINDS, help="version of Docker or containerd; repeatable; default: all")
    add("--rounds", type=int, default=15, help="repetitions of everything that is measured by turns (default: 15)")
    add("--events", type=int, default=100, help="starts, pauses and kills whose latency is measured (default: 100)")
    counts = ", ".join(f"{kind.containers} for {kind.name}" for kind in (MOBY, CONTAINERD))
    add("--containers", type=int, help=f"containers in the engine (default: {counts})")
    add("--idle-seconds", type=float, default=30.0, help="how long nothing happens (default: 30)")
    add("--settle", type=float, default=10.0, help="seconds to wait once the containers run (default: 10)")
    seed = random.SystemRandom().randrange(2**32)
    add("--seed", type=int, default=seed, help="of times and lengths of outages, to repeat a recovery")
    add("--json", type=Path, metavar="FILE", help="write all figures to this file too")
    peer = os.environ.get("WHALEWATCH_PEER")
    told = "another program to measure; docs/benchmarks.md tells what it must understand (default: $WHALEWATCH_PEER)"
    add("--peer", metavar="COMMAND", default=peer, help=told)
    return parser


def _circumstances(started: datetime) -> str:
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("httptools", "aiohttp", "grpcio", "protobuf", "attrs", "tenacity")
    )
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{started:%Y-%m-%d %H:%M} UTC, {platform.machine()}, {os.cpu_count()} cores, load at the end {load}; "
        f"Python {platform.python_version()}, {packages}. Medians."
    )


if __name__ == "__main__":
    sys.exit(main())
