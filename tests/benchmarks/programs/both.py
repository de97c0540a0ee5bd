"""Both synchronisations by turns in one process, warm.

`python -m tests.benchmarks.programs.both moby|containerd PROGRAM SOCKET ROUNDS`, with the bare program of that engine.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import importlib
import sys

from tests.benchmarks.programs import ours
from tests.benchmarks.programs.process import say

WARM_UP = 2  # rounds
PAUSE = 0.1  # seconds, for what a closed connection leaves to the engine


async def main(kind: str, bare: str, socket: str, rounds: int) -> None:
    contenders = {
        "ours": functools.partial(ours.timed, ours.watch_of(kind)),
        "bare": importlib.import_module(f"tests.benchmarks.programs.{bare}").timed,
    }
    for turn in range(-WARM_UP, rounds):
        order = list(contenders) if turn % 2 else list(reversed(contenders))
        took = {}
        for name in order:
            gc.collect()
            await asyncio.sleep(PAUSE)
            took[name] = await contenders[name](socket)
        if turn >= 0:
            say(**took)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
