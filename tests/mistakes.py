"""Make mistakes in copies of the library and see whether the tests catch each: `python -m tests.mistakes --help`.

`mistakes.toml` lists them. Nothing in `src` is touched, and whatever the tests start gets the copy as well.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent.parent

TIMEOUT = 300.0
"""Seconds after which tests that hang have caught their mistake."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """One entry of the list, or the library as it is where nothing is to be replaced."""

    what: str
    kind: str
    file: str
    old: str
    new: str
    tests: Sequence[str]
    live: bool = False

    def made(self) -> str:
        """The text of the file with this mistake in it."""
        text = (ROOT / self.file).read_text(encoding="utf-8")
        if (found := text.count(self.old)) != 1:
            raise ValueError(f"{self.what}: what it replaces stands {found} times in {self.file}")
        return text.replace(self.old, self.new)


def mistakes() -> list[Mistake]:
    """The whole list."""
    entries = tomllib.loads((ROOT / "tests" / "mistakes.toml").read_text(encoding="utf-8"))["mistake"]
    return [Mistake(**entry) for entry in entries]


def main(arguments: Sequence[str] | None = None) -> int:
    """Make each mistake, tell what came of it, and return 1 unless all were caught."""
    parser = argparse.ArgumentParser(prog="python -m tests.mistakes", description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="mistakes at a time (default: 2)")
    parser.add_argument("--only", default="", metavar="TEXT", help="mistakes with this text in them, no others")
    options = parser.parse_args(arguments)
    chosen = [one for one in mistakes() if options.only in f"{one.kind}: {one.what}"]
    for one in chosen:
        one.made()  # or the list is out of date, which is told at once
    none = {(*one.tests, one.live): Mistake("no mistake", "", "", "", "", one.tests, one.live) for one in chosen}
    caught = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        # Where there is no mistake there is nothing to catch.
        broken = False
        for one, (verdict, why) in zip(none.values(), pool.map(_judge, none.values()), strict=True):
            if verdict != "MISSED":
                broken = True
                sys.stderr.write(f"BROKEN without any mistake: {' '.join(one.tests)} ({why})\n")
        for mistake, (verdict, why) in zip(chosen, pool.map(_judge, chosen), strict=True) if not broken else ():
            caught += verdict == "caught"
            sys.stderr.write(f"{verdict} {mistake.kind}: {mistake.what} ({why})\n")
    sys.stdout.write(f"{caught} of {len(chosen)} caught\n")
    return int(caught < len(chosen) or not chosen)


def _judge(mistake: Mistake) -> tuple[str, str]:
    """Whether its tests catch a mistake, and how."""
    began = time.monotonic()
    with TemporaryDirectory(prefix="whalewatch-mistake-") as folder:
        shutil.copytree(ROOT / "src", Path(folder, "src"))
        if mistake.file:
            Path(folder, mistake.file).write_text(mistake.made(), encoding="utf-8")
        env = os.environ | {"PYTHONPATH": f"{folder}/src", "WHALEWATCH_LIVE": "require" if mistake.live else "off"}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", *mistake.tests]
        output = Path(folder, "output")
        with output.open("wb") as to:
            tests = subprocess.Popen(command, cwd=ROOT, env=env, stdout=to, stderr=to, start_new_session=True)
        try:
            status = tests.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(tests.pid, signal.SIGKILL)
            tests.wait()
            return "caught", f"timed out after {TIMEOUT:g} s"
        told = output.read_text(encoding="utf-8", errors="replace")
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", told, re.MULTILINE)
    how = failed[1] if failed else told.strip().rpartition("\n")[2]
    return {0: "MISSED", 1: "caught"}.get(status, "BROKEN"), f"{how}, {time.monotonic() - began:.1f} s"


if __name__ == "__main__":
    sys.exit(main())
