"""Measurements of whalewatch beside bare HTTP and gRPC: `python -m tests.benchmarks`. They assert nothing."""
