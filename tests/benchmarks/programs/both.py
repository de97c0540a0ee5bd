"""Both synchronisations by turns in one process, warm: `python -m tests.benchmarks.programs.both SOCKET ROUNDS`."""

from __future__ import annotations

import asyncio
import gc
import sys

from tests.benchmarks.programs import bare, ours
from tests.benchmarks.programs.process import say

WARM_UP = 2  # rounds
PAUSE = 0.1  # seconds, for what a closed connection leaves to the engine


async def main(socket: str, rounds: int) -> None:
    contenders = {"ours": ours.timed, "bare": bare.timed}
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
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
