"""When to retry, and when to stop: strategies of tenacity, and a default that distinguishes two kinds of failure."""

from __future__ import annotations

import attrs
from tenacity import AsyncRetrying, RetryCallState, stop_never, wait_random_exponential
from tenacity.stop import StopBaseT
from tenacity.wait import WaitBaseT

from whalewatch._core.errors import WhalewatchError

__all__ = ["Backoff", "Retry"]

MIN_DELAY = 0.1
"""Least seconds to wait, by default; older releases of tenacity do not respect their own lower bound."""

CONNECT_WAIT = wait_random_exponential(multiplier=MIN_DELAY, max=1.8, min=MIN_DELAY)
"""Seconds between attempts to reach an engine that is not there. It may return at any moment, and a refused connection
costs little. The picture has to be in sync within two seconds after its return, so some of them are left for the
listing."""

RESYNC_WAIT = wait_random_exponential(multiplier=MIN_DELAY, max=60, min=MIN_DELAY)
"""Seconds between synchronisations if the connection is lost again and again: each synchronisation costs the engine a
listing and many inspects."""


@attrs.frozen
class Retry:
    """How a watcher retries after a failure.

    Example::

        from tenacity import stop_after_attempt, wait_fixed

        moby.watch(retry=Retry(wait=wait_fixed(5), stop=stop_after_attempt(10)))
    """

    wait: WaitBaseT | None = None
    """Any wait strategy of tenacity. None for the default: exponential with jitter, from 0.1 s up to 2 s while the
    engine cannot be reached, up to 60 s if the connection is lost again and again."""
    stop: StopBaseT = stop_never
    """Any stop strategy of tenacity. The default retries for ever."""
    stable_after: float = 30.0
    """After this many seconds in sync, the count of failed attempts starts again at zero."""


class Backoff:
    """Counts the failures of one watch, and asks the strategies of `Retry` how long to wait after each."""

    def __init__(self, retry: Retry | None) -> None:
        self._retry = retry
        self._call: RetryCallState | None = None
        # Counted separately: while an engine restarts, connecting fails many times, but no synchronisation is cut.
        self._refused: RetryCallState | None = None
        self._cut: RetryCallState | None = None

    @property
    def attempt(self) -> int:
        """Number of failures since the last synchronisation that lasted `stable_after` seconds."""
        return self._call.attempt_number if self._call else 0

    def after(self, error: WhalewatchError, *, connected: bool, held: float | None) -> float | None:
        """Count a failure and return the seconds to wait; None to stop.

        Args:
            error: the failure.
            connected: whether the engine was reached in this attempt.
            held: seconds for which the picture was in sync; None if it never was.
        """
        if self._retry is None:
            return None
        if held is not None and held >= self._retry.stable_after:
            self._call = self._cut = None
        call = self._call = _count(self._call, self._retry, error)
        if connected:
            self._refused, self._cut = None, _count(self._cut, self._retry, error)
            default = RESYNC_WAIT(self._cut)
        else:
            self._refused = _count(self._refused, self._retry, error)
            default = CONNECT_WAIT(self._refused)
        delay = max(MIN_DELAY, default) if self._retry.wait is None else max(0.0, float(self._retry.wait(call)))
        call.upcoming_sleep = delay
        if self._retry.stop(call):
            return None
        call.idle_for += delay
        return delay


def _count(call: RetryCallState | None, retry: Retry, error: WhalewatchError) -> RetryCallState:
    """Count one more attempt in the record that the strategies of tenacity read; make the record at the first."""
    if call is None:
        call = RetryCallState(AsyncRetrying(stop=retry.stop), None, (), {})
    else:
        call.prepare_for_next_attempt()
    call.set_exception((type(error), error, error.__traceback__))
    return call
