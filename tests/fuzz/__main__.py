"""Feed mutated answers of real engines to a watcher, and tell what broke: `python -m tests.fuzz --help`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import re
import sys
import time
from collections import Counter

import hypothesis
from hypothesis import strategies as st

from tests.fuzz.answers import Mutation, mutations
from tests.fuzz.run import ADAPTERS, BrokenError, Fuzzer
from tests.support.debian import say

BATCH = 100  # rounds with one seed, at one recording
SHRINKING = 30.0  # seconds in which a smaller reproducer of what broke is sought
MOST = 3  # mutations in a round

Case = tuple[Mutation, ...]


def cases(name: str) -> st.SearchStrategy[Case]:
    """What to do to the answers of one engine in a round."""
    return st.lists(mutations(name), min_size=1, max_size=MOST).map(tuple)


class Report:
    """What was tried, and what broke: its smallest reproducer, by what it is about."""

    def __init__(self) -> None:
        self.rounds = 0
        self.kinds: Counter[str] = Counter()
        self.ways: Counter[str] = Counter()
        self.broken: dict[str, tuple[str, Case, str]] = {}

    def run(self, runner: asyncio.Runner, name: str, seed: int, until: float) -> None:
        """Make rounds until something new breaks, and look for its smallest reproducer."""
        fuzzer = runner.run(Fuzzer(name).__aenter__())
        found: dict[str, tuple[str, Case, str]] = {}
        first = 0.0

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=BATCH,
            database=None,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
            phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
            report_multiple_bugs=False,
            verbosity=hypothesis.Verbosity.quiet,
        )
        @hypothesis.given(cases(name))
        def attempt(case: Case) -> None:
            nonlocal first
            now = time.monotonic()
            if (not found and now > until) or (found and now > first + SHRINKING and case != self._smallest(found)):
                return
            self.rounds += 1
            for kind, way, *_ in case:
                self.kinds[kind] += 1
                self.ways[way] += 1
            try:
                runner.run(fuzzer.round(case))
            except BrokenError as error:
                new = {_about(name, str(what)): (name, case, str(what)) for what in error.args}
                new = {about: one for about, one in new.items() if about not in self.broken}
                if found:
                    new = {about: one for about, one in new.items() if about in found}
                if new:
                    first = first or now
                    found.update(dict([next(iter(new.items()))]))
                    raise

        try:
            attempt()
        except (BrokenError, hypothesis.errors.Flaky, ExceptionGroup):
            for about, one in found.items():
                self.broken[about] = one
                say(f"broken: {name}: {one[2]}\n    {(name, list(one[1]))},")
        finally:
            runner.run(fuzzer.__aexit__())

    @staticmethod
    def _smallest(found: dict[str, tuple[str, Case, str]]) -> Case:
        return next(iter(found.values()))[1]


def _about(name: str, what: str) -> str:
    """Return what is the same of two complaints of one kind."""
    return name.rpartition("-")[0] + re.sub(r"0x\w+|[0-9]+|'.*|\".*|unix:\S*", "", what)[:80]


def main() -> int:
    """Run, tell, and return 1 if anything broke."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--adapter", choices=sorted(ADAPTERS), help="default: each in turn")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long; what broke then is still made smaller")
    parser.add_argument("--seed", type=int, help="of all choices; timing still differs from run to run")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**9)
    names = [name for adapter in ([options.adapter] if options.adapter else ADAPTERS) for name in ADAPTERS[adapter]]
    say(f"fuzzing {', '.join(names)}, {options.seconds:g} s, seed {seed}")
    logging.getLogger().addHandler(logging.NullHandler())  # the log is judged, not shown
    report, began, turn = Report(), time.monotonic(), 0
    with asyncio.Runner() as runner:
        while time.monotonic() < began + options.seconds:
            name = names[turn % len(names)]
            report.run(runner, name, seed + turn, began + options.seconds)
            turn += 1
            say(f"{time.monotonic() - began:7.1f} s  {name}: {report.rounds} rounds, {len(report.broken)} broken")
    say(f"{report.rounds} rounds")
    for what, counts in {"answers": report.kinds, "mutations": report.ways}.items():
        say(f"{counts.total()} {what}: {', '.join(f'{name} {count}' for name, count in sorted(counts.items()))}")
    for name, case, what in report.broken.values():
        say(f"broken: {name}: {what}\n    {(name, list(case))},")
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
