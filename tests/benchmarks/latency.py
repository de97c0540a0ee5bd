"""How long after the engine's own time stamp an event reaches its consumer."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from tests.benchmarks.engine import Program, Target
from tests.benchmarks.figures import Measure, Row, progress, rows

PAUSE = 0.01  # seconds between what is done to a container: the engine's own work is not to be in the way
SECONDS_PER_ROUND = 5.0  # far above anything measured; only another program needs to know

TYPES = {
    "exited": ("EXITED", "exited", "bare reader"),
    "paused": ("PAUSED", "paused", "bare reader"),
    "unpaused": ("UNPAUSED", "unpaused", "bare reader"),
    "started": ("STARTED, with its inspect", "inspected", "bare reader and inspect"),
}

Latencies = dict[tuple[str, str, int], float]
"""Milliseconds by type, id and the engine's time in whole microseconds, as whalewatch keeps it."""


def measure(target: Target, options: argparse.Namespace) -> Iterator[Row]:
    """Let everybody follow the same events at the same time, in two halves: who subscribes first matters a little."""
    heard: dict[str, Latencies] = {"ours": {}, "bare": {}, "peer": {}}
    for half, names in enumerate((("ours", "bare"), ("bare", "ours")), start=1):
        programs: dict[str, Program] = {}
        with contextlib.ExitStack() as stack:
            for name in names:
                programs[name] = stack.enter_context(target.measured("follow", name, 300, "engine"))
                programs[name].answer()
            if options.peer:
                seconds = options.events * SECONDS_PER_ROUND
                arguments = ("events", target.kind.name, target.socket, f"{seconds:g}")
                other = stack.enter_context(Program(*arguments, command=options.peer))
                while "ready" not in other.answer():
                    pass
            asyncio.run(_churn(target, options.events // 2, f"events, half {half} of 2"))
            now = {name: _latencies(programs[name].finish()["events"]) for name in names}
            if options.peer:
                other.terminate()
                assert other.stdout is not None
                now["peer"] = _matched([json.loads(line) for line in other.stdout], now["bare"])
            for name, latencies in now.items():
                heard[name] |= latencies
    for type_, (shown, beside, beside_is) in TYPES.items():
        keys = {key: (beside, *key[1:]) for key in heard["ours"] if key[0] == type_}
        both = [(ours, bare) for ours, bare in keys.items() if bare in heard["bare"]]
        took = {
            "ours": [{"latency": heard["ours"][ours]} for ours, _ in both],
            beside_is: [{"latency": heard["bare"][bare]} for _, bare in both],
            "peer": [{"latency": latency} for key, latency in heard["peer"].items() if key[0] == type_],
        }
        yield from rows([Measure("latency", f"event latency, {shown}", "ms", tail=True)], took, beside=beside_is)


async def _churn(target: Target, rounds: int, what: str) -> None:
    """Start, freeze, thaw and kill a container, again and again; in containerd it gets a new task for each life."""
    name = f"latency-{random.getrandbits(32):08x}"
    async with target.kind.control(target.socket) as control:
        await control.create(name)
        for done in range(rounds):
            for step in target.kind.life:
                await getattr(control, step)(name)
                await asyncio.sleep(PAUSE * random.uniform(1, 2))
            progress(f"{what}: round {done + 1} of {rounds}")
        await asyncio.sleep(1.0)
        await control.remove(name)
        await asyncio.sleep(0.5)


def _latencies(events: Sequence[tuple[str, str, int | str, int]]) -> Latencies:
    """Bare readers are told whole nanoseconds, consumers of ours a time."""
    found = {}
    for type_, id, told, now in events:
        stamp = told // 1000 if isinstance(told, int) else round(datetime.fromisoformat(told).timestamp() * 1e6)
        found[type_, id, stamp] = (now - stamp * 1000) / 1e6
    return found


def _matched(lines: Sequence[Mapping[str, Any]], known: Latencies) -> Latencies:
    """Date events that bear no time of the engine's by those of the bare reader, of the same order and number."""
    found: Latencies = {}
    for kind in {key[:2] for key in known}:
        told = [key for key in known if key[:2] == kind]
        came = [line["t"] for line in lines if (line.get("type"), line.get("id")) == kind and not line.get("pre_ready")]
        if len(told) == len(came):
            found |= {key: (now - key[2] * 1000) / 1e6 for key, now in zip(told, came, strict=True)}
    return found
