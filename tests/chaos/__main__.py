"""Run chaos and tell what came of it: `python -m tests.chaos --help`."""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from statistics import median
from typing import get_args

from tests.chaos.containerd import ContainerdWorld
from tests.chaos.cri import CRIWorld, Source
from tests.chaos.docker import DockerWorld
from tests.chaos.run import Chaos, Report
from tests.chaos.world import World
from tests.support.debian import say
from tests.support.engines import containerd, dockerd, leaks

WORLDS: dict[str, Callable[[random.Random], AbstractAsyncContextManager[World]]] = {
    **{f"docker-{version}": partial(DockerWorld, version) for version in get_args(dockerd.Version)},
    **{f"containerd-{version}": partial(ContainerdWorld, version) for version in get_args(containerd.Version)},
    **{f"cri-1.6-{source}": partial(CRIWorld, "1.6", source) for source in ("native", "poll")},
    **{f"cri-1.7-{source}": partial(CRIWorld, "1.7", source) for source in get_args(Source)},
}


def main() -> int:
    """Run, tell, and return 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--engine", choices=sorted(WORLDS), default="docker-26.1")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long; the last round is finished")
    parser.add_argument("--seed", type=int, help="of all choices; timing still differs from run to run")
    parser.add_argument("--only", default="", metavar="WORDS", help="faults with these words in their name, no others")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**9)
    say(f"chaos in {options.engine}, {options.seconds:g} s, seed {seed}")
    before = leaks.Held.now()
    try:
        report = asyncio.run(_run(options, random.Random(seed)))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    report.leaks += before.leaked()
    _tell(report)
    return 1 if report.divergences or report.leaks else 0


async def _run(options: argparse.Namespace, dice: random.Random) -> Report:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # the engine is ended in any case
    began = time.monotonic()

    def tell(line: str) -> None:
        say(f"{time.monotonic() - began:7.1f} s  {line}")

    async with WORLDS[options.engine](dice) as world:
        report = await Chaos(world, dice, tell, options.only).run(options.seconds)
    report.leaks += await leaks.leaked_tasks()
    return report


def _tell(report: Report) -> None:
    say(f"{report.seconds:.0f} s, {report.rounds} rounds")
    for what, counts in {"operations": report.operations, "faults": report.faults}.items():
        each = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
        say(f"{counts.total()} {what} of {len(counts)} kinds: {each}")
    for what, count in sorted(report.counts.items()):
        say(f"{count} {what}")
    for swallowed, took in report.converged.items():
        if took:
            which = f"{len(took)} rounds {'with' if swallowed else 'without'} events swallowed"
            say(f"{which}: converged in {median(took):.2f} s (median), {max(took):.2f} s (longest)")
    say(f"outages: {dict(report.outages)}; only audits found: {dict(report.drift)}")
    say(f"{len(report.divergences)} divergences, {len(report.leaks)} leaks")
    for kind, lines in {"divergence": report.divergences, "leak": report.leaks, "told": report.heard}.items():
        for line in lines:
            say(f"{kind}: {line}")


if __name__ == "__main__":
    sys.exit(main())
