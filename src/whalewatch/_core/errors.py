"""The exceptions of the library: one tree, named by what the caller can do about them.

::

    WhalewatchError
    ├── AddressError         (also a ValueError)   correct the address
    ├── EngineError          the engine answered with an error
    │   ├── EngineUnavailable    nothing answers at the address, or it refuses us
    │   ├── EngineTimeout        it accepts the call, and then does not answer
    │   ├── UnsupportedEngine    another kind of engine answers, or too old a version
    │   └── ProtocolViolation    it answers, but the answer cannot be understood
    ├── NotHealthy           a container that was waited for cannot become healthy any more
    ├── NotSynced            (also a TimeoutError) a time-out set by the caller expired
    └── WatchEnded           the watcher was closed meanwhile
"""

from __future__ import annotations

from whalewatch._core.text import MAX_ERROR, printable

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
    "copy_error",
]


class WhalewatchError(Exception):
    """Root of all exceptions that the library defines and raises.

    As text it is printable and has 1,000 characters at most, whatever an engine has put into it; ``args`` has the rest.
    """

    def __str__(self) -> str:
        return printable(super().__str__(), MAX_ERROR)


class AddressError(WhalewatchError, ValueError):
    """The address of an engine cannot be used; raised before anything is connected."""


class EngineError(WhalewatchError):
    """A call to the engine failed; raised as it is if the engine answered the call with an error."""


class EngineUnavailable(EngineError):
    """The engine cannot be reached, refuses us, or its event stream has ended."""


class EngineTimeout(EngineError):
    """The engine did not answer a call in time."""


class UnsupportedEngine(EngineError):
    """What answers at the address was recognised: as another kind of engine, or too old a version of it."""


class ProtocolViolation(EngineError):
    """The engine's answer cannot be understood."""


class NotSynced(WhalewatchError, TimeoutError):
    """A time-out set by the caller expired before the condition was met.

    If the watch is disconnected at that moment, ``__cause__`` is the error that disconnected it.
    """


class WatchEnded(WhalewatchError):
    """The watcher was closed while the caller waited, or before the call."""


def copy_error(error: WhalewatchError) -> WhalewatchError:
    """Make a new instance of `error` for one more caller.

    Two callers must not raise the same instance: each raise adds a traceback to it. The copy has the cause of `error`,
    not `error`, which says the same.
    """
    copy = type(error).__new__(type(error), *error.args)  # __init__ of an application's own class may differ
    copy.__dict__.update(error.__dict__)
    copy.__cause__ = error.__cause__
    return copy
