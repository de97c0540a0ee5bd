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
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.support.debian import DebianError, cache, run, say, unpack

RELEASE = "forky"
VERSIONS = ("3.14", "3.15")  # what that release of Debian has

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
TIMEOUT = 1200.0  # seconds for the tests


def main(version: str, arguments: Sequence[str]) -> int:
    """Run Python with these arguments, such as `-m pytest`; return its exit code."""
    for name in ("PYTHONPATH", "VIRTUAL_ENV"):
        os.environ.pop(name, None)
    try:
        *enter, python = find(version)
        folder = ROOT / ".pythons" / version
        shutil.rmtree(folder, ignore_errors=True)
        source = unpack_source(folder)
        venv = str(folder / "venv" / "bin" / "python")
        wheel = next((ROOT / "dist").glob("*.whl"))
        pip = [venv, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
        for command in (
            [python, "-m", "venv", str(folder / "venv")],
            [*pip, "--upgrade", "pip>=25.1"],
            [*pip, "--group", f"{source}/pyproject.toml:dev", str(wheel)],
            [venv, "-c", "import whalewatch as w; assert w.__file__.startswith(__import__('sys').prefix), w"],
        ):
            run([*enter, *command], cwd=source)
        code = subprocess.run([*enter, venv, *arguments], cwd=source, check=False, timeout=TIMEOUT).returncode
    except (DebianError, subprocess.TimeoutExpired) as error:
        say(f"Python {version}: left out: {error}")
        return 1
    say(f"Python {version}: {'passed' if code == 0 else f'failed with exit code {code}'}, against {wheel.name}")
    return code


def find(version: str) -> list[str]:
    """Return the command that runs this Python."""
    for python in (f"python{version}", *map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))):
        with suppress(DebianError):
            run([python, "-c", "import ensurepip"])
            return [python]
    if version not in VERSIONS:
        raise DebianError("it is not on this machine")
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        message = f"it is not on this machine, and only root can use that of Debian {RELEASE}, on Debian"
        raise DebianError(message)
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


if __name__ == "__main__":
    split = sys.argv.index("--")
    sys.exit(main(sys.argv[1], sys.argv[split + 1 :]))
