"""Watch a containerd under supervision, as `tests.support.checker` does for Docker."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

from tests.support.checker import Checked, facts, project_of, supervised
from tests.support.engines.containerd_control import ContainerdControl
from whalewatch import Container, Watcher, containerd


class CheckedContainerd(Checked):
    """A watcher of a containerd under supervision, which does not see the namespaces that are ignored."""

    echoes = False

    def __init__(self, watcher: Watcher, control: ContainerdControl, ignored: tuple[str, ...]) -> None:
        super().__init__(watcher, control)
        self._ignored = ignored

    async def truth(self) -> dict[str, dict[str, Any]]:
        """What containerd says is alive, read independently of the library's own reading."""
        found = {}
        for (namespace, id), alive in (await self.control.truth()).items():
            if namespace not in self._ignored:
                prefix = "" if namespace == "default" else f"{namespace}/"
                found[prefix + id] = {
                    **facts(alive, "pid", "labels", "image", "created_at"),
                    "id": prefix + id,
                    "name": prefix + (alive.labels.get("nerdctl/name") or id),
                    "paused": alive.status == "PAUSED",
                    "project": project_of(alive.labels),
                }
        return found

    def seen(self, container: Container) -> dict[str, Any]:
        return facts(container, "id", "name", "pid", "paused", "labels", "project", "image", "created_at")


def checked(
    address: str, control: ContainerdControl, *, ignore: tuple[str, ...] = ("moby", "k8s.io"), **options: Any
) -> AbstractAsyncContextManager[CheckedContainerd]:
    """Watch a containerd under supervision; at the end the picture must be the engine's."""
    return supervised(CheckedContainerd(containerd.watch(address, ignore=ignore, **options), control, ignore))
