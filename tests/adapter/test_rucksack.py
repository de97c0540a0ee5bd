"""Rucksacks whose packing fails: told once per container, and without remembering all that ever lived."""

from __future__ import annotations

import asyncio
import logging

import pytest

from tests.support.scripted import box
from whalewatch import Container
from whalewatch._adapter import once
from whalewatch._adapter.rucksack import Packer

LOG = logging.getLogger("whalewatch.tests")


def told(caplog: pytest.LogCaptureFixture) -> list[object]:
    """The arguments of what was logged."""
    return [record.args for record in caplog.records]


def test_failure_is_logged_once_for_each_container_until_others_have_failed_since(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(container: Container, _: None) -> None:
        raise LookupError(container.id)

    monkeypatch.setattr(once, "MAX_REMEMBERED", 10)
    packer, ids = Packer(fails, LOG), [f"c{number}" for number in range(11)]
    for id in [*ids[:10] * 3, *ids, "c10", "c0"]:
        assert packer.pack(box(id), None) == box(id)
    assert told(caplog) == [*((id,) for id in ids), ("c0",)]


def test_cancellation_out_of_nothing_is_a_failure_like_any(caplog: pytest.LogCaptureFixture) -> None:
    def pack(container: Container, _: None) -> None:
        raise asyncio.CancelledError

    assert Packer(pack, LOG).pack(box("a"), None) == box("a")
    assert told(caplog) == [("a",)]
