"""Undo gzip or deflate while bytes arrive, in bounded memory."""

from __future__ import annotations

import zlib
from collections.abc import Callable

_EITHER = 32 + zlib.MAX_WBITS  # gzip or zlib, as the first bytes say
_RAW = -zlib.MAX_WBITS  # what some servers call deflate
_PACKED = 1 << 16  # bytes taken at once; they may be a thousand times as many unpacked


class Unpacker:
    """Reads compressed bytes from `arrived` and gives out what they say.

    Args:
        arrived: returns at most so many bytes, b"" at the end.
    """

    def __init__(self, arrived: Callable[[int], bytes]) -> None:
        self._arrived = arrived
        self._decoder = zlib.decompressobj(_EITHER)
        self._begun = False
        self._waiting = b""  # taken, and not unpacked yet

    def read(self, amount: int) -> bytes:
        """Return at least one byte and at most `amount`; b"" at the end.

        Raises:
            zlib.error: what came is not compressed so, or broke off.
        """
        while True:
            data = self._waiting or self._arrived(_PACKED)
            if len(data) == 1 and not self._begun:
                data += self._arrived(_PACKED)  # two bytes say how it is compressed
            if not data:
                if self._begun and not self._decoder.eof:
                    raise zlib.error("it broke off")
                return b""
            out = self._unpacked(data, amount)
            if out:
                return out

    def _unpacked(self, data: bytes, amount: int) -> bytes:
        if self._decoder.eof:  # gzip allows one stream after another
            self._decoder = zlib.decompressobj(_EITHER)
        try:
            out = self._decoder.decompress(data, amount)
        except zlib.error:
            if self._begun:
                raise
            self._decoder = zlib.decompressobj(_RAW)
            out = self._decoder.decompress(data, amount)
        self._begun = True
        self._waiting = self._decoder.unconsumed_tail or self._decoder.unused_data
        return out
