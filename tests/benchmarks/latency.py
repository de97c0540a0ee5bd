"""How long after the engine's own time stamp an event reaches its consumer."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tests.benchmarks import run
from tests.benchmarks.engine import Target
from tests.benchmarks.figures import Row, Spread, paired
from tests.support.engines.containerd_control import ContainerdControl
from tests.support.engines.control import DockerControl

PAUSE = 0.01  # seconds between what is done to a container: the engine's own work is not to be in the way
SECONDS_PER_ROUND = 5.0  # far above anything measured; only another program needs to know

TYPES = {
    "exited": ("EXITED", "exited", "bare reader"),
    "paused": ("PAUSED", "paused", "bare reader"),
    "unpaused": ("UNPAUSED", "unpaused", "bare reader"),
    "started": ("STARTED, with its inspect", "inspected", "bare reader and inspect"),
}

REFERENCE = "0.95 ms: the Go module whalewatcher 2.0.1, measured on another day"


Key = tuple[str, str, int]


def measure(target: Target, rounds: int, peer: run.Peer | None, progress: Callable[[str], None]) -> Iterator[Row]:
    """Let everybody follow the same events at the same time, in two halves: who subscribes first matters a little."""
    ours: dict[Key, float] = {}
    bare: dict[Key, float] = {}
    peers: dict[Key, float] = {}
    commands = {"ours": ("ours", target.kind, "events", target.socket), "bare": (target.bare, "events", target.socket)}
    churn = _churn if target.kind == "moby" else _churn_containerd
    for half, names in enumerate((("ours", "bare"), ("bare", "ours")), start=1):
        with contextlib.ExitStack() as stack:
            programs = {}
            for name in names:
                programs[name] = stack.enter_context(run.program(*commands[name]))
                programs[name].answer()
            if peer is not None:
                other = stack.enter_context(peer.events(target.kind, target.socket, rounds * SECONDS_PER_ROUND))
                while "ready" not in other.answer():
                    pass
            asyncio.run(churn(target.socket, rounds // 2, f"events, half {half} of 2", progress))
            heard = {name: _latencies(programs[name].finish()["events"]) for name in names}
            ours |= heard["ours"]
            bare |= heard["bare"]
            if peer is not None:
                peers |= _matched(other.interrupt(), heard["bare"])
    for type_, (shown, beside, beside_is) in TYPES.items():
        pairs = [
            (latency, bare[beside, id, told])
            for (heard_type, id, told), latency in ours.items()
            if heard_type == type_ and (beside, id, told) in bare
        ]
        yield Row(
            benchmark="latency",
            what=f"event latency, {shown}",
            unit="ms",
            engine=target.version,
            ours=Spread.of(our for our, _ in pairs),
            beside=Spread.of(their for _, their in pairs),
            beside_is=beside_is,
            ratio=paired([our for our, _ in pairs], [their for _, their in pairs]),
            peer=Spread.of(latency for key, latency in peers.items() if key[0] == type_) if peers else None,
            tail=True,
        )


async def _churn(socket: str, rounds: int, what: str, progress: Callable[[str], None]) -> None:
    """Start, freeze, thaw and kill a container, again and again, one thing at a time."""
    async with DockerControl(socket) as control:
        container = await control.create(f"latency-{random.getrandbits(32):08x}")
        for done in range(rounds):
            for step in (control.start, control.pause, control.unpause, control.kill):
                await step(container)
                await asyncio.sleep(PAUSE * random.uniform(1, 2))
            await control.wait(container)
            progress(f"{what}: round {done + 1} of {rounds}")
        await asyncio.sleep(1.0)
        await control.remove(container)
        await asyncio.sleep(0.5)


async def _churn_containerd(socket: str, rounds: int, what: str, progress: Callable[[str], None]) -> None:
    """The same in containerd, where a container gets a new task for each life."""
    async with ContainerdControl(socket) as control:
        container = f"latency-{random.getrandbits(32):08x}"
        await control.create(container)
        for done in range(rounds):
            await control.task_create(container)
            for step in (control.start, control.pause, control.resume, control.kill):
                await step(container)
                await asyncio.sleep(PAUSE * random.uniform(1, 2))
            await control.wait(container)
            await control.task_delete(container)
            progress(f"{what}: round {done + 1} of {rounds}")
        await asyncio.sleep(1.0)
        await control.remove(container)


def _latencies(events: list[tuple[str, str, int, int]]) -> dict[Key, float]:
    """Return milliseconds by type, id and the engine's time in whole microseconds, as whalewatch keeps it."""
    return {(type_, id, told // 1000): (now - told) / 1e6 for type_, id, told, now in events}


def _matched(lines: Sequence[Mapping[str, Any]], known: Mapping[Key, float]) -> dict[Key, float]:
    """Date events that bear no time of the engine's by those of the bare reader, of the same order and number."""
    keys: dict[tuple[str, str], list[int]] = {}
    for type_, id, told in known:
        keys.setdefault((type_, id), []).append(told)
    received: dict[tuple[str, str], list[int]] = {}
    for line in lines:
        if line.get("type") and not line.get("pre_ready"):
            received.setdefault((line["type"], line["id"]), []).append(line["t"])
    return {
        (*key, told): (now - told * 1000) / 1e6
        for key, times in received.items()
        if len(times) == len(keys.get(key, ()))
        for told, now in zip(keys[key], times, strict=True)
    }
