"""When to try again, and when to give up: tenacity's strategies, and a default that knows two kinds of failure."""

from __future__ import annotations

import attrs
from tenacity import AsyncRetrying, RetryCallState, stop_never, wait_random_exponential
from tenacity.stop import StopBaseT
from tenacity.wait import WaitBaseT

from whalewatch._core.errors import WhalewatchError

__all__ = ["Backoff", "Retry"]

SHORTEST = 0.1
"""Seconds to wait at least, by default; older releases of tenacity do not heed their own lower bound."""

CONNECTING = wait_random_exponential(multiplier=SHORTEST, max=1.8, min=SHORTEST)
"""Seconds between attempts to reach an engine that is away: it may be back at any moment, and refusing is cheap. Two
seconds after its return, at most, the picture shall be in sync, so that some of them are left for the listing."""

RECONNECTING = wait_random_exponential(multiplier=SHORTEST, max=60, min=SHORTEST)
"""Seconds between synchronisations that keep being cut: each costs the engine a listing and many inspects."""


@attrs.frozen
class Retry:
    """How a watcher retries."""

    wait: WaitBaseT | None = None
    """Any wait strategy of tenacity; None for the default: jittered, from 0.1 s up to 2 s while connecting fails, up to
    60 s while synchronisations keep being cut."""
    stop: StopBaseT = stop_never
    """Any stop strategy of tenacity; the default never gives up."""
    stable_after: float = 30.0
    """Seconds that a synchronisation must hold for the count of attempts to start afresh."""


class Backoff:
    """Counts the failures of one watch and asks its strategies what to do about each."""

    def __init__(self, retry: Retry | None) -> None:
        self._retry = retry
        self._call: RetryCallState | None = None
        # While an engine restarts, connecting fails many times: those are no cut synchronisations, and the reverse.
        self._refused: RetryCallState | None = None
        self._cut: RetryCallState | None = None

    @property
    def attempt(self) -> int:
        """Failures since the last synchronisation that held."""
        return self._call.attempt_number if self._call else 0

    def after(self, error: WhalewatchError, *, connected: bool, held: float | None) -> float | None:
        """Take note of a failure and return the seconds to wait, None to give up.

        Args:
            error: why it failed.
            connected: whether the engine had been reached in this attempt.
            held: for how many seconds the picture was in sync, None if it never was.
        """
        if self._retry is None:
            return None
        if held is not None and held >= self._retry.stable_after:
            self._call = self._cut = None
        call = self._call = _count(self._call, self._retry, error)
        if connected:
            self._refused, self._cut = None, _count(self._cut, self._retry, error)
            default = RECONNECTING(self._cut)
        else:
            self._refused = _count(self._refused, self._retry, error)
            default = CONNECTING(self._refused)
        delay = max(SHORTEST, default) if self._retry.wait is None else max(0.0, float(self._retry.wait(call)))
        call.upcoming_sleep = delay
        if self._retry.stop(call):
            return None
        call.idle_for += delay
        return delay


def _count(call: RetryCallState | None, retry: Retry, error: WhalewatchError) -> RetryCallState:
    """Make the record that tenacity's strategies decide by, or count one more attempt in it."""
    if call is None:
        call = RetryCallState(AsyncRetrying(stop=retry.stop), None, (), {})
    else:
        call.prepare_for_next_attempt()
    call.set_exception((type(error), error, error.__traceback__))
    return call
