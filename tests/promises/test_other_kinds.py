"""An engine of another kind is recognised and ends the watch; what is only in front of an engine does not end it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support.answering import TO_TLS, http, saying
from tests.support.checker import PATIENCE
from tests.support.outage import lost
from whalewatch import (
    EngineError,
    EngineUnavailable,
    ProtocolViolation,
    Retry,
    UnsupportedEngine,
    WatchState,
    containerd,
    cri,
    moby,
)
from whalewatch.testing import FakeContainerd, FakeCRI, FakeDocker
from whalewatch.testing.cri import calls

PODMAN = http("200 OK", b"OK", "Api-Version: 1.41", "Libpod-Api-Version: 4.3.1", "Server: Libpod/4.3.1 (linux)")

PAGE = b"<html>\r\n<h1>It works!</h1>\r\n</html>"


async def refused(module: ModuleType, address: str, words: str) -> None:
    """The watch ends, although it is to retry for ever."""
    async with module.watch(address) as watcher:
        with pytest.raises(UnsupportedEngine, match=f"{re.escape(address)}: {words}"):
            await watcher.ready(PATIENCE)
        assert (watcher.status.state, watcher.status.attempt) == (WatchState.CLOSED, 1)


GRPC = "this speaks gRPC.*whalewatch.containerd.*whalewatch.cri"

OTHERS: dict[str, tuple[Callable[[Path], AbstractAsyncContextManager[object]], dict[ModuleType, str]]] = {
    "Docker": (
        FakeDocker,
        dict.fromkeys((containerd, cri), "this is Docker 26.1.5: use whalewatch.moby"),
    ),
    "an old Docker": (
        lambda path: FakeDocker(path, api_version="1.40", version="19.03.15"),
        {moby: "its API version 1.40 is too old: .*20.10", cri: "this is Docker 19.03.15: use whalewatch.moby"},
    ),
    "Podman": (
        lambda path: saying(path, PODMAN),
        dict.fromkeys((moby, containerd, cri), "this is Podman 4.3.1: use whalewatch.podman"),
    ),
    "Podman behind something": (
        lambda path: saying(path, PODMAN.replace(b"Libpod/4.3.1 (linux)", b"nginx")),
        {moby: "this is Podman 4.3.1: use whalewatch.podman"},
    ),
    "containerd": (
        FakeContainerd,
        {moby: GRPC, cri: "this is containerd 1.7.24 without the CRI .*: use whalewatch.containerd.*disabled_plugins"},
    ),
    "an old containerd": (
        lambda path: FakeContainerd(path, version="1.5.18~ds1"),
        {containerd: "containerd 1.5.18~ds1 is too old: 1.6", cri: "this is containerd 1.5.18"},
    ),
    "CRI-O": (
        lambda path: FakeCRI(path, runtime="cri-o", version="1.32.1"),
        {moby: GRPC, containerd: "this is cri-o 1.32.1: use whalewatch.cri"},
    ),
}
"""What answers, who asks, and what is said."""


@pytest.mark.parametrize("other", OTHERS)
async def test_engine_of_another_kind_ends_the_watch_and_its_module_is_named(other: str, tmp_path: Path) -> None:
    serve, words = OTHERS[other]
    async with serve(tmp_path / "sock"):
        for module, said in words.items():
            await refused(module, f"unix://{tmp_path}/sock", said)


async def test_engine_with_an_old_cri_ends_the_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = {path.replace("runtime.v1.", "runtime.v1alpha2."): kind for path, kind in calls.KINDS.items()}
    monkeypatch.setattr("whalewatch.testing.cri.service.KINDS", old)
    async with FakeCRI(runtime="cri-o", version="1.19.0") as engine:
        for module in (containerd, cri):
            await refused(module, engine.address, r"this is cri-o 1.19.0: its CRI \(runtime.v1alpha2\) is too old")


@pytest.mark.live
async def test_real_engines_of_another_kind_end_the_watch_and_their_modules_are_named(
    make_dockerd: Any, make_podman: Any, make_containerd: Any
) -> None:
    docker, podman, other = [
        await asyncio.to_thread(make, version)
        for make, version in ((make_dockerd, "20.10"), (make_podman, "4.3"), (make_containerd, "1.7"))
    ]
    for module in (containerd, cri):
        await refused(module, docker.address, "this is Docker 20.10.24.*: use whalewatch.moby")
    for module in (moby, containerd, cri):
        await refused(module, podman.address, "this is Podman 4.3.1: use whalewatch.podman")
    await refused(moby, other.address, GRPC)
    ttrpc = "this is containerd's ttrpc socket: use whalewatch.containerd with "
    await refused(moby, f"{other.address}.ttrpc", f"{ttrpc}{other.socket}$")
    await refused(cri, other.address, "this is containerd 1.7.24.* without the CRI .*: use whalewatch.containerd")


FRONT: dict[str, tuple[bytes, type[EngineError]]] = {
    "404": (http("404 Not Found", PAGE), ProtocolViolation),
    "503": (http("503 Service Unavailable", PAGE), EngineError),
    "403": (http("403 Forbidden", PAGE), EngineUnavailable),
    "a page": (http("200 OK", PAGE), ProtocolViolation),
    "another protocol": (b"SSH-2.0-OpenSSH_9.2p1\r\n", ProtocolViolation),
    "a port for HTTPS": (
        http("400 Bad Request", TO_TLS),
        EngineUnavailable,
    ),
}


@pytest.mark.parametrize("answer", FRONT)
async def test_what_is_only_in_front_of_an_engine_does_not_end_the_watch(answer: str, tmp_path: Path) -> None:
    path = tmp_path / "sock"
    said, error = FRONT[answer]
    async with AsyncExitStack() as first, moby.watch(str(path)) as watcher:
        await first.enter_async_context(saying(path, said))
        status = await lost(watcher, error)
        assert type(status.error) is error
        assert "<" not in str(status.error)
        await first.aclose()
        async with FakeDocker(path):
            await watcher.ready(PATIENCE)


async def test_engine_of_another_kind_does_not_end_the_watch_after_the_first_synchronisation(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    async with moby.watch(str(path), retry=Retry()) as watcher:
        async with FakeDocker(path):
            await watcher.ready(PATIENCE)
        async with saying(path, PODMAN):
            await lost(watcher, UnsupportedEngine)
        async with FakeDocker(path):
            await watcher.portfolio.in_sync(PATIENCE)
