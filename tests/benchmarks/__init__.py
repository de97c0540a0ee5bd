"""Measurements of whalewatch beside a bare HTTP session: `python -m tests.benchmarks`. They assert nothing."""
