"""Tell why containers are not healthy: python examples/health.py [ADDRESS].

What the picture does not have, such as the output of a health check, a rucksack carries along.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from whalewatch import Container, Health, moby


def pack(_container: Container, inspection: Mapping[str, Any]) -> tuple[float, str]:
    """Return the seconds between two checks (30 by default), and what the last one has said."""
    check = inspection["Config"].get("Healthcheck") or {}
    log = (inspection["State"].get("Health") or {}).get("Log") or [{}]
    return (check.get("Interval") or 30e9) / 1e9, log[-1].get("Output", "")


async def main(address: str | None = None) -> None:
    """Follow the engine until Ctrl-C."""
    async with moby.watch(address, pack=pack) as watcher:
        async for event in watcher.events():
            container = event.container
            if container.health is Health.UNHEALTHY and container.rucksack:
                interval, output = container.rucksack
                print(f"{container.name!r} is unhealthy, checked every {interval:g} s: {output!r}", flush=True)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:2]))
