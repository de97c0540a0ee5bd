"""Calls to an engine: each has a time-out, and raises only errors of this library."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from traceback import clear_frames
from typing import TypeVar

from whalewatch._core.cancellation import cancel_requests, raise_if_cancelled
from whalewatch._core.engine import ChecksIdentity, Engine, display_name
from whalewatch._core.errors import EngineError, EngineTimeout, EngineUnavailable, WhalewatchError

__all__ = ["Calls"]

T = TypeVar("T")

MAX_TIMEOUTS = 10
"""A call that makes progress may take this many time-outs at most."""

CHECKS_PER_TIMEOUT = 8
"""How often the progress of a call is checked within one time-out."""


class Calls:
    """Makes calls to one engine; each raises `EngineError` for whatever goes wrong.

    Attributes:
        timeout: seconds that the engine has to answer, unless a call sets another time-out.
    """

    def __init__(self, engine: Engine, timeout: float) -> None:
        self._engine = engine
        self.timeout = timeout

    def message(self, text: str) -> str:
        """Name the engine and its address in front of a message."""
        return f"{display_name(self._engine)}: {text}"

    async def __call__(
        self,
        what: str,
        call: Awaitable[T],
        *,
        timeout: float | None = None,
        progress: Callable[[], int] | None = None,
    ) -> T:
        """Make one call.

        Args:
            what: name of the call, for messages.
            call: what to await.
            timeout: seconds that it may take; None for the default of all calls.
            progress: returns a number that grows while the answer arrives; each growth restarts the time-out.

        Raises:
            EngineTimeout: the engine did not answer in time.
            EngineError: the call failed in another way.
        """
        before = cancel_requests()
        try:
            result = await self._timed(what, call, self.timeout if timeout is None else timeout, progress)
        except EngineError as error:
            _forget_values(error)
            raise_if_cancelled(before)
            raise
        except asyncio.CancelledError as error:
            # Nobody cancelled this task: a client library cancelled something of its own. It becomes an error, because
            # a task group does not notice a task that ends by a cancellation.
            raise_if_cancelled(before)
            raise EngineError(self.message(f"{what} was cancelled from within")) from error
        raise_if_cancelled(before)  # an adapter may have swallowed a cancellation
        return result

    async def same_engine(self) -> bool:
        """Ask whether the engine is still the one that was connected; True if the adapter cannot say."""
        engine = self._engine
        return not isinstance(engine, ChecksIdentity) or await self("identity", engine.is_same_engine())

    def other_engine(self) -> EngineUnavailable:
        """Return the error for an engine that is another one by now."""
        return EngineUnavailable(self.message("it was restarted, or another engine answers there now"))

    async def _timed(self, what: str, call: Awaitable[T], timeout: float, progress: Callable[[], int] | None) -> T:
        loop = asyncio.get_running_loop()
        longest = timeout if progress is None else MAX_TIMEOUTS * timeout
        latest = loop.time() + longest
        try:
            async with asyncio.timeout_at(latest) as limit:
                with _stalls(limit, timeout, progress) if progress is not None else nullcontext():
                    return await call
        except TimeoutError as error:
            if not limit.expired():
                raise EngineError(self.message(f"{what} failed: {error!r}")) from error
            waited = longest if loop.time() >= latest else timeout
            raise EngineTimeout(self.message(f"no answer to {what} within {waited:g} s: is it hung?")) from None
        except WhalewatchError:
            raise
        except Exception as error:
            raise EngineError(self.message(f"{what} failed: {error!r}")) from error


def _forget_values(error: BaseException | None) -> None:
    """Let an error, and what has caused it, keep no value of a frame: an answer may be large, and errors are kept."""
    while error is not None:
        clear_frames(error.__traceback__)
        error = error.__cause__


@contextmanager
def _stalls(limit: asyncio.Timeout, timeout: float, progress: Callable[[], int]) -> Iterator[None]:
    """Let a time-out expire early, as soon as no progress was made for `timeout` seconds."""
    loop = asyncio.get_running_loop()
    seen: int | None = None
    since = loop.time()
    timer: asyncio.TimerHandle

    def check() -> None:
        nonlocal seen, since, timer
        with suppress(Exception):  # an adapter that cannot say is one that makes no progress
            if (now := progress()) != seen:
                seen, since = now, loop.time()
        if loop.time() - since >= timeout and not limit.expired():
            limit.reschedule(loop.time())
        timer = loop.call_later(timeout / CHECKS_PER_TIMEOUT, check)

    check()
    try:
        yield
    finally:
        timer.cancel()
