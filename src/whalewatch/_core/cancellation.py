"""Cancellation that was asked for, told apart from cancellation that a client library made up."""

from __future__ import annotations

import asyncio

__all__ = ["cancellations", "heed_cancellation"]


def cancellations() -> int:
    """How often the current task has been asked to end."""
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


def heed_cancellation(before: int) -> None:
    """End the current task if it has been asked to since, though the request was swallowed on the way here."""
    if cancellations() > before:
        raise asyncio.CancelledError
