"""Start and follow the processes that are measured."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import whalewatch

TIMEOUT = 120.0
"""Seconds that a measured process may take beyond what it was asked to."""

_REPOSITORY = Path(__file__).parents[2]
_PACKAGE = Path(whalewatch.__file__).parents[1]


class MeasurementError(Exception):
    """A measured process did not do what it was started for."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Another program to measure beside our own.

    `COMMAND sync KIND SOCKET` prints a line of JSON with `ready_s` (seconds) and `rss_kb`; `COMMAND events KIND SOCKET
    SECONDS` prints `{"ready": true}` and then one line per event with `type`, `id` and `t` (ns since 1970). KIND is
    "moby" or "containerd".
    """

    command: tuple[str, ...]

    def sync(self, kind: str, socket: str) -> dict[str, Any]:
        return _last(_completed([*self.command, "sync", kind, socket]))

    def events(self, kind: str, socket: str, seconds: float) -> Program:
        return Program([*self.command, "events", kind, socket, f"{seconds:g}"])


class Program:
    """A process that answers in lines of JSON; a context manager, which ends it."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment()
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def ask(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            message = f"{' '.join(self._command)} said nothing, and ended with {self._process.wait(TIMEOUT)}"
            raise MeasurementError(message)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            message = f"{' '.join(self._command)}: {answer['error']}"
            raise MeasurementError(message)
        return answer

    def finish(self) -> dict[str, Any]:
        """Close its stdin and return its last line."""
        return _last(self._rest())

    def interrupt(self) -> list[dict[str, Any]]:
        """End it, and return all that it has said since the last answer."""
        self._process.terminate()
        return [json.loads(line) for line in self._rest().splitlines()]

    def _rest(self) -> str:
        """Not `communicate`, which loses what `answer` has read ahead."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        rest = self._process.stdout.read()
        self._process.wait(TIMEOUT)
        return rest


def program(name: str, *arguments: object) -> Program:
    return Program(_command(name, *arguments))


def once(name: str, *arguments: object, seconds: float = 0.0) -> dict[str, Any]:
    """Run one of the measured programs to its end, and return the last line that it says."""
    return _last(_completed(_command(name, *arguments), seconds=seconds))


def each(name: str, *arguments: object) -> Iterator[dict[str, Any]]:
    """Run one of the measured programs, and return every line that it says."""
    for line in _completed(_command(name, *arguments)).splitlines():
        yield json.loads(line)


def python(code: str) -> dict[str, Any]:
    """Run a piece of Python in a fresh process."""
    return _last(_completed([sys.executable, "-c", code]))


def _command(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", f"tests.benchmarks.programs.{name}", *(str(argument) for argument in arguments)]


def _completed(command: Sequence[str], *, seconds: float = 0.0) -> str:
    ran = subprocess.run(
        command, check=False, stdout=subprocess.PIPE, text=True, env=_environment(), timeout=seconds + TIMEOUT
    )
    if ran.returncode:
        message = f"{' '.join(command)} ended with {ran.returncode}: {ran.stdout}"
        raise MeasurementError(message)
    return ran.stdout


def _last(output: str) -> dict[str, Any]:
    with contextlib.suppress(IndexError, ValueError):
        last: dict[str, Any] = json.loads(output.splitlines()[-1])
        return last
    message = f"not a line of JSON at the end: {output!r}"
    raise MeasurementError(message)


def _environment() -> dict[str, str]:
    """The programs find this repository, and the whalewatch that we ourselves have found."""
    return os.environ | {"PYTHONPATH": os.pathsep.join((str(_PACKAGE), str(_REPOSITORY)))}
