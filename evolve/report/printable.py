"""Text from elsewhere that a terminal shows and does not obey."""

from __future__ import annotations


def printable(text: str) -> str:
    """Returns a text with every character that steers a terminal, or turns the order of others round, written out.

    Line ends and tabs stay.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    """Returns a text as `printable` does, in one line."""
    return printable(" ".join(text.split("\n")))
