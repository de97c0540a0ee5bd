"""How long the initial synchronisation takes, beside the same calls on a bare session or channel."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.benchmarks import run
from tests.benchmarks.engine import Target
from tests.benchmarks.figures import Row

PAUSE = 0.1  # seconds, for what an ended process leaves to the engine


def measure(target: Target, rounds: int, peer: run.Peer | None, progress: Callable[[str], None]) -> Iterator[Row]:
    """Synchronise by turns: in fresh processes, then in one that is warm."""
    contenders: dict[str, Callable[[], dict[str, Any]]] = {
        "ours": lambda: run.once("ours", "sync", target.kind, target.socket),
        "bare": lambda: run.once(target.bare, "sync", target.socket),
    }
    if peer is not None:
        contenders["peer"] = lambda: {
            "seconds": (said := peer.sync(target.kind, target.socket))["ready_s"],
            "cpu": said["cpu_s"],
        }
    fresh: list[dict[str, dict[str, float]]] = []
    for turn in range(rounds):
        progress(f"synchronisation in fresh processes, {turn + 1} of {rounds}")
        took = {}
        for name in contenders if turn % 2 else reversed(contenders):
            time.sleep(PAUSE)
            took[name] = contenders[name]()
        fresh.append(took)
    progress("synchronisation in a warm process")
    warm = list(run.each("both", target.kind, target.bare, target.socket, rounds))
    containers = round(warm[0]["ours"]["containers"])
    for state, turns in (("fresh process", fresh), ("warm process", warm)):
        for what, key in (("", "seconds"), (", CPU of it", "cpu")):
            ours, bare, peers = (
                [turn[name][key] * 1e3 for turn in turns if name in turn] for name in ("ours", "bare", "peer")
            )
            yield Row.of(
                *("sync", f"initial sync of {containers}, {state}{what}", "ms", ours, (target.bare_is, bare)),
                engine=target.version,
                peer=peers,
                target="ratio ≤ 1.3" if key == "seconds" else "",
            )
