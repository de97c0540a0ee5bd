"""Rucksacks whose packing fails: told once per container, and without remembering all that ever lived."""

from __future__ import annotations

import asyncio
import logging

import pytest

from tests.support.scripted import box
from whalewatch import Container
from whalewatch._adapter import rucksack
from whalewatch._adapter.rucksack import Packer


@pytest.fixture
def packer(monkeypatch: pytest.MonkeyPatch) -> Packer[None]:
    """One that remembers few."""
    monkeypatch.setattr(rucksack, "MAX_REMEMBERED", 10)

    def fails(container: Container, _: None) -> None:
        raise LookupError(container.id)

    return Packer(fails, logging.getLogger("whalewatch.tests"))


def test_failure_is_logged_once_for_each_container(packer: Packer[None], caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        for number in range(10):
            assert packer.pack(box(f"c{number}"), None) == box(f"c{number}")
    assert [record.args for record in caplog.records] == [(f"c{number}",) for number in range(10)]


def test_what_failed_long_ago_is_forgotten(packer: Packer[None], caplog: pytest.LogCaptureFixture) -> None:
    for number in range(11):
        packer.pack(box(f"c{number}"), None)
    caplog.clear()
    packer.pack(box("c10"), None)
    packer.pack(box("c0"), None)
    assert [record.args for record in caplog.records] == [("c0",)]


def test_cancellation_out_of_nothing_is_a_failure_like_any(caplog: pytest.LogCaptureFixture) -> None:
    def pack(container: Container, _: None) -> None:
        raise asyncio.CancelledError

    assert Packer(pack, logging.getLogger("whalewatch.tests")).pack(box("a"), None) == box("a")
    assert [record.args for record in caplog.records] == [("a",)]
