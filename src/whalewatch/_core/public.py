"""Public names show the module from which they are imported: in tracebacks, in documentation, in pickles."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import FunctionType
from typing import get_type_hints

__all__ = ["show_as_public"]


def show_as_public(module: str, names: Iterable[str]) -> None:
    """Let classes and functions that a module re-exports show that module as theirs."""
    for name in names:
        thing = getattr(sys.modules[module], name)
        if not isinstance(thing, (type, FunctionType)):
            continue  # an alias of a type
        if isinstance(thing, type) and (own := vars(thing).get("__annotations__")):
            # Resolved now: later they would be looked up among the names of the public module.
            hints = get_type_hints(thing)
            thing.__annotations__ = {field: hints[field] for field in own}
        thing.__module__ = module
