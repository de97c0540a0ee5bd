"""Keep a file with a line for each published port: python examples/routes.py FILE [ADDRESS].

The file is replaced as a whole, half a second after the last of a batch of changes. It begins when in sync; during an
outage it stays as it was.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from pathlib import Path

from whalewatch import Snapshot, moby


def routes(picture: Snapshot) -> str:
    """Return the lines of the file: name, address and port of each container with a published port."""
    found = {
        f"{container.name} {port.host_ip} {port.host_port}\n"
        for container in picture
        for port in container.ports
        if port.host_port
    }
    return "".join(sorted(found))


def replace(path: Path, text: str) -> None:
    """Write a file so that nobody sees a half of it."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


async def main(path: str, address: str | None = None) -> None:
    """Write the file until Ctrl-C."""
    async with moby.watch(address) as watcher:
        async for picture in watcher.portfolio.changes(debounce=0.5):
            await asyncio.to_thread(replace, Path(path), routes(picture))
            print(f"revision {picture.revision}: {len(picture)} containers", flush=True)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:3]))
