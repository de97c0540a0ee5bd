"""The exit codes of the commands of fake processes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

KILLED = 137
"""The exit code of a process that was killed."""

_SHELL_EXIT = re.compile(r"exit (\d+)")
_APPLETS = {"/bin/true": 0, "/bin/false": 1}


def exit_code(command: Sequence[str]) -> int | None:
    """Return the exit code of a command that ends by itself; None if it lives until somebody ends it."""
    if len(command) == 1:
        return _APPLETS.get(command[0])
    ended = _SHELL_EXIT.fullmatch(command[-1]) if tuple(command[:-1]) == ("/bin/sh", "-c") else None
    return int(ended.group(1)) if ended else None
