"""Run tests against the built wheel on another Python: `python -m tests.support.pythons 3.12 -- -m pytest ...`.

The wheel and the tests of the source distribution beside it, both from `dist/`, go into a virtual environment and a
folder of their own. The Python is the machine's, pyenv's, or else Debian's for tests: that one is unpacked, and entered
in a mount namespace of its own where its `/usr` lies over the machine's, since it needs a newer C library.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.debian import DebianError, cache, say, unpack

if TYPE_CHECKING:
    from collections.abc import Sequence

RELEASE = "forky"
VERSIONS = ("3.14", "3.15")
"""What that release of Debian has."""

PACKAGES = (
    *(
        name.format(version)
        for version in VERSIONS
        for name in ("python{}", "python{}-minimal", "libpython{}-minimal", "libpython{}-stdlib", "python{}-venv")
    ),
    *("python3-pip-whl", "python3-setuptools-whl", "libc6", "libgcc-s1", "libbz2-1.0", "libdb5.3t64", "libexpat1"),
    *("libffi8", "liblzma5", "libncursesw6", "libreadline8t64", "libsqlite3-0", "libssl3t64", "libtinfo6", "libuuid1"),
    *("libzstd1", "zlib1g"),
)
"""These Pythons, and what of their libraries is newer than the machine's."""

ROOT = Path(__file__).parents[2]

INSTALL_TIMEOUT = 600.0
TEST_TIMEOUT = 1200.0
"""Seconds for the installation, and for the tests."""


class FailedError(Exception):
    """Why the tests could not be run."""


def main(version: str, arguments: Sequence[str]) -> int:
    """Run Python with these arguments, such as `-m pytest`; return its exit code."""
    try:
        python = find(version)
        folder = ROOT / ".pythons" / version
        shutil.rmtree(folder, ignore_errors=True)
        source = unpack_source(folder)
        venv = folder / "venv" / "bin" / "python"
        wheel = next((ROOT / "dist").glob("*.whl"))
        pip = [str(venv), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
        for command in (
            [python[-1], "-m", "venv", str(folder / "venv")],
            [*pip, "--upgrade", "pip>=25.1"],
            [*pip, "--group", f"{source}/pyproject.toml:dev", str(wheel)],
            [str(venv), "-c", "import whalewatch as w; assert w.__file__.startswith(__import__('sys').prefix), w"],
        ):
            run(f"Python {version}", [*python[:-1], *command], source, INSTALL_TIMEOUT)
        code = run(None, [*python[:-1], str(venv), *arguments], source, TEST_TIMEOUT)
    except (FailedError, DebianError) as error:
        say(f"Python {version}: {error}")
        return 1
    say(f"Python {version}: {'passed' if code == 0 else f'failed with exit code {code}'}, against {wheel.name}")
    return code


def find(version: str) -> list[str]:
    """Return the command that runs this Python."""
    for python in (f"python{version}", *map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))):
        if _has_venv(python):
            return [python]
    if version not in VERSIONS or os.geteuid() != 0 or shutil.which("apt-get") is None:
        message = "left out: it is not on this machine"
        if version in VERSIONS:
            message += f", and only root can use that of Debian {RELEASE}, on Debian"
        raise FailedError(message)
    folder = cache() / "pythons"
    if unpack(RELEASE, PACKAGES, folder):
        say(f"Python {', '.join(VERSIONS)} of Debian {RELEASE} unpacked into {folder}")
    enter = f'mount -t overlay overlay -o "lowerdir={folder}/usr:/usr" /usr && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", enter, "sh", f"/usr/bin/python{version}"]


def unpack_source(folder: Path) -> Path:
    """Unpack the source distribution, and leave the library itself out of what Python finds there."""
    with tarfile.open(next((ROOT / "dist").glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.glob("whalewatch-*"))


def run(name: str | None, command: Sequence[str], folder: Path, timeout: float) -> int:
    """Run a program; with a name, it prints nothing, and its failure is an error that quotes it."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    try:
        ran = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            check=False,
            timeout=timeout,
            capture_output=name is not None,
            text=True,
        )
    except subprocess.TimeoutExpired as error:
        message = f"took more than {timeout:g} s: {' '.join(command)}"
        raise FailedError(message) from error
    if name is not None and ran.returncode != 0:
        message = f"left out: {' '.join(command)}: {(ran.stderr or ran.stdout).strip()[-2000:]}"
        raise FailedError(message)
    return ran.returncode


def _has_venv(python: str) -> bool:
    path = shutil.which(python)
    return (
        path is not None
        and subprocess.run([path, "-c", "import ensurepip"], check=False, timeout=60, capture_output=True).returncode
        == 0
    )


if __name__ == "__main__":
    split = sys.argv.index("--")
    sys.exit(main(sys.argv[1], sys.argv[split + 1 :]))
