"""Somebody else's words in a sentence of ours."""

from __future__ import annotations

QUOTED_CHARS_MAX = 200


def quoted(said: str) -> str:
    """No more of it than can be read, and nothing that does something to a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in said[:QUOTED_CHARS_MAX])
