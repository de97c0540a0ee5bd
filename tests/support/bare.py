"""Try `make demo` and `make test` on a minimal Debian: `python -m tests.support.bare [RELEASE]`, as root on Debian.

debootstrap makes a root folder with git, make, python3 and python3-venv, and nothing else. The last commit is cloned
into a home folder there that only its owner may enter; both commands run in mount and PID namespaces of their own, with
the name servers, hosts and authorities of this machine. The folder is removed in the end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.debian import mirror, run, say, unpack

PACKAGES = ("git", "make", "python3", "python3-venv")
COMMANDS = {"make demo SECONDS=5": 300.0, "make test": 3600.0}  # what to run, and the seconds that each may take

_AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"

# runc cannot change the root of a process in a chroot: so this is the root of a mount namespace.
_ENTER = """
mount --bind "$1" "$1"; cd "$1"
mount -t proc proc proc; mount --rbind /dev dev; mount --rbind /sys sys; mount -t tmpfs tmpfs run
mkdir old; pivot_root . old; umount --lazy old; rmdir old; cd /root/whalewatch
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb PIP_CERT="$3" bash -c "$2"
"""


def main(release: str) -> int:
    """Run the commands; return how many failed."""
    failed = 0
    with tempfile.TemporaryDirectory(prefix="ww-bare-") as work:
        root = Path(work) / "root"
        make_root(release, Path(work) / "tools", root)
        run(["git", "clone", "--quiet", str(Path(__file__).parents[2]), str(root / "root" / "whalewatch")])
        (root / "root").chmod(0o700)
        for command, timeout in COMMANDS.items():
            say(f"---- {release}: {command}")
            before, started = installed(root), time.monotonic()
            enter = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-ec", _ENTER]
            arguments = ["enter", str(root), command, _AUTHORITIES]
            code = subprocess.run([*enter, *arguments], check=False, timeout=timeout).returncode
            failed += code != 0
            say(f"---- {release}: {command}: exit code {code} after {time.monotonic() - started:.0f} s")
            left = installed(root) - before
            for path in sorted(path for path in left if str(Path(path).parent) not in left):
                say(f"---- left outside home and checkout: {path}")
    return failed


def make_root(release: str, tools: Path, root: Path) -> None:
    """Install a minimal Debian into a folder."""
    unpack("bookworm", ["debootstrap"], tools)
    os.environ["DEBOOTSTRAP_DIR"] = f"{tools}/usr/share/debootstrap"
    options = ["--variant=minbase", f"--include={','.join(PACKAGES)}"]
    run([f"{tools}/usr/sbin/debootstrap", *options, release, str(root), mirror()])
    (root / _AUTHORITIES).parent.mkdir(parents=True, exist_ok=True)
    for file in ("/etc/hosts", "/etc/resolv.conf", _AUTHORITIES):
        shutil.copy(file, f"{root}{file}")


def installed(root: Path) -> set[str]:
    """Return what is below the folders that belong to the system."""
    return {
        str(path.relative_to(root))
        for folder in ("etc", "usr", "var", "opt", "tmp")
        for path in (root / folder).rglob("*")
    }


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
