"""Run private Docker engines: own data, own socket, own network namespace, and nothing left behind.

Everything here is synchronous, as fixtures are; a test that calls it on a running loop uses `asyncio.to_thread`.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import random
import signal
import socket
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from tests.support.certificates import make_certificates
from tests.support.engines import containerd
from tests.support.engines.process import START_TIMEOUT, PrivateEngine, end

Version = Literal["20.10", "26.1"]

_CONTAINERD: dict[Version, containerd.Version] = {"20.10": "1.6", "26.1": "1.7"}  # as Debian ships them


class Dockerd(PrivateEngine):
    """A Docker engine of our own, with its own containerd, so that killing dockerd alone leaves the containers' shims.

    Stopping it without live-restore stops its containers first; killing it leaves them running until it starts again.
    It runs in its own network namespace, so that bridge networks with real addresses work and vanish with it; with
    `tcp` it runs in the host's, to be reachable at a port of 127.0.0.1. With `tls`, which implies `tcp`, it demands
    mutual TLS there, and the client's `ca.pem`, `cert.pem` and `key.pem` are in `certificates`.
    """

    log_tails = {"network": 5, "containerd": 5, "dockerd": 30}  # noqa: RUF012 - declared where it is inherited from
    socket_name = "docker.sock"
    deepest = "exec/containerd/containerd-debug.sock"

    def __init__(
        self,
        version: Version,
        root: Path | None = None,
        *,
        live_restore: bool = False,
        tcp: bool = False,
        tls: bool = False,
    ) -> None:
        super().__init__(version, root)
        self.live_restore = live_restore
        self.port = _free_port() if tcp or tls else None
        self.certificates = self.root / "tls" if tls else None
        self.containerd = containerd.Containerd(_CONTAINERD[version], self.root)
        self._network: subprocess.Popen[bytes] | None = None

    @property
    def tcp_address(self) -> str:
        assert self.port is not None, f"{self!r} has no TCP port"
        return f"tcp://127.0.0.1:{self.port}"

    def _start(self) -> None:
        if self.certificates is not None and not self.certificates.exists():
            make_certificates(self.certificates)
        (self.root / "daemon.json").write_text(json.dumps(self._config(), default=str))
        command = ["dockerd", f"--config-file={self.root}/daemon.json"]
        if self.port is None:
            command = ["nsenter", f"--net=/proc/{self._network_namespace()}/ns/net", *command]
        self.containerd.start()
        atexit.unregister(self.containerd.close)  # it is ours to close, and not before dockerd
        (self.root / "docker.pid").unlink(missing_ok=True)  # a killed dockerd leaves its own
        self._engine = self._spawn("dockerd", command)
        self._wait_for("answer", self._answers, START_TIMEOUT)
        self._import_image()

    def _close(self) -> None:
        self.containerd.thaw()
        self._remove_containers()
        self.stop()
        self.containerd.close()
        if self._network is not None:
            end(self._network, signal.SIGKILL)
        self._network = None

    def _config(self) -> dict[str, Any]:
        config = {
            "data-root": self.root / "data",
            "exec-root": self.root / "exec",
            "pidfile": self.root / "docker.pid",
            "containerd": self.containerd.socket,
            "hosts": [self.address],
            "iptables": False,
            "ip6tables": False,
            "bridge": "none",
            "live-restore": self.live_restore,
        }
        if self.expected == "20.10":
            config["deprecated-key-path"] = self.root / "key.json"  # else it would write one below /etc
        if self.port is not None:
            config |= {"hosts": [self.address, self.tcp_address], "tls": False}  # said aloud, it spares a long warning
        if self.certificates is not None:
            files = {"tlscacert": "ca.pem", "tlscert": "server-cert.pem", "tlskey": "server-key.pem"}
            config |= {"tlsverify": True, **{name: self.certificates / file for name, file in files.items()}}
            del config["tls"]
        return config

    def _network_namespace(self) -> int:
        """Return a process that keeps a network namespace alive, across all restarts of dockerd."""
        if self._network is None:
            script = "busybox ip link set lo up; exec busybox sleep 1000000"
            self._network = self._spawn("network", ["unshare", "--net", "busybox", "sh", "-c", script])
            ours, theirs = Path("/proc/self/ns/net").readlink(), Path(f"/proc/{self._network.pid}/ns/net")
            self._wait_for("get its network namespace", lambda: theirs.readlink() != ours, START_TIMEOUT)
        return self._network.pid

    def _processes(self) -> Iterable[subprocess.Popen[bytes] | None]:
        return (*super()._processes(), *self.containerd._processes(), self._network)

    def _docker(self, *arguments: str) -> str:
        """Run Docker's own client, and return what it prints; raises as `_run` does."""
        return self._run("docker", "--host", self.address, *arguments)

    def _told_version(self) -> str:
        return self._docker("version", "--format", "{{.Server.Version}}").strip()

    def _import_image(self) -> None:
        if not self._docker("images", "--quiet", "tiny:latest"):
            changes = ("--change", 'CMD ["/bin/sleep","1000000"]', "--change", "ENV PATH=/bin")
            self._docker("import", *changes, str(self.containerd.rootfs_tar()), "tiny:latest")

    def _remove_containers(self) -> None:
        """Let dockerd itself remove all containers, which leaves the least behind."""
        if self.running:
            with contextlib.suppress(subprocess.SubprocessError):
                for container in self._docker("ps", "--all", "--quiet").split():
                    with contextlib.suppress(subprocess.CalledProcessError):
                        self._docker("rm", "--force", "--volumes", container)


def _free_port() -> int:
    """Choose a port that the kernel gives to nobody before the engine takes it: its own choice begins at 32768."""
    while True:
        port = random.randrange(20_000, 32_768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
