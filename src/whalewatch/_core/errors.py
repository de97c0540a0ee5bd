"""The exceptions of the library: one tree, named by what the reader can do about them.

::

    WhalewatchError
    ├── AddressError         (also a ValueError)   correct the address
    ├── EngineError          the engine answered with an error
    │   ├── EngineUnavailable    nothing answers there, or not to us
    │   ├── EngineTimeout        it accepts, and then stays silent
    │   ├── UnsupportedEngine    something else answers, or too old an engine
    │   └── ProtocolViolation    it answers, and the answer makes no sense
    ├── NotSynced            (also a TimeoutError) a time-out of the caller's expired
    └── WatchEnded           the watcher was closed meanwhile
"""

from __future__ import annotations

__all__ = [
    "AddressError",
    "EngineError",
    "EngineTimeout",
    "EngineUnavailable",
    "NotSynced",
    "ProtocolViolation",
    "UnsupportedEngine",
    "WatchEnded",
    "WhalewatchError",
    "another",
]


class WhalewatchError(Exception):
    """Root of all exceptions that the library raises by itself."""


class AddressError(WhalewatchError, ValueError):
    """The address of an engine cannot be used; raised before anything is connected."""


class EngineError(WhalewatchError):
    """The engine answered a call with an error."""


class EngineUnavailable(EngineError):
    """The engine cannot be reached, refuses us, or its event stream has ended."""


class EngineTimeout(EngineError):
    """The engine did not answer a call in time."""


class UnsupportedEngine(EngineError):
    """What answers at the address is another kind of engine, or too old a version of it."""


class ProtocolViolation(EngineError):
    """The engine's answer cannot be understood."""


class NotSynced(WhalewatchError, TimeoutError):
    """A time-out given by the caller expired before the picture was as asked for.

    Its ``__cause__`` is the error for which the watch is disconnected at that moment, if it is.
    """


class WatchEnded(WhalewatchError):
    """The watcher was closed, so what was waited for can no longer come."""


def another(error: WhalewatchError) -> WhalewatchError:
    """Make a new instance of `error` for one more caller: a raised exception collects its raiser's traceback."""
    fresh = type(error).__new__(type(error), *error.args)  # an application's own class may want other arguments
    fresh.__dict__.update(error.__dict__)
    fresh.__cause__ = error
    return fresh
