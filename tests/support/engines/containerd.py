"""Run private containerd engines: own data, own socket, and nothing left behind.

Everything here is synchronous, as fixtures are; a test that calls it on a running loop uses `asyncio.to_thread`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import grpc

from tests.support.engines import install
from tests.support.engines.process import START_TIMEOUT, PrivateEngine, descendants, kill_all, listens

Version = Literal["1.6", "1.7"]

_APPLETS = ("sh", "sleep", "true", "false", "kill", "cat", "echo", "touch", "test", "ls")
_CGROUPS = Path("/sys/fs/cgroup")

_CONFIG = """\
version = 2
root = "{root}/containerd/root"
state = "{root}/containerd/state"
disabled_plugins = [{disabled}]
[grpc]
  address = "{root}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{root}/containerd/opt"
"""

PAUSE_IMAGE = "registry.local/pause:1"  # the image of sandboxes, and the only one that the CRI has

_CRI = "io.containerd.grpc.v1.cri"

# The first two are needed in a container: there is no registry, and no CAP_SYS_RESOURCE. The networks' folder is made.
_CRI_CONFIG = """\
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
  conf_dir = "{root}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  Root = "{root}/runc"
"""


class Containerd(PrivateEngine):
    """A containerd of our own. Its shims outlive it, and with them its containers, until it is closed.

    The folder `rootfs` beside its socket is the root file system of the smallest container that can sleep. With `cri`
    it serves Kubernetes' CRI too.
    """

    log_tails = {"containerd": 30}  # noqa: RUF012 - declared where it is inherited from
    socket_name = "containerd.sock"
    deepest = "containerd.sock.ttrpc"

    def __init__(self, version: Version, root: Path | None = None, *, cri: bool = False) -> None:
        super().__init__(version, root)
        self.cri = cri

    def ctr(self, *arguments: str, namespace: str = "default") -> str:
        """Run containerd's own client, and return what it prints; raises as `_run` does."""
        return self._run("ctr", "--address", str(self.socket), "--namespace", namespace, *arguments)

    def import_image(self, namespace: str, name: str = "tiny:latest") -> None:
        """Give a namespace, created if need be, the smallest image, for clients that run containers from images."""
        folder = self.root / "image"  # of one layer, as `docker save` would write it
        folder.mkdir(exist_ok=True)
        layer = self.rootfs_tar().rename(folder / "layer.tar")
        config = {
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": {"Cmd": ["/bin/sleep", "1000000"], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer.read_bytes()).hexdigest()}"]},
        }
        manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "manifest.json").write_text(json.dumps(manifest))
        self.ctr("images", "import", shutil.make_archive(str(folder), "tar", folder), namespace=namespace)

    def rootfs_tar(self) -> Path:
        """Return the smallest root file system as an archive."""
        return Path(shutil.make_archive(str(self.root / "rootfs"), "tar", self.root / "rootfs"))

    def shims(self, id: str = "") -> list[int]:
        """Return the PIDs of the shims that this engine has started, or of that of one container or pod.

        Its address is on their command line, and the id of what they were started for.
        """
        wanted = {os.fsencode(self.socket), *([id.encode()] if id else [])}
        found = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                program, *arguments = (folder / "cmdline").read_bytes().split(b"\0")
                if folder.name.isdigit() and b"shim" in program and wanted <= {*arguments}:  # clients name it too
                    found.append(int(folder.name))
        return [pid for pid in found if pid != os.getpid()]

    def shim_sockets(self) -> list[Path]:
        """Return where the shims listen: in a folder that all engines share, where a killed one leaves its own."""
        addresses = self.root.glob("containerd/state/*/*/*/address")
        return [Path(address.read_text().removeprefix("unix://")) for address in addresses]

    def _start(self) -> None:
        _make_rootfs(self.root / "rootfs")
        config = self.root / "containerd.toml"
        disabled = "" if self.cri else f'"{_CRI}"'
        cri = _CRI_CONFIG.format(root=self.root, image=PAUSE_IMAGE) if self.cri else ""
        config.write_text(_CONFIG.format(root=self.root, disabled=disabled) + cri)
        self._engine = self._spawn("containerd", ["containerd", "--config", str(config)])
        self._wait_for("listen", lambda: listens(self.socket), START_TIMEOUT)
        self._wait_for("answer", self._answers, START_TIMEOUT)
        if self.cri:
            self.import_image("k8s.io", PAUSE_IMAGE)
            self._wait_for("know the image of sandboxes", self._knows_pause_image, START_TIMEOUT)

    def _told_version(self) -> str:
        return self.ctr("version").partition("Server:")[2].partition("Version:")[2].split()[0]

    def _knows_pause_image(self) -> bool:
        """Tell whether the CRI is up, and has noticed the image, which it learns by an event."""
        image = PAUSE_IMAGE.encode()
        named = bytes([1 << 3 | 2, len(image)]) + image
        with grpc.insecure_channel(self.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            status: Any = channel.unary_unary("/runtime.v1.ImageService/ImageStatus")
            try:
                answer: bytes = status(bytes([1 << 3 | 2, len(named)]) + named, timeout=START_TIMEOUT)
            except grpc.RpcError:
                return False
        return answer != b""

    def _close(self) -> None:
        self._remove_tasks()
        self._end(signal.SIGTERM)

    def _remove_tasks(self) -> None:
        """Remove what runs: in good order, if the engine still answers, and the rest by PID."""
        if self.running and self.shims():
            with contextlib.suppress(subprocess.SubprocessError):
                for namespace in self.ctr("namespaces", "list", "--quiet").split():
                    if tasks := self.ctr("tasks", "list", "--quiet", namespace=namespace).split():
                        self.ctr("tasks", "delete", "--force", *tasks, namespace=namespace)
        cgroups = list(self._cgroups())
        sockets = self.shim_sockets()
        for cgroup in cgroups:
            with contextlib.suppress(OSError):  # what is frozen cannot be killed
                (cgroup / "freezer.state").write_text("THAWED")
        kill_all(pid for shim in self.shims() for pid in (shim, *descendants(shim)))
        for path in sockets:
            path.unlink(missing_ok=True)
        for cgroup in cgroups:
            with contextlib.suppress(OSError):
                cgroup.rmdir()

    def _cgroups(self) -> Iterator[Path]:
        """Find the control groups of our containers: their names begin with that of our folder; the deepest first."""
        for hierarchy in (_CGROUPS, *_CGROUPS.iterdir()):
            for cgroup in hierarchy.glob(f"{self.root.name}-*/"):
                yield from sorted(cgroup.glob("**/"), key=lambda folder: len(folder.parts), reverse=True)


def _make_rootfs(folder: Path) -> None:
    """Make the smallest root file system that can sleep, with the places where a container mounts what it needs."""
    if folder.exists():
        return
    for name in ("bin", "dev", "proc"):
        (folder / name).mkdir(parents=True)
    shutil.copy2(install.busybox(), folder / "bin/busybox")
    for applet in _APPLETS:
        (folder / "bin" / applet).symlink_to("busybox")
