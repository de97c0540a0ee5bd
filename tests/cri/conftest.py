"""Fake CRI engines for the tests of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.cri_followed import Containerd
from whalewatch.testing import FakeCRI


@pytest.fixture
async def engine() -> AsyncIterator[FakeCRI]:
    async with FakeCRI() as running:
        yield running


@pytest.fixture
async def containerd() -> AsyncIterator[Containerd]:
    async with Containerd() as running:
        yield running
