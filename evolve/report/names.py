"""Much in few letters: `layer1.0.conv1` and `layer1.1.conv1` as `layer1.{0,1}.conv1`, 11,689,512 as 11.7M, shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

Numbers = tuple[int, ...]


def pattern(name: str) -> str:
    """Returns a name with `*` for every number."""
    return re.sub(r"\d+", "*", name)


def compact(names: Iterable[str]) -> list[str]:
    """Returns names with braces that stand for all the given ones, and for no other; in the order of the first."""
    alike: dict[str, list[Numbers]] = {}
    for name in names:
        alike.setdefault(pattern(name), []).append(tuple(map(int, re.findall(r"\d+", name))))
    return [_filled(kind, values) for kind, found in alike.items() for values in _products(found)]


def _products(rows: Sequence[Numbers]) -> list[tuple[Numbers, ...]]:
    """Splits rows of numbers into few full products: {1,2} x {0,1} for (1, 0), (1, 1), (2, 0), (2, 1)."""
    if not rows[0]:
        return [()]
    rests: dict[int, list[Numbers]] = {}
    for first, *rest in dict.fromkeys(rows):
        rests.setdefault(first, []).append(tuple(rest))
    heads: dict[tuple[tuple[Numbers, ...], ...], list[int]] = {}
    for first, found in rests.items():
        heads.setdefault(tuple(_products(found)), []).append(first)
    return [(tuple(firsts), *tail) for tails, firsts in heads.items() for tail in tails]


def _filled(kind: str, values: Sequence[Numbers]) -> str:
    texts = iter(values)  # a name that is a star itself has no number to put in
    return re.sub(r"\*", lambda _: _braces(next(texts)), kind) if values else kind


def _braces(numbers: Numbers) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = [f"{run[0]}…{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs]
    return "{" + ",".join(texts) + "}"


def short(number: float, unit: str = "") -> str:
    """Returns a number in three digits, such as 11.7M; a middle dot for none."""
    if not number:
        return "·"
    sizes = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("K", 1e3), ("", 1.0))
    prefix, size = next(((p, s) for p, s in sizes if number >= s * 0.9995), sizes[-1])
    return f"{number / size:.3g}{prefix}{unit}"


def shown(names: Sequence[str], most: int) -> str:
    """Returns the compacted names in one line, at most so many terms of them."""
    terms = compact(names)
    more = f" and {len(terms) - most} more" if len(terms) > most else ""
    return ", ".join(terms[:most]) + more


def sizes(shape: Sequence[int], batch: int | None = None) -> str:
    """Returns a shape in one word; N for the first size where it is that of the batch."""
    words = ["N" if shape[0] == batch else str(shape[0]), *map(str, shape[1:])] if shape else ["scalar"]
    return "×".join(words)  # noqa: RUF001 - the sign of multiplication
