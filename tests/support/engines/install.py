"""Install the real engines of the live tests: `python3 -m tests.support.engines.install`, as root on Debian.

The distribution's own engines come as packages. The newer Docker comes from Debian's next release, and is unpacked
beside them into `$WHALEWATCH_ENGINES`, or `~/.cache/whalewatch/engines`, with nothing of it installed. Needs nothing
but the standard library, and does nothing in no time when all is there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PACKAGES = ("docker.io", "containerd", "runc", "crun", "podman", "busybox-static")
"""Debian's packages with the engines of the running release."""

PROGRAMS = ("dockerd", "containerd", "containerd-shim-runc-v2", "ctr", "runc", "crun", "podman", "busybox")
"""What these packages bring, to see whether they are there."""

NEWER_RELEASE = "trixie"
NEWER_PACKAGES = ("docker.io", "containerd")
NEWER_VERSION = "26.1"
"""The Docker of that release; its programs need nothing newer than what the supported hosts have."""

NEWER_CONTAINERD = "1.7"
"""The containerd of that release."""

OUR_RELEASE = "bookworm"
OUR_VERSION = "20.10"
"""The Docker of the release that we install packages on."""

HOST_PATH = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""Where the packages put their programs; what else a machine has on its PATH is not to be tested."""

_NEWER = frozenset({NEWER_VERSION, NEWER_CONTAINERD})
_ATTEMPTS = 4
_PAUSE = 3.0  # seconds before the first repetition, doubled for each further one
_POLICY = Path("/usr/sbin/policy-rc.d")
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class InstallError(Exception):
    """Something could not be installed; the message says what, and what the tool said."""


def engines_folder() -> Path:
    """Return the folder of the engines that are unpacked rather than installed."""
    configured = os.environ.get("WHALEWATCH_ENGINES")
    if configured:
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "whalewatch" / "engines"


def search_path(version: str) -> tuple[str, ...]:
    """Return the folders in which an engine of this version, of Docker or of containerd, finds its programs."""
    if version not in _NEWER:
        return HOST_PATH
    folder = engines_folder() / NEWER_RELEASE / "usr"
    return (f"{folder}/sbin", f"{folder}/bin", *HOST_PATH)


def unsupported() -> str | None:
    """Tell why engines can be neither installed nor run on this machine, or None if they can."""
    if sys.platform != "linux":
        return "engines run on Linux only"
    if os.geteuid() != 0:
        return "engines need root"
    return None


def missing(version: str) -> str | None:
    """Tell why the engine of this version cannot run here, or None if it can."""
    if (why := unsupported()) is not None:
        return why
    folders = os.pathsep.join(search_path(version))
    absent = [program for program in PROGRAMS if shutil.which(program, path=folders) is None]
    if version in _NEWER and not _unpacked().is_file():
        absent = [f"Docker {NEWER_VERSION} with containerd {NEWER_CONTAINERD}"]
    return f"not installed: {', '.join(absent)}" if absent else None


def main() -> int:
    started = time.monotonic()
    if (why := unsupported() or _not_debian()) is not None:
        _say(f"the live tests are left out: {why}")
        return 0
    try:
        done = [*_install_packages(), *_unpack_newer()]
    except InstallError as error:
        _say(f"failed: {error}")
        return 1
    _say(f"{', '.join(done) or 'everything is there'} ({time.monotonic() - started:.1f} s)")
    return 0


def _install_packages() -> Iterator[str]:
    if missing(OUR_VERSION) is None:
        return
    _say(f"installing {' '.join(PACKAGES)}")
    _refresh_lists()
    with _no_services():
        _apt(["install", "--yes", "--no-install-recommends", *PACKAGES])
    if (why := missing(OUR_VERSION)) is not None:
        raise InstallError(why)
    yield "packages installed"


def _unpack_newer() -> Iterator[str]:
    if _unpacked().is_file():
        return
    folder = engines_folder() / NEWER_RELEASE
    _say(f"unpacking Docker {NEWER_VERSION} into {folder}")
    work = folder.with_name(f".{NEWER_RELEASE}.{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    try:
        archives = _download(work / "apt")
        for archive in archives:
            _run(["dpkg-deb", "--extract", str(archive), str(work / "root")])
        (work / "root" / _unpacked().name).write_text("".join(f"{archive.name}\n" for archive in archives))
        shutil.rmtree(folder, ignore_errors=True)
        (work / "root").rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    yield f"Docker {NEWER_VERSION} unpacked"


def _download(work: Path) -> list[Path]:
    """Download the newer packages through an apt folder of our own, so that the machine's own is left as it is."""
    for folder in ("etc/apt.conf.d", "etc/preferences.d", "state/lists/partial", "cache/archives/partial"):
        (work / folder).mkdir(parents=True)
    (work / "status").touch()
    (work / "sources.list").write_text(f"deb [signed-by={_KEYRING}] {_mirror()} {NEWER_RELEASE} main\n")
    options = {
        "Dir::Etc": f"{work}/etc",
        "Dir::Etc::SourceList": f"{work}/sources.list",
        "Dir::Etc::SourceParts": "-",
        "Dir::State": f"{work}/state",
        "Dir::State::status": f"{work}/status",
        "Dir::Cache": f"{work}/cache",
        "APT::Sandbox::User": "root",  # apt's own user may not enter a home folder
        "Acquire::Languages": "none",
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
    }
    flags = [argument for name, value in options.items() for argument in ("-o", f"{name}={value}")]
    target = work / "archives"
    target.mkdir()
    _apt([*flags, "update", "--error-on=any"])
    _apt([*flags, "download", *NEWER_PACKAGES], cwd=target)
    return sorted(target.glob("*.deb"))


def _mirror() -> str:
    """Return the Debian mirror that this machine's own apt sources name."""
    wanted = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    listed = _run(["apt-get", "indextargets", "--format", wanted, "Created-By: Packages"])
    for line in listed.splitlines():
        uri, release, component = line.split()
        if (release, component) == (OUR_RELEASE, "main"):
            return uri
    message = f"no apt source of this machine offers {OUR_RELEASE} main"
    raise InstallError(message)


def _refresh_lists() -> None:
    """Fetch the package lists; a source that is not Debian's may fail without harm."""
    try:
        _apt(["update", "--error-on=any"])
    except InstallError as error:
        _say(f"going on with the package lists as they are: {error}")


@contextlib.contextmanager
def _no_services() -> Iterator[None]:
    """Keep the packages from starting system daemons while they are being installed."""
    if _POLICY.exists():  # the machine has a policy of its own; a machine with an init system seldom does
        yield
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink()


def _apt(arguments: Sequence[str], *, cwd: Path | None = None) -> None:
    """Run apt-get, again after a pause when it fails: mirrors have their moments."""
    command = ["apt-get", "--quiet=2", "-o", "Acquire::Retries=3", "-o", "DPkg::Lock::Timeout=120", *arguments]
    for attempt in range(_ATTEMPTS):
        try:
            _run(command, cwd=cwd)
        except InstallError as error:
            if attempt == _ATTEMPTS - 1:
                raise
            _say(f"trying again: {error}")
            time.sleep(_PAUSE * 2**attempt)
        else:
            return


def _run(command: Sequence[str], *, cwd: Path | None = None) -> str:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    try:
        ran = subprocess.run(command, cwd=cwd, env=environment, check=False, capture_output=True, text=True)
    except OSError as error:
        message = f"{command[0]}: {error}"
        raise InstallError(message) from error
    if ran.returncode != 0:
        said = (ran.stderr or ran.stdout).strip()
        message = f"{' '.join(command)}: exit code {ran.returncode}: {said[-2000:]}"
        raise InstallError(message)
    return ran.stdout


def _unpacked() -> Path:
    """Return the file that is written last, once all is unpacked."""
    return engines_folder() / NEWER_RELEASE / "unpacked"


def _not_debian() -> str | None:
    with contextlib.suppress(OSError):
        lines = Path("/etc/os-release").read_text().splitlines()
        if f"VERSION_CODENAME={OUR_RELEASE}" in lines:
            return None
    return f"the engines are installed from Debian {OUR_RELEASE}, which this is not"


def _say(text: str) -> None:
    print(f"engines: {text}", flush=True)  # noqa: T201 - this is a command


if __name__ == "__main__":
    sys.exit(main())
