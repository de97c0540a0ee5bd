"""A minute of chaos on every real engine, each time another one; the seeds are printed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

import pytest

from tests.conftest import CONTAINERD_VERSIONS, VERSIONS

pytestmark = [pytest.mark.promise(2), pytest.mark.promise(3)]

SECONDS = 60

CRIS = ("cri-1.6-poll", "cri-1.7-native")
"""Of the CRI, that of each containerd once, and each way to follow it that takes nothing from a kubelet."""

LIMIT = 240.0
"""Seconds until a run that does not end is taken for stuck: its last round may wait a minute to converge."""


async def _chaos(engine: str) -> tuple[int, str]:
    command = (sys.executable, "-m", "tests.chaos", "--engine", engine, "--seconds", str(SECONDS))
    run = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(LIMIT):
            told, _ = await run.communicate()
    finally:
        if run.returncode is None:
            run.terminate()  # it ends its engine
            await run.wait()
    assert run.returncode is not None
    return run.returncode, told.decode()


@pytest.mark.live
async def test_after_chaos_every_picture_is_right(
    need: Callable[[str, str], None], record_property: Callable[[str, object], None]
) -> None:
    engines: list[tuple[str, str]] = [("Docker", version) for version in VERSIONS]
    engines += [("containerd", version) for version in CONTAINERD_VERSIONS]
    for engine, version in engines:
        need(engine, version)
    worlds = [f"{engine.lower()}-{version}" for engine, version in engines]
    runs = await asyncio.gather(*(_chaos(world) for world in (*worlds, *CRIS)))
    for code, told in runs:
        first, *_ = told.splitlines()
        record_property("to be told", f"{first}: {'all was right' if code == 0 else 'something was wrong'}")
    for code, told in runs:
        assert code == 0, told
        assert "0 divergences, 0 leaks" in told
