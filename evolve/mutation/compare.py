"""Holds the outputs of two runs against each other: their structure, then every number in them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat

import torch
from torch import Tensor

from evolve.structure.outputs import Holder, Opaque, Part, dense

_SINGLE, _HALF = 1e-5, 1e-2
# Largest max|difference| relative to an output's largest |value| that still counts as exact: rounding, nothing more.
EXACT = {
    **{torch.float64: 1e-10, torch.complex128: 1e-10, torch.float32: _SINGLE, torch.complex64: _SINGLE},
    **{torch.bfloat16: _HALF, torch.float16: _HALF, torch.complex32: _HALF},
}
APPROXIMATE = 0.1  # likewise for operators that declare to preserve the function approximately
_LAST_ITEM = re.compile(r"(.*)\[\d+\]", re.DOTALL)
_EXTREME = 100  # an unchanged value this many times larger than every changed one, and than 1, is a mask's


@dataclass(frozen=True)
class LeafDifference:
    """How far one tensor or number in the outputs is from what it was.

    Attributes:
        path: Where it is in the outputs.
        rounds: Largest relative difference that rounding makes in its precision; 0 for integers and booleans.
        absolute: Largest |difference|; infinite where one side alone is not finite.
        scale: Largest finite |value| before, leaving out the constants of masks, such as -1e9.
        compared: How many elements are finite on both sides.
    """

    path: str
    rounds: float
    absolute: float
    scale: float
    compared: int

    @property
    def relative(self) -> float:
        """The difference relative to the largest |value| of this output; as it is where that is zero."""
        return self.absolute / self.scale if self.scale > 0 else self.absolute

    def allowed(self, preserves: str) -> float:
        """Returns the largest relative difference that a declaration allows."""
        return {"exact": self.rounds, "approximate": APPROXIMATE}.get(preserves, math.inf)


@dataclass(frozen=True)
class Difference:
    """How far outputs of equal structure are from each other.

    Attributes:
        leaves: Each tensor and number.
    """

    leaves: Sequence[LeafDifference]

    @property
    def absolute(self) -> float | None:
        """Largest |difference|; None where no finite number was compared and none became or ceased to be finite."""
        largest = max((leaf.absolute for leaf in self.leaves), default=0.0)
        return largest if largest > 0 or any(leaf.compared for leaf in self.leaves) else None

    @property
    def relative(self) -> float:
        """Largest difference relative to the largest |value| of the same output; 0 where nothing was compared."""
        return max((leaf.relative for leaf in self.leaves), default=0.0)


def difference(before: Sequence[Part], after: Sequence[Part], or_else: Sequence[Part] = ()) -> Difference:
    """Measures two outputs of equal structure, part by part.

    Args:
        before: Outputs.
        after: Others, of the same structure.
        or_else: What the model gave as well before, by another way; each value may be as in either.
    """
    others, ways = ({part.path: part.value for part in outputs} for outputs in (after, or_else))
    numbers = [part for part in before if _numbers(part.value) is not None]
    return Difference([_measure(part, others[part.path], ways.get(part.path)) for part in numbers])


def _measure(part: Part, other: Any, way: Any) -> LeafDifference:
    one, two = _wide(part.value), _wide(other)
    rounds = EXACT.get(part.value.dtype, 0.0) if isinstance(part.value, Tensor) else _rounds(part.value)
    delta = _apart(one, two)
    if _numbers(way) is not None and (third := _wide(way)).shape == two.shape:
        delta = torch.minimum(delta, _apart(third, two))
    finite = torch.isfinite(one)
    largest, scale = _largest(delta), _scale(one, two, delta)
    return LeafDifference(part.path, rounds, largest, scale, int((finite & torch.isfinite(two)).sum()))


def _scale(one: Tensor, two: Tensor, delta: Tensor) -> float:
    """Returns the largest finite |value| of the first, leaving out what a mask put there.

    Beside -1e9 every change of a logit would look like rounding. A mask's constants are equal on both sides and far
    larger than all that changed.
    """
    first, second = (torch.where(torch.isfinite(t), t.abs(), 0.0) for t in (one, two))
    same = delta == 0
    changed = _largest(torch.where(same, 0.0, torch.maximum(first, second)))
    mask = same & (first >= _EXTREME * max(changed, 1.0)) & bool((~same).any())
    return _largest(torch.where(mask, 0.0, first))


def _largest(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


def _apart(one: Tensor, two: Tensor) -> Tensor:
    """Returns |differences|; infinite where one alone is finite, or where both are infinite with other signs."""
    same = (one == two) | (torch.isnan(one) & torch.isnan(two))
    finite = torch.isfinite(one) & torch.isfinite(two)
    return torch.where(same, 0.0, torch.where(finite, (one - two).abs(), math.inf))


def _rounds(number: Any) -> float:
    """Python's floats have double precision, but what they were read from is seldom computed in it."""
    return _SINGLE if isinstance(number, (float, complex)) else 0.0


def _numbers(value: Any) -> Tensor | None:
    """Returns the numbers of a part; None where it has none."""
    if isinstance(value, Tensor):
        return dense(value)
    if not isinstance(value, (SupportsFloat, complex)):
        return None
    kind = torch.complex128 if isinstance(value, complex) else torch.float64
    try:
        return torch.tensor(value if isinstance(value, complex) else float(value), dtype=kind, device="cpu")
    except OverflowError:  # an integer beyond all floats
        return None


def _wide(value: Any) -> Tensor:
    values = _numbers(value)
    assert values is not None
    values = values.cpu() if values.device.type == "mps" else values  # which has no double precision
    return values.to(torch.complex128 if values.is_complex() else torch.float64)


def structure_faults(before: Sequence[Part], after: Sequence[Part]) -> list[str]:
    """Says where two outputs differ in nesting, type, shape, dtype, device, or in what is no number."""
    old, new = {part.path: part.value for part in before}, {part.path: part.value for part in after}
    faults = [f"{_named(path)} is gone" for path in old.keys() - new.keys()]
    faults += [f"{_named(path)} is new" for path in new.keys() - old.keys()]
    for path, value in old.items():
        if path in new and (one := _described(value)) != (other := _described(new[path])):
            faults.append(f"{_named(path)} changed from {one} to {other}")
    return faults


def without_recounted(before: Sequence[Part], after: Sequence[Part]) -> tuple[Sequence[Part], Sequence[Part]]:
    """Leaves out what lists hold that became longer or shorter, such as a cache with the keys of each block."""
    old, new = {part.path for part in before}, {part.path for part in after}
    steps = [_LAST_ITEM.fullmatch(path) for path in old ^ new]
    lists = {f"{step[1]}[" for step in steps if step is not None and step[1] in old & new}
    one, two = ([part for part in outputs if not part.path.startswith(tuple(lists))] for outputs in (before, after))
    return one, two


def _named(path: str) -> str:
    return f"output{path}" if path else "the output"


def _described(value: Any) -> str:
    """Says all of a part that has to stay, its numbers apart."""
    if isinstance(value, Tensor):
        layout = "" if value.layout == torch.strided else f" {value.layout}"
        return f"{tuple(value.shape)} {value.dtype}{layout} on {value.device}"
    if isinstance(value, (Holder, Opaque)):
        return f"a {value.kind}"
    return type(value).__name__ if _numbers(value) is not None else repr(value)


def why_not_measured(outputs: Sequence[Part]) -> str:
    """Says why no number of the outputs could be compared."""
    found = [values for part in outputs if (values := _numbers(part.value)) is not None]
    if not found:
        return f"the model returns {_described(outputs[0].value)}, in which there is no number"
    if not any(values.numel() for values in found):
        return "the outputs are empty"
    return "no output holds a finite number"


def newly_infinite(before: Sequence[Part], after: Sequence[Part]) -> list[str]:
    """Names the outputs that hold NaN or infinity where they held none before, whatever else changed."""
    old = {part.path: torch.isfinite(_wide(part.value)) for part in before if _numbers(part.value) is not None}
    faults = []
    for part in after:
        if _numbers(part.value) is None:
            continue
        finite = torch.isfinite(_wide(part.value))
        was = old.get(part.path, torch.ones_like(finite))
        # Where the shape changed, nobody can say which of several are new.
        if bool((was & ~finite).any()) if was.shape == finite.shape else bool(was.all() and not finite.all()):
            faults.append(f"{_named(part.path)} has become NaN or infinite")
    return faults


def uncompared(outputs: Sequence[Part]) -> list[str]:
    """Says which parts of the outputs cannot be looked into."""
    names = [f"{_named(part.path)} ({part.value.kind})" for part in outputs if isinstance(part.value, Opaque)]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [f"Not compared: {', '.join(names[:3])}{more}."] if names else []
