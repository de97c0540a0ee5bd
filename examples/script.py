"""Print what happens in a Docker engine, without an event loop, until Ctrl-C: python examples/script.py [ADDRESS]."""

from __future__ import annotations

import sys
from contextlib import suppress

import whalewatch
from whalewatch import moby


def main(address: str | None = None) -> None:
    """Follow the engine; Ctrl-C ends the loop, and leaving `with` ends the watch and its thread."""
    with whalewatch.in_thread(moby.watch(address)) as watcher:
        watcher.ready(timeout=10)
        for event in watcher.events():
            print(f"{event.type.value} {event.container.name!r}", flush=True)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main(*sys.argv[1:2])
