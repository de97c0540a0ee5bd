"""Which containers belong to which sandbox."""

from __future__ import annotations

from whalewatch._core.engine import MAX_CONTAINERS

__all__ = ["Members"]


class Members:
    """Containers by sandbox: every question costs the same, whatever the number of containers.

    It remembers the latest `MAX_CONTAINERS`.
    """

    def __init__(self) -> None:
        self._sandboxes: dict[str, str] = {}  # by container
        self._containers: dict[str, dict[str, None]] = {}  # by sandbox

    def add(self, id: str, sandbox: str) -> None:
        """Note the sandbox of a container."""
        self.remove(id)
        self._sandboxes[id] = sandbox
        self._containers.setdefault(sandbox, {})[id] = None
        if len(self._sandboxes) > MAX_CONTAINERS:
            self.remove(next(iter(self._sandboxes)))

    def remove(self, id: str) -> None:
        """Forget a container."""
        sandbox = self._sandboxes.pop(id, None)
        if sandbox is not None:
            del self._containers[sandbox][id]
            if not self._containers[sandbox]:
                del self._containers[sandbox]

    def of(self, sandbox: str) -> list[str]:
        """Return the containers of a sandbox."""
        return [*self._containers.get(sandbox, ())]
