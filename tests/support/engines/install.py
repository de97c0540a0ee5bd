"""Get the real engines of the live tests: `python3 -m tests.support.engines.install`, as root on Debian 12.

Nothing is installed: Debian's packages are unpacked into `$WHALEWATCH_ENGINES`, or `~/.cache/whalewatch/engines`, the
engines of the running release with the libraries that the machine lacks, and the newer ones of the next release. So no
service is set up, no group, nothing in `/etc`. Programs that the machine has are used as they are. Needs nothing but
the standard library, and does nothing in no time when all is there.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support.debian import DebianError, cache, running_release, say, unpack, unpacked

PACKAGES = (
    *("docker.io", "containerd", "runc", "crun", "podman", "busybox-static"),
    *("openssh-client", "openssh-server"),
)
"""Debian's packages with the engines of the running release, and with the way to engines elsewhere."""

PROGRAMS = (
    *("docker", "dockerd", "containerd", "containerd-shim-runc-v2", "ctr", "runc", "crun", "podman", "busybox"),
    *("ssh", "sshd", "ssh-keygen"),
)
"""What these packages bring, to see whether they are there."""

OUR_RELEASE, OUR_VERSION = "bookworm", "20.10"  # the release that the engines run on, and its Docker

NEWER_RELEASE, NEWER_VERSION, NEWER_CONTAINERD = "trixie", "26.1", "1.7"
"""The next, whose programs need nothing newer than what the supported hosts have; its Docker and its containerd."""

HOST_PATH = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""Where the machine has its programs; what else is on its PATH is not to be tested."""

_NEWER = frozenset({NEWER_VERSION, NEWER_CONTAINERD})


def engines_folder() -> Path:
    """Return the folder of the engines."""
    return Path(os.environ.get("WHALEWATCH_ENGINES") or cache() / "engines")


def search_path(version: str) -> tuple[str, ...]:
    """Return the folders in which an engine of this version, of Docker or of containerd, finds its programs."""
    releases = (NEWER_RELEASE, OUR_RELEASE) if version in _NEWER else (OUR_RELEASE,)
    return (*(f"{engines_folder()}/{release}{folder}" for release in releases for folder in HOST_PATH), *HOST_PATH)


def busybox() -> str:
    """Return the path of the program that is all of the smallest image."""
    return shutil.which("busybox", path=os.pathsep.join(search_path(OUR_VERSION))) or "busybox"


def ld_library_path() -> str:
    """Return the folders of the libraries that the machine lacks."""
    machine = sysconfig.get_config_var("MULTIARCH") or ""
    return os.pathsep.join(f"{engines_folder()}/{OUR_RELEASE}{folder}/{machine}" for folder in ("/usr/lib", "/lib"))


def unsupported() -> str | None:
    """Tell why engines can be neither had nor run on this machine, or None if they can."""
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
    if version in _NEWER and unpacked(engines_folder() / NEWER_RELEASE) is None:
        absent = [f"Docker {NEWER_VERSION} with containerd {NEWER_CONTAINERD}"]
    return f"not installed: {', '.join(absent)}" if absent else None


def main() -> int:
    started = time.monotonic()
    if (why := unsupported()) is None and running_release() != OUR_RELEASE:
        why = f"the engines are those of Debian {OUR_RELEASE}, which this is not"
    if why is not None:
        say(f"engines: the live tests are left out: {why}")
        return 0
    try:
        _unpack(OUR_VERSION, OUR_RELEASE, PACKAGES, "90 MB to fetch, 400 MB")
        _unpack(NEWER_VERSION, NEWER_RELEASE, PACKAGES[:2], "60 MB to fetch, 210 MB")
    except DebianError as error:
        say(f"engines: failed: {error}")
        return 1
    say(f"engines: everything is there ({time.monotonic() - started:.1f} s)")
    return 0


def _unpack(version: str, release: str, packages: Sequence[str], size: str) -> None:
    if missing(version) is not None:
        folder = engines_folder() / release
        say(f"engines: unpacking {', '.join(packages)} of Debian {release}: {size} in {folder}")
        unpack(release, packages, folder, needed=release == OUR_RELEASE)
        if (why := missing(version)) is not None:
            raise DebianError(why)


if __name__ == "__main__":
    sys.exit(main())
