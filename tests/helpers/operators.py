"""Operators that a test file registers for itself."""

from collections.abc import Callable, Iterator, Mapping

import evolve
from evolve.operators import operators


def registered(functions: Mapping[Callable, tuple[str, str]]) -> Iterator[None]:
    """The body of a fixture: operators for one file alone, as other tests take up every operator there is.

    Args:
        functions: What they do, each with its name and what it preserves.
    """
    for function, (name, preserves) in functions.items():
        evolve.operator(name, preserves=preserves)(function)
    yield
    for name, _ in functions.values():
        operators.unregister(name)
