"""Programs that are measured, each in a process of its own: what it imports is all that it imports."""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any


def contender(who: str, kind: str, socket: str, **options: float) -> Any:
    """Make "ours" or the "bare" one for an engine, and load nothing of the other, and of other engines."""
    module = importlib.import_module(f"{__name__}.{'ours' if who == 'ours' else f'bare_{kind}'}")
    return module.Contender(kind, socket, **options)


def say(**facts: object) -> None:
    """Tell the process that measures something, as one line of JSON."""
    sys.stdout.write(json.dumps(facts, default=str) + "\n")
    sys.stdout.flush()
