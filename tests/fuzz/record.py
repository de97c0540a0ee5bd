"""Record the answers of real engines, as root: `python -m tests.fuzz.record`.

A watcher asks a real engine through a server that writes down what it answers, while containers start, pause and exit.
Where an answer names this machine, other text of the same length replaces that. Each line of a file is what was asked
(`servers.Key`), and the parts of the answer: head and body, or head and events, or messages.
"""

from __future__ import annotations

import asyncio
import platform
import socket
from pathlib import Path
from typing import Any

from tests.fuzz.run import ADAPTERS, watching
from tests.fuzz.servers import GrpcWire, HttpWire, Wire
from tests.support.debian import say
from tests.support.engines.containerd import Containerd
from tests.support.engines.containerd_control import ContainerdControl
from tests.support.engines.control import DockerControl
from tests.support.engines.cri_control import CRIControl
from tests.support.engines.dockerd import Dockerd

RECORDED = Path(__file__).parent / "recorded"


async def _docker(engine: Dockerd) -> str:
    """Let containers start, pause and exit; return the id of the one that is gone."""
    async with DockerControl(engine.socket) as control:
        await control.network_create("net")
        labels = {"com.docker.compose.project": "shop"}
        await control.run("web", labels=labels, network="net", ports={"80/tcp": None, "53/udp": 5353}, health="true")
        await control.pause(await control.run("idle"))
        await control.kill(gone := await control.run("gone"))
        await control.wait(gone)
        await control.remove(gone)
    return gone


async def _containerd(engine: Containerd) -> str:
    web, idle, gone = "a" * 8 + "0" * 56, "b" * 8 + "0" * 56, "c" * 8 + "0" * 56
    async with ContainerdControl(engine.socket) as control:
        await control.run(web, labels={"nerdctl/name": "web", "com.docker.compose.project": "shop"})
        await control.run(idle, "other")
        await control.pause(idle, "other")
        await control.run(gone)
        await control.kill_and_wait(gone)
        await control.remove(gone)
    return gone


async def _cri(engine: Containerd) -> str:
    async with CRIControl(engine.socket) as control:
        pod = await control.run_pod("shop", labels={"app": "shop"}, annotations={"note": "one"})
        await control.run(pod, "web", labels={"tier": "front"})
        await control.run(pod, "idle")
        gone = await control.run(pod, "gone")
        await control.stop(gone)
        await control.remove(gone)
    return gone


async def _record(name: str, engine: Any, act: Any, wire: Wire) -> None:
    async with wire:
        async with watching(name, wire.address) as watcher:
            await watcher.ready(30)
            gone = await act(engine)
            await asyncio.sleep(2)
        async with watching(name, wire.address) as watcher:
            await watcher.ready(30)
            for container in watcher.portfolio.snapshot():
                await watcher.engine.inspect(container.id)
    hidden = {str(engine.root): "/var/lib/engine", socket.gethostname(): "host", platform.release(): "6.1.0"}

    def scrubbed(text: bytes) -> bytes:
        for private, shown in hidden.items():
            text = text.replace(private.encode(), shown.ljust(len(private), "x")[: len(private)].encode())
        return text

    lines = [
        repr((key, [scrubbed(part) for part in parts]))
        for key, parts in sorted(wire.recorded.items())
        if gone not in key[0] and gone.encode() not in key[2]
    ]
    (RECORDED / f"{name}.txt").write_text("\n".join(lines) + "\n")
    say(f"{name}: {len(lines)} answers")


def main() -> None:
    """Record all."""
    for name in (name for names in ADAPTERS.values() for name in names):
        adapter, _, version = name.rpartition("-")
        if adapter == "docker":
            engine, act, wire = Dockerd(version), _docker, HttpWire
        else:
            engine = Containerd(version, cri=adapter != "containerd")
            act, wire = (_containerd if adapter == "containerd" else _cri), GrpcWire
        with engine:
            asyncio.run(_record(name, engine, act, wire(engine.socket)))


if __name__ == "__main__":
    main()
