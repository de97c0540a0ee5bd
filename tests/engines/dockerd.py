"""Run private Docker engines: own data, own socket, own network namespace, and nothing left behind.

Everything here is synchronous, as fixtures are; a test that calls it on a running loop uses `asyncio.to_thread`.
"""

from __future__ import annotations

import atexit
import contextlib
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self
from urllib.parse import urlencode

from tests.engines import install

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

Version = Literal["20.10", "26.1"]

START_TIMEOUT = 60.0
"""Seconds a dockerd may take to answer: 0.2 to 2 measured, 10 when it first has to end orphaned containers."""

STOP_TIMEOUT = 30.0
"""Seconds a process may take to end before it is killed: dockerd gives each of its containers 10."""

_CALL_TIMEOUT = 30.0
_POLL = 0.02
_LOG_TAILS = {"network": 5, "containerd": 5, "dockerd": 30}  # lines
_SOCKET_PATH_MAX = 107  # bytes, of AF_UNIX on Linux
_BUSYBOX = Path("/bin/busybox")
_APPLETS = ("sh", "sleep", "true", "false", "kill", "cat", "echo", "touch", "test", "ls")

_CONTAINERD_CONFIG = """\
version = 2
root = "{root}/containerd/root"
state = "{root}/containerd/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{root}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{root}/containerd/opt"
"""

_OPENSSL_CONFIG = """\
[req]
distinguished_name = name
[name]
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[server]
basicConstraints = critical, CA:FALSE
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
extendedKeyUsage = serverAuth
subjectAltName = IP:127.0.0.1, DNS:localhost
[client]
basicConstraints = critical, CA:FALSE
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
extendedKeyUsage = clientAuth
"""


class EngineFailedError(Exception):
    """An engine did not do what it was told; the message ends with the last lines of its log."""


class Dockerd:
    """A Docker engine of our own, with its own containerd, so that killing dockerd alone leaves the containers' shims.

    A context manager: entering starts it, leaving closes it. It runs in its own network namespace, so that bridge
    networks with real addresses work and vanish with it; with `tcp` it runs in the host's, to be reachable.

    Args:
        version: which of the installed engines.
        root: an empty or missing folder for everything it writes; a temporary one if None. Keep it short: socket paths
            end at 107 bytes.
        live_restore: whether containers outlive a dockerd that goes away.
        tcp: whether it listens on a TCP port of 127.0.0.1 too.
        tls: whether it demands mutual TLS there; implies `tcp`. The client's `ca.pem`, `cert.pem` and `key.pem` are
            then in `certificates`.
    """

    def __init__(
        self,
        version: Version,
        root: Path | None = None,
        *,
        live_restore: bool = False,
        tcp: bool = False,
        tls: bool = False,
    ) -> None:
        """Prepare the folder; nothing runs before `start`."""
        self.expected = version
        self.root = Path(tempfile.mkdtemp(prefix="ww-")) if root is None else root
        self.socket = self.root / "docker.sock"
        if len(os.fsencode(self.root / "exec/containerd/containerd-debug.sock")) > _SOCKET_PATH_MAX:
            message = f"{self.root} is too long for the sockets in it"
            raise ValueError(message)
        self.address = f"unix://{self.socket}"
        self.live_restore = live_restore
        self.port = _free_port() if tcp or tls else None
        self.certificates = self.root / "tls" if tls else None
        self.version = ""
        self._dockerd: subprocess.Popen[bytes] | None = None
        self._containerd: subprocess.Popen[bytes] | None = None
        self._network: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start the engine; what was started is ended again if that fails."""
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the engine."""
        self.close()

    def __repr__(self) -> str:
        """Tell which engine this is, and where."""
        return f"<Dockerd {self.version or self.expected} at {self.address}>"

    @property
    def pid(self) -> int:
        """The PID of the running dockerd."""
        if self._dockerd is None:
            message = f"{self!r} is not running"
            raise EngineFailedError(message)
        return self._dockerd.pid

    @property
    def running(self) -> bool:
        """Whether dockerd has been started and not ended; frozen counts as running."""
        return self._dockerd is not None and self._dockerd.poll() is None

    @property
    def tcp_address(self) -> str:
        """Its TCP address, as a `tcp://` URL."""
        if self.port is None:
            message = f"{self!r} has no TCP port"
            raise EngineFailedError(message)
        return f"tcp://127.0.0.1:{self.port}"

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the engine, and wait until it answers; also again after `stop` and `kill`, with the same data."""
        if self.running:
            return
        atexit.register(self.close)
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / "daemon.json").write_text("{}")  # or it would read the machine's own
        if self.certificates is not None and not self.certificates.exists():
            _make_certificates(self.certificates)
        if self._network is None and self.port is None:
            self._network = self._spawn_network()
        if self._containerd is None or self._containerd.poll() is not None:
            self._containerd = self._spawn_containerd()
        (self.root / "docker.pid").unlink(missing_ok=True)  # a killed dockerd leaves its own
        self._dockerd = self._spawn("dockerd", self._dockerd_command())
        self._wait_for("answer", self._answers, START_TIMEOUT)
        self._import_image()

    def stop(self) -> None:
        """End dockerd in good order; without live-restore it stops its containers first."""
        self.thaw()
        _end(self._dockerd, signal.SIGTERM)
        self._dockerd = None

    def kill(self) -> None:
        """End dockerd with SIGKILL; containers run on until a dockerd without live-restore starts again."""
        _end(self._dockerd, signal.SIGKILL)
        self._dockerd = None

    def restart(self) -> None:
        """Stop and start again."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Make dockerd hang, and wait until it does: the kernel accepts connections, but nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)
        self._wait_for("freeze", lambda: _thread_states(self.pid) == {"T"}, STOP_TIMEOUT)

    def thaw(self) -> None:
        """Let a frozen dockerd go on."""
        if self.running:
            os.kill(self.pid, signal.SIGCONT)

    def freeze_containerd(self) -> None:
        """Make its containerd hang: dockerd still answers, but whatever needs a shim waits."""
        assert self._containerd is not None
        os.kill(self._containerd.pid, signal.SIGSTOP)

    def thaw_containerd(self) -> None:
        """Let a frozen containerd go on."""
        if self._containerd is not None and self._containerd.poll() is None:
            os.kill(self._containerd.pid, signal.SIGCONT)

    def close(self) -> None:
        """End everything that was started here and remove everything it wrote; closing twice is fine."""
        atexit.unregister(self.close)
        self.thaw()
        self.thaw_containerd()
        self._remove_containers()
        self.stop()
        self._remove_tasks()
        _end(self._containerd, signal.SIGTERM)
        _end(self._network, signal.SIGKILL)
        self._containerd = self._network = None
        for mount in _mounts_below(self.root):
            subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)
        shutil.rmtree(self.root, ignore_errors=True)

    def log_tail(self) -> str:
        """Return the last lines that dockerd and containerd have logged."""
        tails = []
        for name, count in _LOG_TAILS.items():
            with contextlib.suppress(OSError):
                lines = (self.root / f"{name}.log").read_text(errors="replace").splitlines()
                tails += [f"{name}: {line}" for line in lines[-count:]]
        return "\n".join(tails)

    # -- processes ---------------------------------------------------------------------------------------------------

    def _dockerd_command(self) -> Iterator[str]:
        if self._network is not None:
            yield from ("nsenter", f"--net=/proc/{self._network.pid}/ns/net")
        yield "dockerd"
        yield f"--config-file={self.root}/daemon.json"
        yield f"--data-root={self.root}/data"
        yield f"--exec-root={self.root}/exec"
        yield f"--pidfile={self.root}/docker.pid"
        yield f"--containerd={self.root}/containerd.sock"
        yield f"--host={self.address}"
        yield from ("--iptables=false", "--ip6tables=false", "--bridge=none")
        if self.live_restore:
            yield "--live-restore"
        if self.port is not None:
            yield f"--host={self.tcp_address}"
        if self.certificates is not None:
            yield "--tlsverify"
            yield f"--tlscacert={self.certificates}/ca.pem"
            yield f"--tlscert={self.certificates}/server-cert.pem"
            yield f"--tlskey={self.certificates}/server-key.pem"
        elif self.port is not None:
            yield "--tls=false"  # said aloud, it spares the engine's seconds of warning

    def _spawn_containerd(self) -> subprocess.Popen[bytes]:
        config = self.root / "containerd.toml"
        config.write_text(_CONTAINERD_CONFIG.format(root=self.root))
        process = self._spawn("containerd", ["containerd", "--config", str(config)])
        self._containerd = process
        self._wait_for("listen", lambda: _listens(self.root / "containerd.sock"), START_TIMEOUT)
        return process

    def _spawn_network(self) -> subprocess.Popen[bytes]:
        """Start a process that keeps a network namespace alive, across all restarts of dockerd."""
        script = "busybox ip link set lo up; exec busybox sleep 1000000"
        process = self._spawn("network", ["unshare", "--net", "busybox", "sh", "-c", script])
        self._network = process
        ours = Path("/proc/self/ns/net").readlink()
        theirs = Path(f"/proc/{process.pid}/ns/net")
        self._wait_for("get its network namespace", lambda: theirs.readlink() != ours, START_TIMEOUT)
        return process

    def _spawn(self, name: str, command: Sequence[str] | Iterator[str]) -> subprocess.Popen[bytes]:
        with (self.root / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                list(command),
                env=self._environment(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # an interrupt at the keyboard must not end it before its containers
            )

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DOCKER_", "CONTAINERD_"))}
        return kept | {"PATH": ":".join(install.search_path(self.expected))}

    def _wait_for(self, what: str, reached: Callable[[], bool], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not reached():
            processes = (self._dockerd, self._containerd, self._network)
            codes = [process.poll() for process in processes if process is not None]
            ended = [code for code in codes if code is not None]
            if ended or time.monotonic() > deadline:
                why = f"a process ended with {ended[0]}" if ended else f"took over {timeout:g} s"
                message = f"{self!r}: did not {what}: {why}\n{self.log_tail()}"
                raise EngineFailedError(message)
            time.sleep(_POLL)

    # -- what is inside ------------------------------------------------------------------------------------------------

    def _answers(self) -> bool:
        try:
            self._call("GET", "/_ping", timeout=5.0)
            self.version = json.loads(self._call("GET", "/version"))["Version"]
        except (OSError, http.client.HTTPException):
            return False
        if not self.version.startswith(self.expected):
            message = f"{self!r} was meant to be {self.expected}"
            raise EngineFailedError(message)
        return True

    def _import_image(self) -> None:
        with contextlib.suppress(EngineFailedError):
            self._call("GET", "/images/tiny:latest/json")
            return
        changes = ['CMD ["/bin/sleep","1000000"]', "ENV PATH=/bin"]
        query = urlencode({"fromSrc": "-", "repo": "tiny", "tag": "latest", "changes": changes}, doseq=True)
        self._call("POST", f"/images/create?{query}", busybox_tar())

    def _remove_containers(self) -> None:
        """Let dockerd itself remove all containers, which leaves the least behind."""
        if not self.running:
            return
        with contextlib.suppress(OSError, http.client.HTTPException, EngineFailedError):
            for container in json.loads(self._call("GET", "/containers/json?all=1")):
                with contextlib.suppress(EngineFailedError):
                    self._call("DELETE", f"/containers/{container['Id']}?force=1&v=1")

    def _remove_tasks(self) -> None:
        """Remove what a dockerd that is gone has left running: by its containerd, and the rest by PID."""
        if not _shims(self.root):
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            if tasks := self._ctr_tasks("list", "--quiet").split():
                self._ctr_tasks("delete", "--force", *tasks)
        left = [pid for shim in _shims(self.root) for pid in (shim, *_children(shim))]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + STOP_TIMEOUT
        while any(_alive(pid) for pid in left) and time.monotonic() < deadline:
            time.sleep(_POLL)

    def _ctr_tasks(self, *arguments: str) -> str:
        command = ["ctr", "--address", f"{self.root}/containerd.sock", "--namespace", "moby", "tasks", *arguments]
        environment = self._environment()
        ran = subprocess.run(
            command, env=environment, timeout=STOP_TIMEOUT, check=False, capture_output=True, text=True
        )
        return ran.stdout

    def _call(self, method: str, path: str, body: bytes | None = None, *, timeout: float = _CALL_TIMEOUT) -> bytes:
        connection = _UnixConnection(self.socket, timeout)
        try:
            connection.request(method, path, body=body, headers={"Host": "docker"})
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        if response.status >= 400:
            message = f"{self!r}: {method} {path}: {response.status} {answer.decode(errors='replace')}"
            raise EngineFailedError(message)
        return answer


def busybox_tar() -> bytes:
    """Return the root file system of the smallest image that can sleep, as a tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(_BUSYBOX, "bin/busybox")
        for applet in _APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type = tarfile.SYMTYPE
            link.linkname = "busybox"
            archive.addfile(link)
    return buffer.getvalue()


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("docker", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end(process: subprocess.Popen[bytes] | None, how: signal.Signals) -> None:
    """End a child of ours and reap it, so that its PID cannot be taken for somebody else's."""
    if process is None:
        return
    process.send_signal(how)
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _shims(root: Path) -> list[int]:
    """Return the PIDs of the shims that our containerd has started: its address is on their command line."""
    address = os.fsencode(root / "containerd.sock")
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and address in (folder / "cmdline").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return [pid for pid in found if pid != os.getpid()]


def _children(parent: int) -> list[int]:
    """Return the PIDs of all that descend from a process."""
    children: list[int] = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{parent}/task").iterdir():
            children += [int(pid) for pid in (thread / "children").read_text().split()]
    return children + [pid for child in children for pid in _children(child)]


def _alive(pid: int) -> bool:
    return bool(_thread_states(pid) - {"Z"})


def _thread_states(pid: int) -> set[str]:
    """Return the states of a process's threads, such as "S", "T" or "Z"; none if it is gone."""
    states = set()
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                states.add((thread / "stat").read_text().rpartition(")")[2].split()[0])
    return states


def _mounts_below(root: Path) -> list[str]:
    """Return what is mounted below a folder, the deepest first."""
    inside = f"{root.resolve()}/"
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    mounts = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    return sorted((mount for mount in mounts if mount.startswith(inside)), key=len, reverse=True)


def _make_certificates(folder: Path) -> None:
    """Make an authority, a server certificate for 127.0.0.1 and a client certificate."""
    folder.mkdir()
    config = folder / "openssl.cnf"
    config.write_text(_OPENSSL_CONFIG)
    common = ["openssl", "req", "-x509", "-config", str(config), "-days", "2", "-nodes"]
    common += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    signed = ["-CA", f"{folder}/ca.pem", "-CAkey", f"{folder}/ca-key.pem"]
    for role, certificate, key, authority in (
        ("ca", "ca.pem", "ca-key.pem", []),
        ("server", "server-cert.pem", "server-key.pem", signed),
        ("client", "cert.pem", "key.pem", signed),
    ):
        files = ["-out", f"{folder}/{certificate}", "-keyout", f"{folder}/{key}"]
        subject = ["-subj", f"/CN={role}", "-extensions", role]
        subprocess.run([*common, *subject, *files, *authority], check=True, capture_output=True)
