"""Hostile answers: what once broke something, and a few at random."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.__main__ import Case, cases
from tests.fuzz.run import ADAPTERS, Fuzzer
from tests.fuzz.seeds import SEEDS

pytestmark = pytest.mark.slow

EXAMPLES = 8
"""Rounds at each recording: a taste, as `python -m tests.fuzz` has the time."""


@pytest.mark.parametrize("name", SEEDS)
async def test_what_once_broke_something_does_no_more(name: str) -> None:
    recording, mutations = SEEDS[name]
    async with Fuzzer(recording) as fuzzer:
        await fuzzer.round(mutations)


@pytest.mark.parametrize("recording", [recording for recordings in ADAPTERS.values() for recording in recordings])
def test_mutated_answers_break_nothing(recording: str) -> None:
    with asyncio.Runner() as runner:
        fuzzer = runner.run(Fuzzer(recording).__aenter__())

        @settings(max_examples=EXAMPLES, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
        @given(cases(recording))
        def attempt(case: Case) -> None:
            runner.run(fuzzer.round(case, truth=False))

        try:
            attempt()
        finally:
            runner.run(fuzzer.__aexit__())
