"""Run chaos and tell what came of it: `python -m tests.chaos --help`."""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from tests.chaos.containerd import ContainerdWorld
from tests.chaos.cri import CRIWorld
from tests.chaos.docker import DockerWorld
from tests.chaos.run import Chaos, Report
from tests.chaos.world import World
from tests.support.engines import leaks

WORLDS: dict[str, Callable[[random.Random], AbstractAsyncContextManager[World]]] = {
    "docker-20.10": lambda dice: DockerWorld("20.10", dice),
    "docker-26.1": lambda dice: DockerWorld("26.1", dice),
    "containerd-1.6": lambda dice: ContainerdWorld("1.6", dice),
    "containerd-1.7": lambda dice: ContainerdWorld("1.7", dice),
    "cri-1.6-native": lambda dice: CRIWorld("1.6", "native", dice),
    "cri-1.6-poll": lambda dice: CRIWorld("1.6", "poll", dice),
    "cri-1.7-native": lambda dice: CRIWorld("1.7", "native", dice),
    "cri-1.7-pod-events": lambda dice: CRIWorld("1.7", "pod-events", dice),
    "cri-1.7-poll": lambda dice: CRIWorld("1.7", "poll", dice),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, tell, and return 1 if anything was wrong."""
    options = _options().parse_args(arguments)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**9)
    _tell(f"chaos in {options.engine}, {options.seconds:g} s, seed {seed}")
    before = leaks.Held.now()
    try:
        report = asyncio.run(_run(options, seed))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    report.leaks += before.leaked()
    _tell(_told(report))
    return 1 if report.divergences or report.leaks else 0


async def _run(options: argparse.Namespace, seed: int) -> Report:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # the engine is ended in any case
    dice = random.Random(seed)
    began = time.monotonic()

    def tell(line: str) -> None:
        if not options.quiet:
            _tell(f"{time.monotonic() - began:7.1f} s  {line}")

    async with WORLDS[options.engine](dice) as world:
        report = await Chaos(world, dice, tell, options.only).run(options.seconds)
    report.leaks += await leaks.leaked_tasks()
    return report


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _told(report: Report) -> str:
    lines = [f"{report.seconds:.0f} s, {report.rounds} rounds"]
    for what, counts in {"operations": report.operations, "faults": report.faults}.items():
        each = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
        lines.append(f"{counts.total()} {what} of {len(counts)} kinds: {each}")
    lines += [f"{count} {what}" for what, count in sorted(report.counts.items())]
    for swallowed, took in report.converged.items():
        if took:
            which = "with events swallowed" if swallowed else "without events swallowed"
            lines.append(
                f"{len(took)} rounds {which}: converged in {sorted(took)[len(took) // 2]:.2f} s (median), "
                f"{max(took):.2f} s (longest)"
            )
    lines += [
        f"outages: {dict(report.outages)}; only audits found: {dict(report.drift)}",
        f"{len(report.divergences)} divergences, {len(report.leaks)} leaks",
        *(f"the engine told: {line}" for line in report.heard),
        *(f"divergence: {line}" for line in report.divergences),
        *(f"leak: {line}" for line in report.leaks),
    ]
    return "\n".join(lines)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--engine", choices=sorted(WORLDS), default="docker-26.1")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long; the last round is finished")
    parser.add_argument("--seed", type=int, help="of all choices; timing still differs from run to run")
    parser.add_argument("--only", default="", metavar="WORDS", help="faults with these words in their name, no others")
    parser.add_argument("--quiet", action="store_true", help="tell the outcome only")
    return parser


if __name__ == "__main__":
    sys.exit(main())
