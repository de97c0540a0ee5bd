"""Run a private Podman with its Docker-compatible API, which is no Docker."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tests.support.engines.process import START_TIMEOUT, PrivateEngine

_CONFIG = """\
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
runtime = "runc"
lock_type = "file"
stop_timeout = 0
"""


class Podman(PrivateEngine):
    """A Podman of our own, without containers."""

    log_tails = {"podman": 30}  # noqa: RUF012 - declared where it is inherited from
    socket_name = "podman.sock"
    deepest = "podman.sock"

    def __init__(self, version: str, root: Path | None = None) -> None:
        super().__init__(version, root)

    def _start(self) -> None:
        (self.root / "containers.conf").write_text(_CONFIG)
        service = ("system", "service", "--time=0", self.address)
        self._engine = self._spawn("podman", [*self._command(), *service])
        self._wait_for("answer", self._answers, START_TIMEOUT)

    def _close(self) -> None:
        self.stop()

    def _command(self) -> Iterable[str]:
        folders = (f"--{name}={self.root / name}" for name in ("root", "runroot", "tmpdir"))
        return ("podman", *folders)

    def _environment(self) -> dict[str, str]:
        return super()._environment() | {"CONTAINERS_CONF": f"{self.root}/containers.conf"}

    def _told_version(self) -> str:
        return self._run(
            "podman", "--remote", "--url", self.address, "version", "--format", "{{.Server.Version}}"
        ).strip()
