"""A fuzzer's bytes as numbers, choices and pieces: whatever the bytes, something comes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Reader:
    """Reads from front to back; behind the end everything is zero or empty."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """Whether something is left."""
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        """The next `count` bytes, or what is left of them."""
        piece = self._data[self._at : self._at + count]
        self._at += len(piece)
        return piece

    def number(self, size_bytes: int = 1) -> int:
        """A whole number from 0, the most significant byte first."""
        return int.from_bytes(self.take(size_bytes))

    def flag(self) -> bool:
        """True or false."""
        return bool(self.number() & 1)

    def choice(self, choices: Sequence[T]) -> T:
        """One of at most 256."""
        return choices[self.number() % len(choices)]

    def piece(self) -> bytes:
        """Some bytes, whose length comes first (2 bytes)."""
        return self.take(self.number(2))

    def pieces(self) -> list[bytes]:
        """All the rest as such pieces."""
        pieces = []
        while self:
            pieces.append(self.piece())
        return pieces

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data))


def piece_of(data: bytes) -> bytes:
    """What `Reader.piece` reads as `data`."""
    return len(data).to_bytes(2) + data
