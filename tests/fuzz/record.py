"""Record the answers of real engines, as root: `python -m tests.fuzz.record`.

A watcher asks a real engine through a server that notes what it answers, while containers start, pause and exit. Where
an answer names this machine, other text of the same length replaces that. Each line of a file is what was asked
(`servers.Key`), and the parts of the answer: head and body, or head and events, or messages.
"""

from __future__ import annotations

import asyncio
import json
import platform
import re
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc.aio

from tests.fuzz.answers import RECORDED
from tests.fuzz.run import ADAPTERS, watching
from tests.fuzz.servers import ENDLESS, GrpcWire, Key
from tests.support.debian import say
from tests.support.engines.containerd import Containerd
from tests.support.engines.containerd_control import ContainerdControl
from tests.support.engines.control import DockerControl
from tests.support.engines.cri_control import CRIControl
from tests.support.engines.dockerd import Dockerd
from whalewatch.moby.reading import FILTERS

Answers = dict[Key, list[bytes]]


class Between(GrpcWire):
    """Asks the engine behind, and notes its answers: the latest whole one, and the stream that tells most."""

    def __init__(self, behind: Path) -> None:
        super().__init__()
        self.noted: Answers = {}
        self._behind = behind

    async def replies(self, key: Key, request: bytes, context: Any) -> AsyncIterator[bytes]:
        parts: list[bytes] = []
        async with grpc.aio.insecure_channel(f"unix://{self._behind}") as channel:
            call: Any = channel.unary_stream(key[0])
            async for part in call(request, metadata=(("containerd-namespace", key[1]),) if key[1] else ()):
                parts.append(part)
                if not key[0].endswith(ENDLESS) or len(parts) > len(self.noted.get(key, [])):
                    self.noted[key] = [*parts]
                yield part
        self.noted[key] = parts


async def _docker(path: Path) -> Answers:
    async with DockerControl(path) as control:
        await control.network_create("net")
        labels = {"com.docker.compose.project": "shop"}
        ports = {"80/tcp": None, "53/udp": 5353}
        web = await control.run("web", labels=labels, network="net", ports=ports, health="true")
        await control.pause(idle := await control.run("idle"))
        await control.kill(gone := await control.run("gone"))
        await control.wait(gone)
        await control.remove(gone)
    answers: Answers = {}
    events = f"/events?since=0&until={time.time() + 1}&filters={quote(json.dumps(FILTERS))}"
    for asked in ("/_ping", "/info", "/containers/json", *(f"/containers/{id}/json" for id in (web, idle)), events):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(f"GET {asked} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
        writer.close()
        chunks = re.findall(rb"[0-9a-f]+\r\n(.+?)\r\n", body, re.DOTALL) if b"chunked" in head else [body]
        answers[asked.partition("?")[0], "", b""] = [head.replace(b"\r\nConnection: close", b""), *chunks]
    return answers


async def _containerd(control: Any) -> str:
    """Let containers start, pause and exit; return the id of the one that is gone."""
    web, idle, gone = (letter * 8 + "0" * 56 for letter in "abc")
    await control.run(web, labels={"nerdctl/name": "web", "com.docker.compose.project": "shop"})
    await control.run(idle, "other")
    await control.pause(idle, "other")
    await control.run(gone)
    await control.kill_and_wait(gone)
    await control.remove(gone)
    return gone


async def _cri(control: Any) -> str:
    pod = await control.run_pod("shop", labels={"app": "shop"}, annotations={"note": "one"})
    await control.run(pod, "web", labels={"tier": "front"})
    await control.run(pod, "idle")
    gone: str = await control.run(pod, "gone")
    await control.stop(gone)
    await control.remove(gone)
    return gone


async def _grpc(name: str, path: Path) -> Answers:
    act, control = (_containerd, ContainerdControl) if name.startswith("containerd") else (_cri, CRIControl)
    async with control(path) as driver, Between(path) as wire:
        async with watching(name, wire.address) as watcher:
            await watcher.ready(30)
            gone = await act(driver)
            await asyncio.sleep(2)
        async with watching(name, wire.address) as watcher:
            await watcher.ready(30)
            for container in watcher.portfolio.snapshot():
                await watcher.engine.inspect(container.id)
    return {key: parts for key, parts in wire.noted.items() if gone.encode() not in key[2]}


def main() -> None:
    """Record all."""
    for name in (name for names in ADAPTERS.values() for name in names):
        adapter, _, version = name.rpartition("-")
        made: Any = Dockerd(version) if adapter == "docker" else Containerd(version, cri=adapter != "containerd")  # type: ignore[arg-type]
        with made as engine:
            answers = asyncio.run(_docker(engine.socket) if adapter == "docker" else _grpc(name, engine.socket))
        text = "".join(f"{line!r}\n" for line in sorted(answers.items()))
        hidden = {str(made.root): "/var/lib/engine", socket.gethostname(): "host", platform.release(): "6.1.0"}
        for private, shown in hidden.items():
            text = text.replace(private, shown.ljust(len(private), "x")[: len(private)])
        (RECORDED / f"{name}.txt").write_text(text)
        say(f"{name}: {len(answers)} answers")


if __name__ == "__main__":
    main()
