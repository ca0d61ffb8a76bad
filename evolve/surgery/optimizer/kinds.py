"""What the entries of an optimizer's state are: weights, gradients, squares of gradients, or none of these.

How an entry is cut depends on it. For torch's own optimizers it is known by name; any other is tried (`trial.py`): an
entry that equals the parameter while nothing is learned holds weights, and how it grows with the gradient is its power.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from evolve.runtime.memory import out_of_memory
from evolve.structure.tracing.tape import Shape
from evolve.surgery.optimizer.layers import all_layers
from evolve.surgery.optimizer.places import Owned, Path, as_float, places_of, tensors_in
from evolve.surgery.optimizer.rehearsal import Rehearsal
from evolve.surgery.optimizer.trial import RARELY, StandIn, Trial


@dataclass(frozen=True)
class Kind:
    """What an entry is.

    Attributes:
        weights: Whether it holds values of the parameter: an average of them, or where they began.
        power: How it scales with the gradient: 1, 2, or 0 for what does not.
        level: Whether what is new starts at the mean of what is there: zero would stay zero.
    """

    weights: bool = False
    power: int = 0
    level: bool = False


# By their names in torch.optim.
_NAMED = dict.fromkeys(["momentum_buffer", "exp_avg", "exp_inf", "grad_avg", "prev"], Kind(power=1))
_NAMED |= dict.fromkeys(
    ["exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "row_var", "col_var", "variance"], Kind(power=2)
)
_NAMED |= {"ax": Kind(weights=True), "step_size": Kind(level=True)}


def known(optimizer: Optimizer) -> bool:
    """Whether an optimizer is one of torch's own, whose state is known by name."""
    return type(optimizer).__module__.startswith("torch.optim.") and type(optimizer).__qualname__ in dir(torch.optim)


class Kinds:
    """The kinds of all entries of optimizers, and along which axes those lie that have fewer axes than the parameter.

    Args:
        optimizers: As they stand before a change.
        names: Of the model's parameters.
    """

    def __init__(self, optimizers: Sequence[Optimizer], names: Mapping[str, Parameter]) -> None:
        self.trial: Trial | None = None
        self.rehearsal: Rehearsal | None = None
        self._names = names
        self._optimizers = optimizers
        self._tried: dict[Path, Kind] = {}
        self._axes: dict[tuple[int, Path], tuple[int, ...]] = {}
        self._apart: set[Path] = set()
        self._stand: dict[int, StandIn] = {}
        if not all(map(known, all_layers(optimizers))):
            self._tried = {path: Kind(weights=True) for path in self._alike()}
            self.trial = Trial(optimizers)
            if self.trial.settle():
                self._find(self.trial)
                self.rehearsal = Rehearsal(self.trial, optimizers)

    def of(self, entry: Owned, path: Path) -> Kind:
        """Returns the kind of a tensor.

        Args:
            entry: What it is in.
            path: Names on the way from there to the tensor.
        """
        name = path[-1] if path else ""
        state = entry.value
        if entry.layer is not None and known(entry.layer) and name in _NAMED:
            if name == "momentum_buffer" and "square_avg" in state:  # RMSprop: of steps, which are normalised already
                return Kind()
            return _NAMED[name]
        return self._tried.get((*entry.path, *path)) or _NAMED.get(name, Kind())

    def whole(self, entry: Owned, path: Path, shape: Shape, old: Shape) -> bool:
        """Whether a tensor has one value for each of a parameter's; preconditioners of a square matrix only look so.

        Args:
            entry: What it is in.
            path: Names on the way from there to the tensor.
            shape: Of the tensor.
            old: Of the parameter.
        """
        if shape != old or not old:
            return False
        return len(old) != 2 or old[0] != old[1] or (*entry.path, *path) not in self._apart

    def holds_weights(self, path: Path) -> bool:
        """Whether what is kept outside of states, at this place, holds values of parameters."""
        return self._tried.get(path, Kind()).weights

    def axes(self, entry: Owned, path: Path, shape: Shape, old: Shape) -> tuple[int, ...] | None:
        """Returns along which axes of a parameter the axes of an entry lie; None where that is not known.

        Args:
            entry: What it is in.
            path: Names on the way from there to the tensor.
            shape: Of the tensor.
            old: Of the parameter.
        """
        found = candidates(shape, old)
        if len(found) > 1:
            return self._axes.get((id(entry.owner), (*entry.path, *path)))
        return found[0] if found else None

    def _find(self, trial: Trial) -> None:
        seen = []
        here = {path for _, path in self._entries()}
        for scale in (1.0, 2.0):
            with trial.taken_back() as ins:
                trial.begin_anew(ins)
                self._begin_outside(ins)
                try:
                    trial.steps(ins, scale, 2)
                    if not here <= {path for _, path in self._entries()}:
                        trial.steps(ins, scale, RARELY - 2)
                except Exception as error:  # its state is made beforehand, not in its first step
                    if out_of_memory(error):
                        raise
                    return
                seen.append({key: as_float(value) for key, value in self._entries().items()})
                self._stand = ins
        once, twice = seen  # what the steps have not made keeps what the numbers say
        by_path: dict[Path, list[tuple[int, Tensor, Tensor]]] = {}
        for (owner, path), value in once.items():
            other = twice.get((owner, path))
            if other is not None and other.shape == value.shape and owner in self._stand:
                by_path.setdefault(path, []).append((owner, value, other))
        for path, pairs in by_path.items():
            self._tried[path] = self._judged(pairs)
            if self._lies_apart(pairs):
                self._apart.add(path)
            told: dict[int, tuple[int, ...]] = {}  # by parameters whose axes have different sizes, for all of that rank
            for certain in (True, False):
                for owner, value, _ in pairs:
                    stand = self._stand[owner]
                    found = candidates(tuple(value.shape), tuple(stand.value.shape))
                    rank = stand.value.dim()
                    if certain and len(found) == 1:
                        told[rank] = found[0]
                    elif not certain and len(found) > 1:
                        alike = told.get(rank)
                        self._axes[owner, path] = alike if alike in found else _likeliest(value, stand, found)
        self._stand = {}

    @torch.no_grad()
    def _begin_outside(self, ins: Mapping[int, StandIn]) -> None:
        """Lets what is kept outside of states begin: at the parameters' values where it is like them, else at zero."""
        for places in places_of(all_layers(self._optimizers), {}, self._names):
            for entry in (entry for entry in places.owned if entry.layer is None):
                for path, value in tensors_in(entry.value):
                    stand = ins.get(id(entry.owner))
                    whole = stand is not None and value.shape == stand.value.shape
                    if stand is not None and whole and (*entry.path, *path) in self._tried:
                        value.copy_(stand.value)
                    elif value.is_floating_point():
                        value.zero_()

    def _judged(self, pairs: Sequence[tuple[int, Tensor, Tensor]]) -> Kind:
        whole = [(value, self._stand[owner].value.float()) for owner, value, _ in pairs]
        whole = [(value, stand) for value, stand in whole if value.shape == stand.shape]
        if whole:
            along = sum(float((value * stand).sum()) for value, stand in whole)
            size = sum(float(value.square().sum()) for value, _ in whole)
            other = sum(float(stand.square().sum()) for _, stand in whole)
            if along > 0.98 * math.sqrt(size * other) > 0:  # of an average that begins at zero, a part
                return Kind(weights=True)
        ratios = [(b.abs() / a.abs())[(a != 0) & (b != 0)].flatten() for _, a, b in pairs]
        ratio = torch.cat(ratios) if ratios else torch.empty(0)
        ratio = ratio[ratio.isfinite()]
        if not len(ratio):
            return Kind()
        power = math.log2(max(float(ratio.median()), 1e-6))
        return Kind(power=round(power) if abs(power - round(power)) < 0.2 and round(power) in (1, 2) else 0)

    def _lies_apart(self, pairs: Sequence[tuple[int, Tensor, Tensor]]) -> bool:
        """Whether matrices at one place are not of their parameters' values, one by one."""
        square = []
        for owner, value, _ in pairs:
            stand = self._stand[owner]
            if value.dim() != 2 or stand.value.dim() != 2:
                continue
            if len(set(stand.value.shape)) == 2:
                return value.shape != stand.value.shape
            if value.shape == stand.value.shape:
                square.append((value, stand))
        if not square or self._judged(pairs).weights:
            return False
        return all(_likeness(value, stand, (0, 1)) < 1 for value, stand in square)

    def _entries(self) -> dict[tuple[int, Path], Tensor]:
        found = {}
        for places in places_of(all_layers(self._optimizers), {}, self._names):
            for entry in places.owned:
                for path, value in tensors_in(entry.value):
                    if value.dim():
                        found[id(entry.owner), (*entry.path, *path)] = value
        return found

    def _alike(self) -> list[Path]:
        """Returns where values are that are like the parameters: all that is known where a trial makes none."""
        parameters = {id(p): p.detach().float() for p in self._names.values() if p.dim() > 1}
        sums: dict[Path, list[float]] = {}
        for (owner, path), value in self._entries().items():
            own = parameters.get(owner)
            if own is not None and own.shape == value.shape:
                value = as_float(value).to(own.device)
                found = sums.setdefault(path, [0.0, 0.0, 0.0])
                for position, term in enumerate((value * own, value.square(), own.square())):
                    found[position] += float(term.sum())
        return [
            path
            for path, (product, one, other) in sums.items()
            if product > 0.5 * math.sqrt(one * other) > 0 and 0.1 < one / other < 10
        ]


def candidates(shape: Shape, old: Shape) -> list[tuple[int, ...]]:
    """Returns the ways in which the axes of an entry may be some of the parameter's axes, in their order."""
    return [axes for axes in combinations(range(len(old)), len(shape)) if tuple(old[axis] for axis in axes) == shape]


def _likeliest(value: Tensor, stand: StandIn, found: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """Chooses the axes along which an entry is as large and small as the gradient was."""

    return max(found, key=lambda axes: _likeness(value, stand, axes))


def _likeness(value: Tensor, stand: StandIn, axes: tuple[int, ...]) -> float:
    """Returns, summed over axes, how well the sizes along an entry go with those of the gradient, from -1 to 1."""
    total = 0.0
    for own, axis in enumerate(axes):
        rest = [other for other in range(value.dim()) if other != own]
        size = value.abs().mean(dim=rest) if rest else value.abs()
        size, profile = size.clamp(min=1e-30).log().cpu(), stand.profiles[axis]
        size, profile = size - size.mean(), profile - profile.mean()
        total += float((size * profile).sum() / (size.norm() * profile.norm()).clamp(min=1e-12))
    return total
