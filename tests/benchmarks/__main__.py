"""Run the benchmarks and print a table: `python -m tests.benchmarks --help`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from tests.benchmarks import latency, lookups, sync, throughput, watching
from tests.benchmarks.engine import CONTAINERD_VERSIONS, CONTAINERS, DOCKER_VERSIONS, Target, engine, fill, target
from tests.benchmarks.figures import Row, table
from tests.benchmarks.run import Peer
from tests.support.engines import install

WITHOUT_ENGINE = ("lookups", "changes", "throughput", "import")
WITH_ENGINE = ("sync", "calls", "latency", "memory", "idle")
VERSIONS = (*DOCKER_VERSIONS, *CONTAINERD_VERSIONS)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options().parse_args(arguments)
    wanted = options.benchmark or [*WITHOUT_ENGINE, *WITH_ENGINE]
    peer = Peer(tuple(shlex.split(options.peer))) if options.peer else None
    rows: list[Row] = []
    started = datetime.now(UTC)
    for row in _measured(options, wanted, peer):
        rows.append(row)
        if options.json:  # what there is survives an interrupt
            options.json.write_text(_json(rows, started))
    _progress("")
    sys.stdout.write(f"{_circumstances(started)}\n\n{table(rows)}\n\n")
    if peer is None and not {"sync", "latency", "memory"}.isdisjoint(wanted):
        sys.stdout.write("No other program was given (--peer), so that there is no column of one.\n")
    if any(row.benchmark == "latency" and not row.engine.startswith("containerd") for row in rows):
        sys.stdout.write(f"For reference, the median latency of another program: {latency.REFERENCE}.\n")
    return 0


def _measured(options: argparse.Namespace, wanted: Sequence[str], peer: Peer | None) -> Iterator[Row]:
    rounds: int = options.rounds
    if "lookups" in wanted:
        yield from lookups.measure(rounds, _progress)
    if "changes" in wanted:
        yield from throughput.changes(rounds, _progress)
    if "throughput" in wanted:
        yield from throughput.through(rounds, _progress)
    if "import" in wanted:
        yield from watching.imports(rounds, _progress)
    if set(wanted).isdisjoint(WITH_ENGINE):
        return
    for engine_version in options.engine or VERSIONS:
        if why := install.missing(engine_version):
            _progress(f"engine {engine_version} is left out: {why}\n")
            continue
        _progress(f"engine {engine_version} starts")
        with engine(engine_version) as running:
            one = target(running)
            asyncio.run(fill(one, options.containers or CONTAINERS[one.kind], _progress))
            time.sleep(options.settle)
            yield from _with_engine(one, options, wanted, peer)
            _progress(f"engine {engine_version} ends")


def _with_engine(
    target: Target, options: argparse.Namespace, wanted: Sequence[str], peer: Peer | None
) -> Iterator[Row]:
    if "sync" in wanted:
        yield from sync.measure(target, options.rounds, peer, _progress)
    if "calls" in wanted and target.kind == "containerd":  # those of Docker are one and one for each container
        yield from watching.calls(target, _progress)
    if "latency" in wanted:
        yield from latency.measure(target, options.events, peer, _progress)
    if "memory" in wanted:
        yield from watching.memory(target, min(options.rounds, 5), peer, _progress)
    if "idle" in wanted:
        yield from watching.idle(target, options.idle_seconds, _progress)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Measure whalewatch beside a bare aiohttp session or a bare gRPC channel. Nothing is asserted. The "
        "engine is started for the purpose, with data of its own, which takes root.",
    )
    add = parser.add_argument
    names = [*WITHOUT_ENGINE, *WITH_ENGINE]
    add("benchmark", nargs="*", choices=[[], *names], metavar="BENCHMARK", help=f"of {', '.join(names)}; default: all")
    add(
        "--engine",
        action="append",
        choices=VERSIONS,
        help="version of Docker or containerd; may be repeated; default: all",
    )
    add("--rounds", type=int, default=15, help="repetitions of everything that is measured by turns (default: 15)")
    add("--events", type=int, default=100, help="starts, pauses and kills whose latency is measured (default: 100)")
    counts = ", ".join(f"{count} for {kind}" for kind, count in CONTAINERS.items())
    add("--containers", type=int, help=f"containers in the engine (default: {counts})")
    add("--idle-seconds", type=float, default=30.0, help="how long nothing happens (default: 30)")
    add("--settle", type=float, default=10.0, help="seconds to wait once the containers run (default: 10)")
    add("--json", type=Path, metavar="FILE", help="write all figures to this file too")
    add(
        "--peer",
        metavar="COMMAND",
        default=os.environ.get("WHALEWATCH_PEER"),
        help="another program to measure beside it; docs/benchmarks.md tells what it must understand "
        "(default: $WHALEWATCH_PEER)",
    )
    return parser


def _circumstances(started: datetime) -> str:
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("aiohttp", "aiodocker", "grpcio", "protobuf", "attrs", "tenacity")
    )
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{started:%Y-%m-%d %H:%M} UTC, {platform.machine()}, {os.cpu_count()} cores, load at the end {load}; "
        f"Python {platform.python_version()}, {packages}. Medians."
    )


def _json(rows: Sequence[Row], started: datetime) -> str:
    return json.dumps({"circumstances": _circumstances(started), "rows": [row.as_json() for row in rows]}, indent=1)


def _progress(what: str) -> None:
    """Show one line on a terminal, and a line each elsewhere."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{what}")
    elif what:
        sys.stderr.write(what.rstrip() + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
