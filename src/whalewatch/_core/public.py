"""Let public names show the public module that exports them: in tracebacks, in documentation, in pickles."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import FunctionType
from typing import get_type_hints

__all__ = ["show_as_public"]


def show_as_public(module: str, names: Iterable[str]) -> None:
    """Set the `__module__` of the classes and functions that a module re-exports to that module."""
    for name in names:
        exported = getattr(sys.modules[module], name)
        if not isinstance(exported, (type, FunctionType)):
            continue  # an alias of a type
        if isinstance(exported, type) and (annotations := vars(exported).get("__annotations__")):
            # Resolve annotations now: later, their names would be searched for in the public module.
            hints = get_type_hints(exported)
            exported.__annotations__ = {field: hints[field] for field in annotations}
        exported.__module__ = module
