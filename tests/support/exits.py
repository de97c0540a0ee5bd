"""A program that prints exits of a Docker engine's containers: `python -m tests.support.exits ADDRESS [NAME=VALUE]`.

It begins with a line of JSON, `KernelStats`; each exit is a line with its origin and code. `user=65534` gives up its
privileges first, `files=64` bounds its descriptors.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys

from whalewatch import EventType, moby


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def main(address: str, *, user: int = 0, files: int = 0) -> None:
    watcher = moby.watch(address, heartbeat=60.0, audit=None)
    if files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if user:  # after all has been imported, from folders that may be root's
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    async with watcher, watcher.events(types={EventType.EXITED}) as events:
        await watcher.ready(30)
        say(json.dumps(watcher.stats.kernel.to_dict()))
        for _ in range(len(watcher.portfolio.snapshot())):
            event = await anext(events)
            say(f"{event.origin.value} {event.exit_code}")
        assert watcher.stats.outages == 0


if __name__ == "__main__":
    numbers = {name: int(number) for name, _, number in (text.partition("=") for text in sys.argv[2:])}
    asyncio.run(main(sys.argv[1], **numbers))
