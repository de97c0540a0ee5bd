"""Watch a containerd under supervision, as `tests.support.checker` does for Docker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.support.checker import Checked, facts, supervised
from tests.support.engines.containerd_control import ContainerdControl
from whalewatch import Container, containerd


class CheckedContainerd(Checked):
    """A watcher of a containerd under supervision, which does not see the namespaces that are ignored."""

    echoes = False

    def __init__(self, watcher: Any, control: ContainerdControl, ignored: tuple[str, ...]) -> None:
        super().__init__(watcher)
        self._driver = control
        self._ignored = ignored

    async def truth(self) -> dict[str, dict[str, Any]]:
        """What containerd says is alive, read independently of the library's own reading."""
        found = {}
        for (namespace, id), alive in (await self._driver.truth()).items():
            if namespace not in self._ignored:
                prefix = "" if namespace == "default" else f"{namespace}/"
                found[prefix + id] = {
                    "id": prefix + id,
                    "name": prefix + (alive.labels.get("nerdctl/name") or id),
                    "pid": alive.pid,
                    "paused": alive.status == "PAUSED",
                    "labels": dict(alive.labels),
                    "project": alive.labels.get("com.docker.compose.project", ""),
                    "image": alive.image,
                }
        return found

    def seen(self, container: Container) -> dict[str, Any]:
        """What the library says of one container, in the same terms."""
        return facts(container, "id", "name", "pid", "paused", "labels", "project", "image")


@asynccontextmanager
async def checked(
    address: str, control: ContainerdControl, *, ignore: tuple[str, ...] = ("moby", "k8s.io"), **options: Any
) -> AsyncIterator[CheckedContainerd]:
    """Watch a containerd under supervision; at the end the picture must be the engine's."""
    watcher = containerd.watch(address, ignore=ignore, **options)
    async with supervised(CheckedContainerd(watcher, control, ignore)) as check:
        yield check
