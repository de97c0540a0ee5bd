"""What a measured process tells of itself; imports next to nothing, because its imports are measured too."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any


def main(*commands: Callable[..., Coroutine[Any, Any, None]]) -> None:
    """Run the command whose name is the first argument, with the others."""
    name, *arguments = sys.argv[1:]
    asyncio.run(next(command for command in commands if command.__name__ == name)(*arguments))


def say(**facts: object) -> None:
    """Tell the process that measures something, as one line of JSON."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def usage() -> dict[str, float]:
    """Return resident and proportional memory in MB, CPU seconds, and how many modules are loaded, and of gRPC."""
    grpc = [name for name in sys.modules if name.partition(".")[0] in {"grpc", "google"}]
    return {
        "rss": _kilobytes("/proc/self/status", "VmRSS:") / 1024,
        "pss": _kilobytes("/proc/self/smaps_rollup", "Pss:") / 1024,
        "cpu": time.process_time(),
        "modules": len(sys.modules),
        "grpc": len(grpc),
    }


def _kilobytes(path: str, key: str) -> float:
    """Read one line of a file of /proc; not a number where there is none."""
    try:
        with open(path) as lines:  # noqa: PTH123 - pathlib is not to be loaded here
            return next((float(line.split()[1]) for line in lines if line.startswith(key)), float("nan"))
    except OSError:
        return float("nan")
