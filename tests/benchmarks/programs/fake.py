"""A fake engine in a process of its own: `python -m tests.benchmarks.programs.fake CONTAINERS`.

It says its address, then tells as many events as each line on its stdin asks for, pause and unpause by turns, and at
last starts a container.
"""

from __future__ import annotations

import asyncio
import itertools
import sys

from tests.benchmarks.programs import say
from whalewatch.testing import FakeDocker

BATCH = 50  # events between looks at whether the reader keeps up
UNSENT = 200  # events that may wait; a reader of Docker's that falls 1,024 behind loses some


async def main(containers: int) -> None:
    async with FakeDocker() as docker:
        ids = [docker.run(f"c{number}", project=f"p{number % 10}") for number in range(containers)]
        last = docker.create("last")
        say(socket=str(docker.path))
        while line := await asyncio.to_thread(sys.stdin.readline):
            steps = itertools.cycle([*((docker.pause, id) for id in ids), *((docker.unpause, id) for id in ids)])
            for number, (step, id) in enumerate(itertools.islice(steps, int(line)), start=1):
                step(id)
                if number % BATCH == 0:
                    await docker.until(lambda: docker.unsent < UNSENT)
                    await asyncio.sleep(0)
            docker.restart(last)
            say(told=int(line))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
