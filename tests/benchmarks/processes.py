"""Start and follow the processes that are measured."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import whalewatch
from tests.benchmarks.engine import Target

TIMEOUT = 120.0
"""Seconds that a measured process may take for one answer."""

# The programs find this repository, and the whalewatch that we ourselves have found.
_PATH = os.pathsep.join((str(Path(whalewatch.__file__).parents[1]), str(Path(__file__).parents[2])))


class Program(subprocess.Popen[str]):
    """A process that answers in lines of JSON, by default of Python; a context manager, which ends it."""

    def __init__(self, *arguments: object, command: str = sys.executable) -> None:
        environment, pipe = os.environ | {"PYTHONPATH": _PATH}, subprocess.PIPE
        whole = [*shlex.split(command), *(str(argument) for argument in arguments)]
        super().__init__(whole, stdin=pipe, stdout=pipe, text=True, env=environment)

    def __exit__(self, *error: object) -> None:
        self.kill()
        super().__exit__(None, None, None)

    def answer(self) -> dict[str, Any]:
        """Return the next line, which must come in time."""
        assert self.stdout is not None
        watchdog = threading.Timer(TIMEOUT, self.kill)
        watchdog.start()
        line = self.stdout.readline()
        watchdog.cancel()
        if not line:
            message = f"{self.args!r} said nothing, and ended with {self.wait(TIMEOUT)}"
            raise RuntimeError(message)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def finish(self) -> dict[str, Any]:
        """Close its stdin, and return what it says of that."""
        assert self.stdin is not None
        self.stdin.close()
        return self.answer()


def measured(command: str, target: Target, *arguments: object) -> Program:
    """Start a program that is measured with an engine."""
    return Program("-m", "tests.benchmarks.programs", command, target.kind.name, target.socket, *arguments)
