"""Take the items of a JSON array one by one while it arrives, so that nobody has to keep them all. Pure."""

from __future__ import annotations

import re
from codecs import getincrementaldecoder
from collections.abc import Iterator
from json import JSONDecodeError, JSONDecoder
from typing import Any

__all__ = ["Items"]

SPACE = re.compile(r"[ \t\n\r]*")

ENDS = frozenset(" \t\n\r,]")


class Items:
    """Takes a JSON array as it arrives, cut anywhere. Bytes that are not UTF-8 become replacement characters.

    An item that is not complete is tried again when twice as much of it has arrived, so that reading stays linear.

    Args:
        limit: most characters of an item.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._decode = getincrementaldecoder("utf-8")("replace").decode
        self._read = JSONDecoder().raw_decode
        self._parts: list[str] = []  # what has arrived and was not read
        self._size = self._enough = 0
        self._expected = "["  # one of these, or for " " an item; else only white space

    def feed(self, data: bytes, *, final: bool) -> Iterator[Any]:
        """Take the next bytes, `final` if they are the last, and yield the items that are complete.

        Raises:
            ValueError, RecursionError: it is not a JSON array, or an item is too large.
        """
        self._parts.append(self._decode(data, final))
        self._size += len(self._parts[-1])
        if self._size < self._enough and not final:
            return
        text, at = "".join(self._parts), 0
        self._enough = 0
        while (at := SPACE.match(text, at).end()) < len(text):  # type: ignore[union-attr]  # it matches nothing, too
            if text[at] in self._expected:
                self._expected = {"[": " ]", ",": " ", "]": ""}[text[at]]
                at += 1
                continue
            if " " not in self._expected:
                raise ValueError(f"there is more where {self._expected or 'its end'} was expected")
            try:
                item, end = self._read(text, at)
                complete = final or text[end - 1] in '}]"' or text[end : end + 1] in ENDS  # a number may go on
            except JSONDecodeError:
                complete = False
                if final:
                    raise
            if not complete:
                self._enough = min(2 * (len(text) - at), self._limit + 1)
                if len(text) - at > self._limit:
                    raise ValueError(f"an item has more than {self._limit:,} characters")
                break
            at = end
            self._expected = ",]"
            yield item
        self._parts = [text[at:]]
        self._size = len(text) - at
        if final and self._expected:
            raise ValueError("it is cut off")
