"""A fork while watching: the parent's sockets are its own, and the child's copy of the watcher says what it is."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE

import pytest

from tests.conftest import Docker
from tests.support.scripted import PATIENCE, within

pytestmark = pytest.mark.promise(10)


async def test_parent_keeps_its_stream_whatever_a_forked_child_does_and_ends_it_although_the_child_lives(
    docker: Docker,
) -> None:
    control = docker.control
    await control.run("before")
    listeners = (await control.info())["NEventsListener"]
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.forking", docker.address), stdin=PIPE, stdout=PIPE
    )
    assert program.stdin is not None
    assert program.stdout is not None
    try:
        assert await within(program.stdout.readline()) == b"child\n"
        assert (await control.info())["NEventsListener"] == listeners + 1
        await control.run("later")
        program.stdin.write(b"leave\n")
        assert await within(program.stdout.readline()) == b"1 stream, 0 outages, 0 reopened; left\n"
        async with asyncio.timeout(PATIENCE):
            while (await control.info())["NEventsListener"] != listeners:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.01)
        assert not program.stdout.at_eof(), "the child lives"
    finally:
        program.stdin.close()
        await within(program.wait())
        assert await within(program.stdout.read()) == b""
