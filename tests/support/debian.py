"""Get Debian's packages without installing them: unpacked into a folder, and nothing else of the machine touched.

apt keeps its lists and archives in a folder of its own, which is removed; the mirror is that of the machine's own apt
sources. Needs nothing but the standard library.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

TIMEOUT = 900.0  # seconds that one program may take: a slow mirror gives 50 MB in less

_MARK = "unpacked"  # the file that is written last
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class DebianError(Exception):
    """Something could not be had; the message says what, and what the tool said."""


def running_release() -> str | None:
    """Return the code name of the Debian that this is, or None if it is none."""
    try:
        told = platform.freedesktop_os_release()
    except OSError:
        return None
    return told.get("VERSION_CODENAME") if told["ID"] == "debian" else None


def cache() -> Path:
    """Return the folder below which packages are unpacked."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "whalewatch"


def unpack(release: str, packages: Sequence[str], folder: Path, *, needed: bool = False) -> bool:
    """Unpack packages of a release into a folder, unless it already holds just these; return whether that was done.

    With `needed`, also what they depend on and the machine lacks; `release` is the machine's own then.
    """
    wanted = f"{release}: {' '.join(packages)}\n"
    if unpacked(folder) == wanted:
        return False
    work = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    try:
        for archive in _download(release, packages, work / "apt", needed=needed):
            run(["dpkg-deb", "--extract", str(archive), str(work / "root")])
        (work / "root" / _MARK).write_text(wanted)
        shutil.rmtree(folder, ignore_errors=True)
        (work / "root").rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return True


def unpacked(folder: Path) -> str | None:
    """Return what a folder holds, or None while it is not complete."""
    return (folder / _MARK).read_text() if (folder / _MARK).exists() else None


def _download(release: str, packages: Sequence[str], work: Path, *, needed: bool) -> list[Path]:
    for folder in ("etc/apt.conf.d", "etc/preferences.d", "state/lists/partial", "cache/archives/partial", "archives"):
        (work / folder).mkdir(parents=True)
    (work / "status").touch()
    (work / "sources.list").write_text(f"deb [signed-by={_KEYRING}] {mirror()} {release} main\n")
    options = {
        "Dir::Etc": f"{work}/etc",
        "Dir::Etc::SourceList": f"{work}/sources.list",
        "Dir::Etc::SourceParts": "-",
        "Dir::State": f"{work}/state",
        "Dir::State::status": "/var/lib/dpkg/status" if needed else f"{work}/status",
        "Dir::Cache": f"{work}/cache",
        "Debug::NoLocking": "true",  # nothing that anybody else uses is written
        "APT::Sandbox::User": "root",  # apt's own user may not enter a home folder
        "Acquire::Check-Valid-Until": "false",  # a mirror may be a snapshot; signatures are checked all the same
        "Acquire::Languages": "none",
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
    }
    flags = [argument for name, value in options.items() for argument in ("-o", f"{name}={value}")]
    _apt([*flags, "update", "--error-on=any"])
    if needed:
        _apt([*flags, "install", "--download-only", "--yes", "--no-install-recommends", *packages])
    else:
        _apt([*flags, "download", *packages], cwd=work / "archives")
    return sorted(work.glob("*/**/*.deb"))


def mirror() -> str:
    """Return the Debian mirror that this machine's own apt sources name."""
    release = running_release()
    listed = run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"])
    for line in listed.splitlines():
        uri, suite, component = line.split()
        if (suite, component) == (release, "main"):
            return uri
    message = f"no apt source of this machine offers {release} main"
    raise DebianError(message)


def say(text: str) -> None:
    """Tell the user."""
    print(text, flush=True)  # noqa: T201 - this is part of commands


def _apt(arguments: Sequence[str], *, cwd: Path | None = None) -> None:
    """Run apt-get, again after a pause when it fails: mirrors have their moments."""
    for pause in (3.0, 6.0, 12.0, None):
        try:
            run(["apt-get", "--quiet=2", "-o", "Acquire::Retries=3", *arguments], cwd=cwd)
        except DebianError as error:
            if pause is None:
                raise
            say(f"trying again: {error}")
            time.sleep(pause)
        else:
            return


def run(command: Sequence[str], *, cwd: Path | None = None) -> str:
    """Run a program and return what it printed."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    try:
        ran = subprocess.run(
            command, cwd=cwd, env=environment, check=False, capture_output=True, text=True, timeout=TIMEOUT
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        message = f"{command[0]}: {error}"
        raise DebianError(message) from error
    if ran.returncode != 0:
        said = (ran.stderr or ran.stdout).strip()
        message = f"{command[0]}: exit code {ran.returncode}: {said[-2000:]}"
        raise DebianError(message)
    return ran.stdout
