"""Programs of this library in processes of their own, and what they print."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partialmethod

PATIENCE = 60.0
"""Seconds after which something that should have come is missing: a loaded machine starts processes slowly."""


class Child:
    """A program in a process of its own."""

    def __init__(self, process: Process) -> None:
        self.process = process

    async def line(self, stream: str = "stdout") -> str:
        async with asyncio.timeout(PATIENCE):
            return str((await getattr(self.process, stream).readline()).decode())

    error_line = partialmethod(line, "stderr")

    async def ended(self) -> tuple[int | None, str, str]:
        """Wait for its end; return its exit code and the rest of what it prints."""
        async with asyncio.timeout(PATIENCE):
            out, err = await self.process.communicate()
        return self.process.returncode, (out or b"").decode(), (err or b"").decode()

    async def interrupted(self, number: int) -> tuple[int | None, str, str]:
        """Send it a signal, and wait for its end."""
        self.process.send_signal(number)
        return await self.ended()


@asynccontextmanager
async def child(*arguments: str, before: Sequence[str] = (), stdout: int = PIPE, **more: str) -> AsyncIterator[Child]:
    """Run this Python with arguments and more environment: this library, and no engine or terminal by accident.

    What comes before it, such as `unshare` with its options, runs it.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DOCKER_", "NO_COLOR"))}
    path = os.pathsep.join(path for path in sys.path if path)
    env = {**kept, "COLUMNS": "", "LINES": "", "PYTHONPATH": path, "TERM": "xterm", **more}
    process = await asyncio.create_subprocess_exec(
        *before, sys.executable, *arguments, stdin=DEVNULL, stdout=stdout, stderr=PIPE, env=env
    )
    try:
        yield Child(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def read_until(descriptor: int, wanted: bytes, text: bytes = b"") -> bytes:
    """Read a pipe or terminal until it has said something; return all of it, with what was read before."""
    async with asyncio.timeout(PATIENCE):
        while wanted not in text:
            more = await asyncio.to_thread(os.read, descriptor, 65536)
            assert more, "it ended before"
            text += more
    return text
