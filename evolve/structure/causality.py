"""Which axes of a model's inputs have an order that its outputs heed: no earlier output sees a later position.

Language models, causal convolutions (TCN, WaveNet), autoregressive image models (PixelCNN) and recurrent networks have
such an axis. No module says so, hence it is measured: inputs are disturbed from one position on, and the first output
position that changes tells. Parameters are moved off their values meanwhile, since a
layer that starts at zero hides what depends on it.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from evolve.structure.disturbance import Disturber, Place, changes, marginal, moved
from evolve.structure.fingerprint import fingerprint
from evolve.structure.inputs import Inputs
from evolve.structure.outputs import output_tensors
from evolve.structure.probe import Probe

logger = logging.getLogger(__name__)

_IMAGE = 4  # axes of (N, C, H, W)


@dataclass(frozen=True)
class Order:
    """An axis of an output that heeds the order of an input: position q sees nothing of the input behind q - margin.

    Attributes:
        place: The positions of the input.
        output: Number of the output tensor.
        lead: Sizes that the output's first axis is made of, such as batch and length of (N * L, V); () for one axis.
        axes: Its axes, as many as the place has, or one for all of them.
        size: How many positions they have.
        margin: Smallest distance from a position of the input to the first output position that it reaches. 1 or more
            where an output does not see its own position, as in a PixelCNN.
        spreads: Whether an output sees more than one position.
    """

    place: Place
    output: int
    lead: tuple[int, ...]
    axes: tuple[int, ...]
    size: int
    margin: int = 0
    spreads: bool = False

    def first(self, base: Sequence[Tensor], other: Sequence[Tensor]) -> int | None:
        """Returns the first position at which two runs differ, `size` for none, None where the output is another."""
        found = self._changed(base, other)
        return None if found is None else int(found.nonzero()[0]) if bool(found.any()) else self.size

    def count(self, base: Sequence[Tensor], other: Sequence[Tensor]) -> int:
        """Returns at how many positions two runs differ."""
        found = self._changed(base, other)
        return 0 if found is None else int(found.sum())

    def _changed(self, base: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor | None:
        if self.output >= min(len(base), len(other)):
            return None
        one, two = base[self.output], other[self.output]
        if one.shape != two.shape or (self.lead and one.shape[0] != math.prod(self.lead)):
            return None
        changed = changes(one, two)
        changed = changed.unflatten(0, self.lead) if self.lead else changed
        if changed.dim() <= max(self.axes) or math.prod(changed.shape[axis] for axis in self.axes) != self.size:
            return None
        return marginal(changed, self.axes)


def orders_of(model: nn.Module, seen: Probe) -> tuple[Order, ...]:
    """Returns the orders that the model's outputs heed; found anew only where the model or the inputs changed.

    Costs nothing where no output has an axis like one of an input, and a few forward passes elsewhere.
    """
    if seen.inputs is None:
        return ()
    if "orders" not in seen.found:
        seen.found["orders"] = _remembered(model, seen.inputs, output_tensors(seen.outputs))
    found: tuple[Order, ...] = seen.found["orders"]
    return found


# A memo, not a state: it is looked at only where the fingerprint says that nothing has changed.
_MEMO: weakref.WeakKeyDictionary[nn.Module, tuple[Any, tuple[Order, ...]]] = weakref.WeakKeyDictionary()


def _remembered(model: nn.Module, inputs: Inputs, outputs: Sequence[Tensor]) -> tuple[Order, ...]:
    candidates = [_candidates(inputs, number, outputs) for number in _readable(inputs)]
    if not any(candidates):
        return ()
    key = fingerprint(model, inputs)
    known = _MEMO.get(model)
    if known is None or known[0] != key:
        known = key, _find(model, inputs, candidates)
        _MEMO[model] = known
    return known[1]


def _find(model: nn.Module, inputs: Inputs, candidates: list[dict[Place, list[Order]]]) -> tuple[Order, ...]:
    runs = Disturber(model, inputs)
    found: list[Order] = []
    with moved(model):
        try:
            base = runs.run()
            for places in candidates:
                found += _heeded(runs, base, places)
        except Exception as error:  # whatever a user's forward raises on other values
            logger.warning(
                "Whether the outputs of a %s depend on later positions could not be tried: it does not run on other "
                "values (%s: %s). Check it yourself if the model is causal.",
                type(model).__name__,
                type(error).__name__,
                error,
            )
            return ()
    return tuple(found)


def _readable(inputs: Inputs) -> list[int]:
    """Returns the numbers of the tensors that can be disturbed: no masks, no flags, no numbers of samples."""
    plain = [(i, t) for i, t in enumerate(inputs.tensors) if t.dim() > 1 and t.numel() and t.dtype != torch.bool]
    varied = [i for i, t in plain if t.is_floating_point() or t.is_complex() or len(t.unique()) > 1]
    return varied or [i for i, _ in plain[:1]]


def _candidates(inputs: Inputs, number: int, outputs: Sequence[Tensor]) -> dict[Place, list[Order]]:
    """Returns what there is to try: places of an input, each with the axes of outputs that may heed it."""
    tensor = inputs.tensors[number]
    counts = not (tensor.is_floating_point() or tensor.is_complex())
    spatial = tensor.dim() + 2 * counts if tensor.dim() > 2 else 0  # the axes of an image with channels
    axes: list[tuple[int, ...]] = [(axis,) for axis in range(1, tensor.dim())]
    if spatial >= _IMAGE:
        axes.insert(0, (tensor.dim() - 2, tensor.dim() - 1))
    if is_sequence(tensor):
        axes.append((0,))
    found = {Place(number, place): _like(inputs, Place(number, place), outputs) for place in axes}
    return {place: orders for place, orders in found.items() if orders}


def is_sequence(tensor: Tensor) -> bool:
    """Whether a tensor has the rank of a batch of sequences: (N, L) of integers, (N, L, D) or (N, C, L) of others."""
    counts = not (tensor.is_floating_point() or tensor.is_complex())
    return tensor.dim() == (2 if counts else 3)


def _like(inputs: Inputs, place: Place, outputs: Sequence[Tensor]) -> list[Order]:
    tensor, sizes = inputs.tensors[place.tensor], place.sizes(inputs)
    count, sequence = math.prod(sizes), is_sequence(tensor)
    found = []
    for number, output in enumerate(outputs):
        if not output.is_floating_point() or output.dim() < 2 or count < 2:
            continue
        lead = tuple(tensor.shape[:2])
        joined = sequence and min(lead) > 1 and output.shape[0] == math.prod(lead)
        for made_of in ((), lead) if joined else ((),):
            shape = (*made_of, *output.shape[1:]) if made_of else tuple(output.shape)
            for axis, size in enumerate(shape):
                if len(sizes) > 1 and shape[axis : axis + 2] == sizes:
                    found.append(Order(place, number, made_of, (axis, axis + 1), count))
                longer = sequence and len(shape) > 2 and size > 1 and axis > 0 and place.axes != (0,)
                if size == count or longer:
                    found.append(Order(place, number, made_of, (axis,), size))
    return found


def _heeded(runs: Disturber, base: Sequence[Tensor], places: dict[Place, list[Order]]) -> list[Order]:
    """Tries the places of one input tensor."""
    found: dict[tuple[int, ...], list[Order]] = {}
    for place, candidates in places.items():
        if place.axes == (0,) and (not found.get((1,)) or any(order.spreads for order in found[(1,)])):
            continue  # positions lie along the next axis, so this is the batch
        if any(orders and set(place.axes) < set(axes) for axes, orders in found.items()):
            continue  # row by row says more
        if place.axes == (0,) and not _mixes(runs, base, place, candidates):
            continue
        found[place.axes] = _held(runs, base, place, candidates)
    spreading = [order for orders in found.values() for order in orders if order.spreads]
    if spreading:
        return spreading
    tokens = not runs.inputs.tensors[next(iter(places)).tensor].is_floating_point()
    alone = found.get((1,), [])
    return alone if tokens and (0,) not in found else []  # each word for itself, as in a model of the last word alone


def _held(runs: Disturber, base: Sequence[Tensor], place: Place, candidates: list[Order]) -> list[Order]:
    """Returns the candidates that hold at every cut, with their margins."""
    sizes = place.sizes(runs.inputs)
    count = math.prod(sizes)
    distances: dict[Order, list[int]] = {order: [] for order in candidates}
    for cut in cuts_of(sizes):
        other = runs.run(place, cut)
        for order in list(distances):
            first = order.first(base, other)
            if first is None or first < cut + order.size - count:
                del distances[order]
            elif 0 < first < order.size:
                distances[order].append(first - cut)
        if not distances:
            return []
    single = max(0, count // 2 - 1)
    one = runs.run(place, single, single + 1)
    held = []
    for order, found in distances.items():
        if found and (min(found) >= 0 or _begins_later(runs, order, count, found)):
            spreads = order.count(base, one) > 1
            held.append(Order(place, order.output, order.lead, order.axes, order.size, min(found), spreads))
    return held


def _begins_later(runs: Disturber, order: Order, count: int, distances: list[int]) -> bool:
    """Whether a shorter output leaves out the first positions, as that of a WaveNet without padding does.

    Any stack of convolutions without padding gives fewer positions. Only where the model itself lines tensors up at
    their ends (`x[..., -n:]`) does the last output belong to the last input.
    """
    if len(set(distances)) > 1 or len(distances) < 2:
        return False
    with _Crops(count, order.size) as crops:
        runs.run()
    return bool(crops.found)


class _Crops(TorchDispatchMode):
    """Looks for slices that drop the first positions of a sequence.

    Args:
        count: Positions of the input.
        size: Positions of the output.

    Attributes:
        found: Whether there was one.
    """

    def __init__(self, count: int, size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count, self.size, self.found = count, size, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one operation and looks at it."""
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.slice.Tensor and args[0].dim() > 2:
            dim = args[1] if len(args) > 1 else 0
            before, after = args[0].shape[dim], out.shape[dim]
            to_the_end = len(args) < 4 or args[3] is None or args[3] >= before
            self.found |= to_the_end and self.size <= after < before <= self.count
        return out


def _mixes(runs: Disturber, base: Sequence[Tensor], place: Place, candidates: list[Order]) -> bool:
    """Whether an output sees more than one position of a place, earlier or later."""
    if not candidates:
        return False
    other = runs.run(place, 0, 1)
    return any(order.count(base, other) > 1 for order in candidates)


def cuts_of(sizes: tuple[int, ...]) -> list[int]:
    """Returns the positions from which inputs are disturbed, one in the middle first; two of them close to the end."""
    count, row = math.prod(sizes), sizes[-1]
    inside = count // 2 + (row // 2 if len(sizes) > 1 and sizes[0] % 2 == 0 else 0)
    wanted = [inside, count // 2, 1, count // 4, 3 * count // 4, count - 2, count - 1]
    return [cut for cut in dict.fromkeys(wanted) if 0 < cut < count]


def leaks(model: nn.Module, inputs: Inputs, orders: Sequence[Order]) -> list[str]:
    """Says where an output sees a later position than an order allows.

    Args:
        model: After a change; its parameters are moved meanwhile, so that new layers that start at zero show.
        inputs: The inputs for which the orders were found.
        orders: What held before the change.
    """
    if not orders:
        return []
    runs = Disturber(model, inputs)
    with moved(model):
        base = runs.run()
        for place in dict.fromkeys(order.place for order in orders):
            for cut in cuts_of(place.sizes(inputs)):
                other = runs.run(place, cut)
                for order in (order for order in orders if order.place == place):
                    first = order.first(base, other)
                    if first is not None and first < cut + order.margin and first < order.size:
                        return [
                            f"the model is causal, and with this change position {first} of an output would come to "
                            f"depend on position {cut} of the input, which it must not see"
                        ]
    return []
