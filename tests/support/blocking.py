"""See where the library blocks an event loop; tests and fakes may, and so may what the application does with logs."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import blockbuster
import pytest

import whalewatch

ALLOWED = (
    ("logging/__init__.py", "callHandlers"),  # the application's own handlers
    ("whalewatch/_adapter/unix.py", "connect"),  # looks where the kernel looks to connect, at once
    ("whalewatch/_adapter/unix.py", "unreachable"),  # looks at a path at which the kernel has just looked
    ("whalewatch/_grpc/pinned.py", "__init__"),  # likewise
    ("whalewatch/_grpc/pinned.py", "replaced"),
    ("whalewatch/moby/address.py", "default_endpoint"),  # reads Docker's configuration, before the watch begins
    ("whalewatch/moby/connection.py", "client"),  # imports aiodocker when it is first asked for
)
"""What may block: file and function."""

_LIBRARY = str(Path(whalewatch.__file__).parent)


@contextmanager
def blocking_calls() -> Iterator[list[str]]:
    """Let the calls of the library fail that block, and note each: the library may take it for an engine's failure."""
    found: list[str] = []

    class NotedError(blockbuster.BlockingError):
        def __init__(self, function: str) -> None:
            super().__init__(function)
            stack = traceback.extract_stack()[:-2]
            last = max(number for number, frame in enumerate(stack) if frame.filename.startswith(_LIBRARY))
            found.append(f"{function}\n{''.join(traceback.format_list(stack[last:]))}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blockbuster.blockbuster.BlockingError", NotedError)
        with blockbuster.blockbuster_ctx("whalewatch", excluded_modules=["whalewatch.testing"]) as calls:
            # Of locks it sees only calls, which the library never makes: coverage's tracer does, in the library's name.
            for name in ("threading.Lock.acquire", "threading.Lock.acquire_lock"):
                calls.functions[name].deactivate()
            for function in calls.functions.values():
                for place in ALLOWED:
                    function.can_block_in(*place)
            yield found
