"""Find the JSON objects in a stream: each has a line of its own, but some proxies leave the newlines out. Pure."""

from __future__ import annotations

import re

__all__ = ["Documents"]

BETWEEN = re.compile(rb'(?<=\})(?=\{"\w)')
"""Between two objects, and never within one: there, no object directly follows another; and in a text, the quote would
be the end of the text, which no letter can follow."""

TOKEN = re.compile(rb'"(?=.)|\\.|[{}]', re.DOTALL)
"""What decides where an object ends. What comes after a quote shows whether this is `BETWEEN` two."""


class Documents:
    """Takes a stream as it arrives, cut anywhere, and finds each object as soon as it is complete.

    Whatever is no object ends with its line, or where two objects meet.

    Args:
        limit: most bytes of an object; a longer one is not kept, and None stands for it.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._found: list[bytes | None] = []
        self._too_long = False
        self._begin_line()

    def _begin_line(self) -> None:
        self._line = bytearray()  # what has arrived of it, without what was found in it
        self._followed = self._depth = 0
        self._quoted = False

    def feed(self, data: bytes) -> list[bytes | None]:
        """Take the next bytes, and return what they complete."""
        self._found = []
        *lines, rest = data.split(b"\n")
        for end in lines:
            line = end
            if self._line:
                line = bytes(self._line + end)
                self._begin_line()
            if b'}{"' in line:
                for document in BETWEEN.split(line):
                    self._add(document)
            else:
                self._add(line)
        if rest:
            self._line += rest
            self._follow()
        return self._found

    def _add(self, document: bytes) -> None:
        if self._too_long or len(document) > self._limit:
            self._found.append(None)
            self._too_long = False
        elif document and not document.isspace():
            self._found.append(document)

    def _follow(self) -> None:
        """Find the objects that end in a line whose own end has not come; look at each byte only once."""
        line, begin, end = self._line, 0, self._followed
        for token in TOKEN.finditer(line, self._followed):
            what, end = token[0], token.end()
            if what == b'"':
                self._quoted = not self._quoted
                if begin < end - 2 and BETWEEN.match(line, end - 2):
                    # An object begins within what looked like another, which is garbage then.
                    self._add(bytes(line[begin : end - 2]))
                    begin, self._depth, self._quoted = end - 2, 1, True
            elif what == b"{":
                self._depth += not self._quoted
            elif what == b"}" and self._depth and not self._quoted:
                self._depth -= 1
                if not self._depth:
                    self._add(bytes(line[begin:end]))
                    begin = end
        unfollowed = end < len(line) and bytes(line[-1:]) in {b'"', b"\\"}
        del line[:begin]
        if len(line) > self._limit:
            del line[: -len('}{"x')]
            self._too_long = True
        self._followed = len(line) - unfollowed
