"""Make text from elsewhere safe to show."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: object, limit: int = 200) -> str:
    r"""Make foreign text fit for a terminal or a log: no control characters, no line breaks, a limited length.

    Characters that cannot be printed are shown as escapes (``\x1b``), so that nothing is hidden.
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text)[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
