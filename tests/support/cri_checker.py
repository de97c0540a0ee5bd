"""Watch a CRI engine under supervision, as `tests.support.checker` does for Docker."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc.aio

from tests.support.checker import Checked, facts, supervised
from tests.support.engines.cri_control import CRIControl
from whalewatch import Container, cri


class CheckedCRI(Checked):
    """A watcher of a CRI engine under supervision."""

    echoes = False

    async def truth(self) -> dict[str, dict[str, Any]]:
        """What the engine says is alive, read independently of the library's own reading.

        That takes many calls. If something was removed in between, the answer is one that is nobody's picture.
        """
        try:
            return await truth(self.control)
        except (KeyError, grpc.aio.AioRpcError) as error:
            if isinstance(error, grpc.aio.AioRpcError) and error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            return {"moving": {}}

    def seen(self, container: Container) -> dict[str, Any]:
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
        pod = (await control.call("PodSandboxStatus", pod_sandbox_id=listed.sandbox)).status.metadata
        labels = {
            **listed.labels,
            **{f"io.kubernetes.annotation/{key}": value for key, value in listed.annotations.items()},
            **{f"io.kubernetes.pod.{key}": value for key, value in facts(pod, "name", "namespace", "uid").items()},
            **({"io.kubernetes.sandbox": ""} if id in sandboxes else {"io.kubernetes.container.name": listed.name}),
        }
        found[id] = {"id": id, "name": listed.name, "pid": pid, "labels": labels, "restarts": listed.attempt}
    return found


def seen(container: Container) -> dict[str, Any]:
    """What the library says of one container, in the terms of `truth`."""
    return facts(container, "id", "name", "pid", "labels", "restarts")


def checked(address: str, control: CRIControl, **options: Any) -> AbstractAsyncContextManager[CheckedCRI]:
    """Watch an engine under supervision; at the end the picture must be the engine's."""
    return supervised(CheckedCRI(cri.watch(address, **options), control))
