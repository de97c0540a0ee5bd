"""All that the command line prints: pictures, events and statuses as text or JSON Lines, errors, and log messages.

Nothing else of the command prints. What comes from an engine is escaped here, so that no call can forget it.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from typing import Any, Protocol, TextIO

from whalewatch._core.errors import WhalewatchError
from whalewatch._core.model import ContainerEvent
from whalewatch._core.snapshot import Snapshot
from whalewatch._core.status import Status, WatchState
from whalewatch._core.text import MAX_LINE, logger, printable
from whalewatch.cli.render import DIM, Line, back, event_line, lost, painted, picture

__all__ = ["Printer", "logging_to", "print_version", "printer", "say"]


def say(what: object, err: TextIO | None = None) -> None:
    """Print one line on standard error: a text of 2,000 characters at most."""
    print(f"whalewatch: {printable(what, MAX_LINE)}", file=err or sys.stderr, flush=True)


def print_version() -> None:
    """Print the version of the library."""
    try:
        found = metadata.version("whalewatch")
    except metadata.PackageNotFoundError:
        found = "(not installed)"
    print(f"whalewatch {found}")


class Printer(Protocol):
    """Prints a watch on standard output."""

    def snapshot(self, snapshot: Snapshot, engine: Mapping[str, str]) -> None:
        """Print the picture from which the events start."""

    def event(self, event: ContainerEvent) -> None:
        """Print one event."""

    def status(self, status: Status, snapshot: Snapshot) -> None:
        """Print a new status of the watch."""


def printer(out: TextIO, *, as_json: bool) -> Printer:
    """Make what prints a watch: as text for people, or as JSON Lines for programs."""
    return _JsonLines(out) if as_json else _Text(out)


class _Text:
    """Prints one line for each event, for people."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._colour = out.isatty() and not os.environ.get("NO_COLOR")
        self._lost = ""

    def _print(self, line: Line) -> None:
        print(painted(line, colour=self._colour), file=self._out, flush=True)

    def snapshot(self, snapshot: Snapshot, engine: Mapping[str, str]) -> None:
        kind = "CRI" if engine["type"] == "cri" else engine["type"].capitalize()
        for line in picture(snapshot, f"{kind} engine {engine['version']} at {engine['address']}"):
            self._print(line)
        self._print((("now following events", DIM),))

    def event(self, event: ContainerEvent) -> None:
        self._print(event_line(event))

    def status(self, status: Status, snapshot: Snapshot) -> None:
        if status.state is WatchState.DISCONNECTED and str(status.error) != self._lost:
            self._lost = str(status.error)
            self._print(lost(status))
        elif status.state is WatchState.SYNCED and self._lost:
            self._lost = ""
            self._print(back(status, snapshot))


class _JsonLines:
    """Prints one JSON object per line, for programs; docs/json.md describes them."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def _print(self, document: Mapping[str, Any]) -> None:
        # Printable ASCII only: it can always be encoded, and moves no cursor. JSON leaves DEL as it is.
        line = json.dumps(document, ensure_ascii=True).replace("\x7f", r"\u007f")
        print(line, file=self._out, flush=True)

    def snapshot(self, snapshot: Snapshot, engine: Mapping[str, str]) -> None:
        self._print({**snapshot.to_dict(), "engine": engine})

    def event(self, event: ContainerEvent) -> None:
        self._print(event.to_dict())

    def status(self, status: Status, snapshot: Snapshot) -> None:
        self._print({**status.to_dict(), "revision": snapshot.revision})


class _WithoutFailures(logging.Filter):
    """Leaves out records about a failure of the watch: the status reports it already."""

    def filter(self, record: logging.LogRecord) -> bool:
        arguments = record.args if isinstance(record.args, tuple) else ()
        return not (arguments and isinstance(arguments[0], WhalewatchError))


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"whalewatch: {record.getMessage()}"  # without a traceback; the library's loggers escape messages


@contextmanager
def logging_to(err: TextIO) -> Iterator[None]:
    """Show the library's warnings, one line each."""
    handler = logging.StreamHandler(err)
    handler.setFormatter(_OneLine())
    handler.addFilter(_WithoutFailures())
    log = logger("whalewatch")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
