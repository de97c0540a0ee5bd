"""Distinguish a requested cancellation of a task from one that a client library raises by itself."""

from __future__ import annotations

import asyncio

__all__ = ["cancel_requests", "raise_if_cancelled"]


def cancel_requests() -> int:
    """Return how many times a cancellation of the current task was requested."""
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


def raise_if_cancelled(before: int) -> None:
    """Raise `CancelledError` if a cancellation was requested since `before`, even if some code swallowed it.

    Args:
        before: result of `cancel_requests` at an earlier time.
    """
    if cancel_requests() > before:
        raise asyncio.CancelledError
