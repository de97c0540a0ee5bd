"""A program that asks an engine once, and prints what that has cost: `python -m tests.grpc.refusing KIND ADDRESS ID`.

It prints one line when it is ready, and another one in the end: megabytes of memory, seconds for which the event loop
stood still, and what came of it.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from pathlib import Path
from typing import Literal

from whalewatch import WhalewatchError, containerd, cri


def peak() -> float:
    """The most memory that this process has had, in megabytes."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1000


async def main(kind: str, address: str, id: str) -> None:
    """Ask and print."""
    logging.disable()
    source: Literal["pod-events", "poll"] = "pod-events" if kind == "event" else "poll"
    engine = cri.CRIEngine(address, source=source) if "/cri" in address else containerd.ContainerdEngine(address)
    await engine.connect()
    signals = engine.signals()
    if kind == "event":
        await anext(signals)
    before, stall = peak(), 0.0
    print("ready", flush=True)  # noqa: T201 - that is how it talks

    async def beat() -> None:
        nonlocal stall
        while True:
            began = time.monotonic()
            await asyncio.sleep(0)
            stall = max(stall, time.monotonic() - began)
            await asyncio.sleep(0.001)

    beating = asyncio.create_task(beat())
    await asyncio.sleep(0)
    try:
        asking = engine.inspect(id) if kind == "inspect" else anext(signals) if kind == "event" else engine.listing()
        found = repr(await asking)
    except WhalewatchError as error:
        found = f"{type(error).__name__}: {error}"
    print(peak() - before, stall, found)  # noqa: T201 - likewise
    beating.cancel()
    await signals.aclose()  # type: ignore[attr-defined]
    await engine.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
