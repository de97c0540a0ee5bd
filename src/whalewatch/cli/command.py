"""The command line: ``whalewatch watch`` shows the containers that are alive, then events, as text or JSON Lines."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO

from whalewatch._core.errors import AddressError, WhalewatchError
from whalewatch._core.status import Status, WatchState
from whalewatch._core.subscription import Subscription
from whalewatch._core.text import MAX_LINE, printable
from whalewatch._core.watcher import Watcher
from whalewatch.cli.output import Printer, logging_to, print_version, printer, say

__all__ = ["main"]

OK, FAILED, MISUSED = 0, 1, 2
"""Exit codes; argparse uses 2 as well."""

DESCRIPTION = "Know at any moment which containers are alive."

EPILOG = """\
ADDRESS is the URL (unix, tcp, http, https, ssh) of a Docker engine, or the path of its socket. Without ADDRESS the
engine is found as Docker's own client finds it: DOCKER_HOST, the current context, the well-known sockets. For
containerd, put containerd:// before the path of the socket, as in containerd:///run/containerd/containerd.sock. For an
engine that speaks Kubernetes' CRI, put cri:// before it, as in cri:///run/crio/crio.sock.

Exit codes: 0 the watch was ended by Ctrl-C, SIGTERM or --seconds; 1 it failed, or was never in sync in that time;
2 the arguments cannot be used.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parser().parse_args(argv)
    if options.version:
        print_version()
        return OK
    try:
        with _termination_interrupts():
            return _watch(options)
    except KeyboardInterrupt:
        return OK
    except BrokenPipeError:
        _discard_output()
        return OK
    except OSError as error:  # an error of the output: those of the engine are translated
        say(error)
        _discard_output()
        return FAILED


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(printable(message, MAX_LINE))  # it repeats arguments as they are


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="whalewatch", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command")
    watch = commands.add_parser(
        "watch",
        help="show the containers that are alive, then what happens to them",
        description="Show the containers that are alive, by project, then one line for each event.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    watch.add_argument("address", nargs="?", metavar="ADDRESS", help="address of Docker, containerd or a CRI engine")
    watch.add_argument("--json", action="store_true", help="one JSON object per line (JSON Lines)")
    watch.add_argument("--seconds", type=_seconds, metavar="N", help="end after N seconds")
    parser.set_defaults(error=parser.error)
    return parser


def _seconds(text: str) -> float:
    seconds = float(text)
    if not (seconds > 0 and math.isfinite(seconds)):
        raise ValueError
    return seconds


_seconds.__name__ = "number of seconds"  # in argparse's message


def _watch(options: argparse.Namespace) -> int:
    if options.command is None:
        options.error("a command is needed: try whalewatch watch")
    try:
        watcher = _watcher(options.address)
    except AddressError as error:
        say(error)
        return MISUSED
    out, err = sys.stdout, sys.stderr
    if hasattr(out, "reconfigure"):
        out.reconfigure(errors="backslashreplace")  # do not fail on a terminal without UTF-8
    shown = printer(out, as_json=options.json)
    with logging_to(err):
        return asyncio.run(_until_stopped(follow(watcher, shown, err), options.seconds, watcher))


def _watcher(address: str | None) -> Watcher:
    """Make a watcher for the engine of an address; load only the modules that this engine needs."""
    scheme, colon, path = (address or "").partition(":")
    if colon and scheme in {"containerd", "cri"}:
        path = path.removeprefix("//")
        if not path.startswith("/"):
            example = f"{scheme}:///run/containerd/containerd.sock"
            raise AddressError(
                f"{printable(address)!r} has no absolute path of a socket: give an address such as {example}"
            )
        # Its own logger writes what the engine says to standard error as it is. It reads this once, when it is loaded.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        from whalewatch import containerd, cri  # noqa: PLC0415 - gRPC takes time to load, and Docker does not need it

        return cri.watch(f"unix://{path}") if scheme == "cri" else containerd.watch(f"unix://{path}")
    from whalewatch import moby  # noqa: PLC0415 - the HTTP client takes time to load, and --help does not need it

    return moby.watch(address)


# -- following ---------------------------------------------------------------------------------------------------------


async def follow(watcher: Watcher, printer: Printer, err: TextIO) -> None:
    """Print the first picture, then all events and statuses, until cancelled or until the watch ends."""
    async with watcher:
        await _first_sync(watcher, err)
        version = await watcher.engine.version()
        # No await between the two: the watcher runs in the same event loop, so the events begin where the picture ends.
        events, snapshot = watcher.events(replay=False), watcher.portfolio.snapshot()
        engine = {"type": watcher.engine.type, "address": watcher.engine.address, "version": version}
        printer.snapshot(snapshot, engine)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_print_statuses(watcher, watcher.status, printer))
            await _print_events(events, printer)


async def _first_sync(watcher: Watcher, err: TextIO) -> None:
    """Wait for the first synchronisation, and print each reason for a delay once."""
    printed = ""
    async for status in watcher.status_changes():
        if watcher.portfolio.snapshot().synced:
            return
        if status.state is WatchState.CLOSED:
            await watcher.ready()
        elif status.state is WatchState.DISCONNECTED and (why := str(status.error)) != printed:
            say(f"{why}; trying again", err)
            printed = why


async def _print_events(events: Subscription, printer: Printer) -> None:
    async with events:
        async for event in events:
            printer.event(event)


async def _print_statuses(watcher: Watcher, printed: Status, printer: Printer) -> None:
    async for status in watcher.status_changes():
        if status is not printed:
            printer.status(status, watcher.portfolio.snapshot())
            printed = status


async def _until_stopped(work: Any, seconds: float | None, watcher: Watcher) -> int:
    """Run `work` until it ends, a signal comes or the time is over, and return the exit code."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    stopped: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        stopped.append(number)
        task.cancel()

    with _handling(loop, stop):
        await asyncio.wait({task}, timeout=seconds)
        synced = watcher.stats.syncs > 0
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled() and (error := task.exception()) is not None:
        return _failed(error)
    return OK if synced or stopped else FAILED


def _failed(error: BaseException) -> int:
    """Print why the watch failed, in one line; raise errors that are not of this library."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(error, WhalewatchError):
        raise error
    say(error)
    return FAILED


# -- the process -------------------------------------------------------------------------------------------------------

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def _termination_interrupts() -> Iterator[None]:
    """Let SIGTERM end the program as Ctrl-C does, also before and after the event loop runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


@contextmanager
def _handling(loop: asyncio.AbstractEventLoop, stop: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Let signals stop the work. Only the main thread may handle signals; other threads do not need to."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    for number in SIGNALS:
        loop.add_signal_handler(number, stop, number)
    try:
        yield
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)


def _discard_output() -> None:
    """Discard output that nobody reads any more: else the interpreter reports an error when it flushes at its end."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
