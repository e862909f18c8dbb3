"""Read a long list out of a JSON answer row by row, so that memory holds rows and no text."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from hub_tools.errors import HubProtocolError
from model_store.canonical import strict_decoder

Row = TypeVar("Row")

_LONGEST_ROW = 1 << 20  # characters
_BETWEEN = re.compile(r"[\s,]*")


class RowReader(Generic[Row]):
    """Takes the rows of one list out of an object that arrives in pieces.

    Args:
        key: the list's name; its first occurrence with a list counts.
        make: turns a row's JSON into what is kept.
        where: what is read, for messages.
    """

    def __init__(self, key: str, make: Callable[[Any], Row], *, where: str) -> None:
        self.rows: list[Row] = []
        self._opening = re.compile(rf'"{re.escape(key)}"\s*:\s*\[')
        self._make, self._where = make, where

    def read(self, chunks: Iterable[bytes]) -> bytes:
        """Keep the rows, and return the JSON around them, the list empty.

        Raises:
            HubProtocolError: not UTF-8, or a row that is no JSON.
        """
        self.rows = []  # an earlier try may have left some
        pieces = self._texts(chunks)
        head = ""
        for piece in pieces:
            head += piece
            found = self._opening.search(head)
            if found:
                rest = self._take_rows(head[found.end() :], pieces)
                return (head[: found.end()] + rest).encode()
        return head.encode()

    def _texts(self, chunks: Iterable[bytes]) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            for chunk in chunks:
                yield decoder.decode(chunk)
            yield decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise HubProtocolError(f"{self._where} is not UTF-8") from error

    def _take_rows(self, text: str, pieces: Iterator[str]) -> str:
        decoder = strict_decoder()
        at = 0
        while True:
            at = _end_of(_BETWEEN, text, at)
            if text[at : at + 1] == "]":
                return text[at:] + "".join(pieces)
            try:
                row, end = decoder.raw_decode(text, at)
                if end == len(text):
                    raise ValueError("it ends in a row")  # a number may go on in the next piece
            except (ValueError, RecursionError) as error:
                more = next(pieces, None)
                if more is None or len(text) - at > _LONGEST_ROW:
                    raise HubProtocolError(f"{self._where} is not valid JSON: {error}") from error
                text, at = text[at:] + more, 0
            else:
                self.rows.append(self._make(row))
                at = end


def _end_of(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at
