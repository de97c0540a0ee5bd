"""Check types against an installed package, as users' checkers do: `python -m tests.typing [PYTHON]`.

PYTHON is an interpreter in whose environment the package, mypy and pyright are installed; by default the one that runs
this. The program is copied away from the checkout, so that the checkers see what is installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory


def main(python: str = sys.executable) -> int:
    """Run all checkers and return how many failed."""
    bin = Path(python).parent
    environ = os.environ | {"PATH": f"{bin}{os.pathsep}{os.environ['PATH']}", "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    with TemporaryDirectory(prefix="whalewatch-typing-") as folder:
        shutil.copy(Path(__file__).with_name("program.py"), folder)
        failed = 0
        for command in (
            ["mypy", "--strict", "--no-incremental", "program.py"],
            ["pyright", "program.py"],
            ["pyright", "--verifytypes", "whalewatch", "--ignoreexternal"],
        ):
            print("$", *command, flush=True)  # noqa: T201 - a command
            failed += subprocess.run([python, "-m", *command], cwd=folder, env=environ, check=False).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
