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

Case = list[Mutation]


def cases(name: str) -> st.SearchStrategy[Case]:
    """What to do to the answers of one engine in a round."""
    return st.lists(mutations(name), min_size=1, max_size=MOST)


class Report:
    """What was tried, and what broke: by what it is, the recording, the smallest reproducer, and the complaint."""

    def __init__(self) -> None:
        self.rounds = 0
        self.tried: dict[str, Counter[str]] = {"answers": Counter(), "mutations": Counter()}
        self.broken: dict[str, str] = {}

    def batch(self, runner: asyncio.Runner, name: str, seed: int, until: float) -> None:
        """Make rounds until something new breaks, and look for its smallest reproducer."""
        fuzzer = runner.run(Fuzzer(name).__aenter__())
        found: tuple[str, Case, str] | None = None

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
            nonlocal found, until
            if time.monotonic() > until and (found is None or case != found[1]):
                return
            self.rounds += 1
            self.tried["answers"].update(mutation[0] for mutation in case)
            self.tried["mutations"].update(mutation[1] for mutation in case)
            try:
                runner.run(fuzzer.round(case))
            except BrokenError as error:
                for what in map(str, error.args):
                    about = name.rpartition("-")[0] + re.sub(r"['\"].*|[0-9]+|unix:\S*", "", what)[:80]
                    if about == found[0] if found else about not in self.broken:
                        until = until if found else time.monotonic() + SHRINKING
                        found = (about, case, what)
                        raise

        try:
            attempt()
        except (BrokenError, hypothesis.errors.Flaky, ExceptionGroup):
            assert found is not None
            about, case, what = found
            self.broken[about] = f"broken: {what}\n    ({name!r}, {case}),"
            say(self.broken[about])
        finally:
            runner.run(fuzzer.__aexit__())


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
            report.batch(runner, name, seed + turn, began + options.seconds)
            turn += 1
            say(f"{time.monotonic() - began:7.1f} s  {name}: {report.rounds} rounds, {len(report.broken)} broken")
    for what, counts in report.tried.items():
        say(f"{counts.total()} {what}: {', '.join(f'{name} {count}' for name, count in sorted(counts.items()))}")
    for told in report.broken.values():
        say(told)
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
