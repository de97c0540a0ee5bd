"""Watch a CRI engine under supervision, as `tests.support.checker` does for Docker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from tests.support.checker import Checked, facts, supervised
from tests.support.engines.cri_control import CRIControl, Listed
from whalewatch import Container, cri


class CheckedCRI(Checked):
    """A watcher of a CRI engine under supervision."""

    echoes = False

    def __init__(self, watcher: Any, control: CRIControl) -> None:
        super().__init__(watcher)
        self._driver = control

    async def truth(self) -> dict[str, dict[str, Any]]:
        """What the engine says is alive, read independently of the library's own reading.

        That takes many calls. If something was removed in between, the answer is one that is nobody's picture.
        """
        try:
            return await truth(self._driver)
        except (KeyError, grpc.aio.AioRpcError) as error:
            if isinstance(error, grpc.aio.AioRpcError) and error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            return {"moving": {}}

    def seen(self, container: Container) -> dict[str, Any]:
        """What the library says of one container, in the same terms."""
        return seen(container)


async def truth(control: CRIControl) -> dict[str, dict[str, Any]]:
    """What an engine says is alive, by id: what runs, and what is ready.

    Raises:
        KeyError, grpc.aio.AioRpcError: something was removed meanwhile.
    """
    alive = await control.truth()
    containers, sandboxes = await control.containers(), await control.sandboxes()
    found = {}
    for id, pid in alive.items():
        listed = sandboxes.get(id) or containers[id]
        pod = await _pod(control, listed.sandbox)
        own = {"io.kubernetes.sandbox": ""} if id in sandboxes else {"io.kubernetes.container.name": listed.name}
        found[id] = {"id": id, "name": listed.name, "pid": pid, "labels": _labels(listed) | pod | own}
    return found


def seen(container: Container) -> dict[str, Any]:
    """What the library says of one container, in the terms of `truth`."""
    return facts(container, "id", "name", "pid", "labels")


async def _pod(control: CRIControl, sandbox: str) -> dict[str, str]:
    status = (await control.call("PodSandboxStatus", pod_sandbox_id=sandbox)).status.metadata
    told = {"name": status.name, "namespace": status.namespace, "uid": status.uid}
    return {f"io.kubernetes.pod.{key}": value for key, value in told.items()}


def _labels(listed: Listed) -> dict[str, str]:
    annotations = {f"io.kubernetes.annotation/{key}": value for key, value in listed.annotations.items()}
    return {**listed.labels, **annotations}


@asynccontextmanager
async def checked(address: str, control: CRIControl, **options: Any) -> AsyncIterator[CheckedCRI]:
    """Watch an engine under supervision; at the end the picture must be the engine's."""
    async with supervised(CheckedCRI(cri.watch(address, **options), control)) as check:
        yield check
