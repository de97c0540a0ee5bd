"""How long after the engine's own time stamp an event reaches its consumer."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tests.benchmarks import run
from tests.benchmarks.engine import Target
from tests.benchmarks.figures import Row
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
    commands = {"ours": ("ours", "events", target.kind, target.socket), "bare": (target.bare, "events", target.socket)}
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
            asyncio.run(_churn(target, rounds // 2, f"events, half {half} of 2", progress))
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
        our, their = [one for one, _ in pairs], [one for _, one in pairs]
        peers_own = [latency for key, latency in peers.items() if key[0] == type_]
        yield Row.of(
            *("latency", f"event latency, {shown}", "ms", our, (beside_is, their)),
            engine=target.version,
            peer=peers_own,
            tail=True,
        )


async def _churn(target: Target, rounds: int, what: str, progress: Callable[[str], None]) -> None:
    """Start, freeze, thaw and kill a container, again and again; in containerd it gets a new task for each life."""
    name = f"latency-{random.getrandbits(32):08x}"
    async with DockerControl(target.socket) as docker, ContainerdControl(target.socket) as native:
        driver: Any
        steps: list[Any]
        ends: list[Any]
        if target.kind == "moby":
            container = await docker.create(name)
            driver, steps, ends = docker, [docker.start, docker.pause, docker.unpause, docker.kill], [docker.wait]
        else:
            await native.create(name)
            container = name
            driver, steps, ends = (
                native,
                [native.start, native.pause, native.resume, native.kill],
                [native.wait, native.task_delete],
            )
        for done in range(rounds):
            if target.kind != "moby":
                await native.task_create(container)
            for step in steps:
                await step(container)
                await asyncio.sleep(PAUSE * random.uniform(1, 2))
            for end in ends:
                await end(container)
            progress(f"{what}: round {done + 1} of {rounds}")
        await asyncio.sleep(1.0)
        await driver.remove(container)
        await asyncio.sleep(0.5)


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
