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
from collections.abc import Iterator
from pathlib import Path

from tests.support.debian import DebianError, cache, running_release, say, unpack, unpacked

PACKAGES = ("docker.io", "containerd", "runc", "crun", "podman", "busybox-static")
"""Debian's packages with the engines of the running release."""

PROGRAMS = ("docker", "dockerd", "containerd", "containerd-shim-runc-v2", "ctr", "runc", "crun", "podman", "busybox")
"""What these packages bring, to see whether they are there."""

OUR_RELEASE, OUR_VERSION = "bookworm", "20.10"  # the release that the engines run on, and its Docker

NEWER_RELEASE, NEWER_VERSION, NEWER_CONTAINERD = "trixie", "26.1", "1.7"
"""The next, whose programs need nothing newer than what the supported hosts have; its Docker and its containerd."""

HOST_PATH = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""Where the machine has its programs; what else is on its PATH is not to be tested."""

_NEWER = frozenset({NEWER_VERSION, NEWER_CONTAINERD})


def engines_folder() -> Path:
    """Return the folder of the engines."""
    configured = os.environ.get("WHALEWATCH_ENGINES")
    return Path(configured) if configured else cache() / "engines"


def search_path(version: str) -> tuple[str, ...]:
    """Return the folders in which an engine of this version, of Docker or of containerd, finds its programs."""
    releases = (NEWER_RELEASE, OUR_RELEASE) if version in _NEWER else (OUR_RELEASE,)
    return (*(f"{engines_folder()}/{release}{folder}" for release in releases for folder in HOST_PATH), *HOST_PATH)


def busybox() -> str:
    """Return the path of the program that is all of the smallest image."""
    return shutil.which("busybox", path=os.pathsep.join(search_path(OUR_VERSION))) or "busybox"


def library_path() -> str:
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
        done = [*_unpack()]
    except DebianError as error:
        say(f"engines: failed: {error}")
        return 1
    say(f"engines: {', '.join(done) or 'everything is there'} ({time.monotonic() - started:.1f} s)")
    return 0


def _unpack() -> Iterator[str]:
    ours, newer = engines_folder() / OUR_RELEASE, engines_folder() / NEWER_RELEASE
    if missing(OUR_VERSION) is not None:
        say(f"engines: unpacking {', '.join(PACKAGES)} of Debian {OUR_RELEASE}: 90 MB to fetch, 400 MB in {ours}")
        unpack(OUR_RELEASE, PACKAGES, ours, needed=True)
        if (why := missing(OUR_VERSION)) is not None:
            raise DebianError(why)
        yield f"those of {OUR_RELEASE} unpacked"
    if missing(NEWER_VERSION) is not None:
        say(f"engines: unpacking Docker {NEWER_VERSION} of Debian {NEWER_RELEASE}: 60 MB to fetch, 210 MB in {newer}")
        unpack(NEWER_RELEASE, PACKAGES[:2], newer)
        yield f"Docker {NEWER_VERSION} unpacked"


if __name__ == "__main__":
    sys.exit(main())
