"""An event loop of its own clock, which counts the steps of a watch: to be in time, and to break in at any of them."""

from __future__ import annotations

import asyncio
import gc
import logging
import selectors
from collections.abc import Callable, Coroutine, Generator
from functools import wraps
from pathlib import Path
from typing import Any, Self, TypeVar

import whalewatch

T = TypeVar("T")

SOURCES = str(Path(whalewatch.__file__).parent)
FAKES = str(Path(SOURCES, "testing"))


class Steps:
    """Counts the steps of all tasks that run this library's code, and calls something just before one of them."""

    def __init__(self) -> None:
        self.taken = 0
        self._at: int | None = None
        self._call: Callable[[], object] | None = None

    def before(self, step: int, call: Callable[[], object]) -> None:
        """Call something just before the step of this number; the first is 1."""
        self._at, self._call = step, call

    def count(self) -> None:
        self.taken += 1
        if self.taken == self._at and self._call is not None:
            self._call()

    def install(self, loop: asyncio.AbstractEventLoop) -> None:
        """Count in this loop from now on."""
        loop.set_task_factory(self._task)  # type: ignore[arg-type] # typeshed asks for more than asyncio does

    def counted(self, coro: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """Count the steps of a coroutine of a test's own too."""
        return _Counted(coro, self)

    def _task(self, loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, T], **options: Any) -> asyncio.Task[T]:
        code = getattr(coro, "cr_code", None)
        ours = code is not None and code.co_filename.startswith(SOURCES) and not code.co_filename.startswith(FAKES)
        return asyncio.Task(_Counted(coro, self) if ours else coro, loop=loop, **options)


class _Counted(Coroutine[Any, Any, T]):
    """A coroutine whose steps are counted."""

    def __init__(self, coro: Coroutine[Any, Any, T], steps: Steps) -> None:
        self._coro = coro
        self._steps = steps

    def send(self, value: Any) -> Any:
        self._steps.count()
        return self._coro.send(value)

    def throw(self, *error: Any) -> Any:
        self._steps.count()
        return self._coro.throw(*error)

    def close(self) -> None:
        self._coro.close()

    def __await__(self) -> Generator[Any, Any, T]:
        return self._coro.__await__()


class _Impatient(selectors.DefaultSelector):
    """Never waits: what would be waited for is counted as time."""

    passed = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise AssertionError("nothing would ever happen again")
        if not ready and timeout:
            self.passed += timeout
        return ready


class ImpatientLoop(asyncio.SelectorEventLoop):
    """An event loop in which waiting takes no time; only for what needs no other process and no socket."""

    def __init__(self) -> None:
        self._impatient = _Impatient()
        super().__init__(self._impatient)

    def time(self) -> float:
        return self._impatient.passed


def in_no_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an asynchronous test in a loop in which waiting takes no time."""

    @wraps(test)
    def run(*arguments: Any, **fixtures: Any) -> None:
        with asyncio.Runner(loop_factory=ImpatientLoop) as runner:
            runner.run(test(*arguments, **fixtures))

    return run


class Complaints(logging.Handler):
    """What asyncio and this library complain of: errors that nobody took, and log records of level ERROR.

    At the end of its block there must be none.
    """

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(self.format(record))

    def __enter__(self) -> Self:
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        gc.collect()  # what nobody refers to may complain yet
        logging.getLogger().removeHandler(self)
        assert kind is not None or self.told == []
