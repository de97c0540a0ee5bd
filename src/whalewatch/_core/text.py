"""Make text from elsewhere safe to show: in messages, in logs, and on a terminal."""

from __future__ import annotations

import logging
import unicodedata

__all__ = ["MAX_ERROR", "MAX_LINE", "logger", "printable"]

MAX_ERROR = 1000
"""Most characters of an error that are shown."""

MAX_LINE = 2000
"""Most characters of a line that is logged or printed: room for an error, and for what is said about it."""

MAX_MARKS = 4
"""Most marks, such as accents, that one letter shows: hundreds of them would cover the lines above and below."""


BLANK = "\u115f\u1160\u17b4\u17b5\u3164\uffa0"
"""Letters that show nothing, though Unicode counts them as printable: fillers of Hangul, inherent vowels of Khmer."""


def printable(text: object, limit: int = 200) -> str:
    r"""Make foreign text fit for a terminal or a log: no control characters, no line breaks, a limited length.

    What cannot be printed is shown as an escape (``\x1b``), so that nothing is hidden: also what changes the direction
    of text, what has no width, halves of surrogate pairs, and marks beyond `MAX_MARKS`. What is printable remains as it
    is, so this may be called twice.
    """
    found = str(text)[: limit + 1]
    shown = found if found.isascii() and found.isprintable() else "".join(_escaped(found))
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def _escaped(text: str) -> list[str]:
    pieces, marks = [], 0
    for character in text:
        marks = marks + 1 if unicodedata.category(character)[0] == "M" else 0
        plain = character.isprintable() and marks <= MAX_MARKS and character not in BLANK
        pieces.append(character if plain else character.encode("unicode_escape").decode())
    return pieces


def logger(name: str) -> logging.Logger:
    """Return the logger of this name; all that it logs is printable. Every logger of the library comes from here."""
    found = logging.getLogger(name)
    found.addFilter(_make_printable)  # a filter of a parent does not see the records of its children
    return found


def _make_printable(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    if (shown := printable(message, MAX_LINE)) != message:
        record.msg, record.args = shown, ()
    return True
