"""How much of a run fits on a page."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Detail:
    """How much is shown: a page has to stay small enough to be sent and opened at once.

    Attributes:
        rows: Attempts of a run, the last ones.
        others: Candidates that were not chosen, of each attempt.
        text: Letters of a text from a run folder.
        modules: Rows of an architecture.
        config: Letters of a configuration.
        members: Individuals of a search that are drawn one by one.
        points: Of each curve.
    """

    rows: int = 5000
    others: int = 12
    text: int = 400
    modules: int = 2000
    config: int = 40_000
    members: int = 4000
    points: int = 600

    def cut(self, text: str) -> str:
        """Returns a text, shortened where it is too long."""
        return text if len(text) <= self.text else f"{text[: self.text - 1]}…"

    def less(self) -> Detail:
        """Returns about half of it."""
        return Detail(*(max(1, value // 2) for value in vars(self).values()))
