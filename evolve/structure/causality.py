"""Which axes of a model's inputs have an order that its outputs heed: no earlier output sees a later position.

Language models, causal convolutions (TCN, WaveNet), autoregressive image models (PixelCNN) and recurrent networks have
such an axis. No module says so, hence it is measured: inputs are disturbed from one position on, and the first output
position that changes tells. Parameters are moved off their values meanwhile, since a
layer that starts at zero hides what depends on it.

A model that returns a loss, or the logits of all positions in one axis, has no axis of positions in its outputs. Then
the last tensor inside the model that has one is watched instead.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from evolve.structure.crops import Crops
from evolve.structure.disturbance import Disturber, Place, cuts_of, moved, outputs_inside
from evolve.structure.fingerprint import fingerprint
from evolve.structure.inputs import Inputs
from evolve.structure.orders import Order
from evolve.structure.outputs import output_tensors
from evolve.structure.probe import Probe

logger = logging.getLogger(__name__)

_IMAGE = 4  # axes of (N, C, H, W)


def orders_of(model: nn.Module, seen: Probe) -> tuple[Order, ...]:
    """Returns the orders that the model's outputs heed; found anew only where the model or the inputs changed.

    Costs a few forward passes.
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
    numbers = _readable(inputs)
    asked = any(_candidates(inputs, number, outputs) for number in numbers)
    if not numbers or (not asked and _answers_whole_images(inputs, outputs)):
        return ()
    key = fingerprint(model, inputs)
    known = _MEMO.get(model)
    if known is None or known[0] != key:
        known = key, _find(model, inputs, outputs)
        _MEMO[model] = known
    return known[1]


def _find(model: nn.Module, inputs: Inputs, outputs: Sequence[Tensor]) -> tuple[Order, ...]:
    with moved(model):
        try:
            return tuple(_measured(model, inputs, outputs))
        except Exception as error:  # whatever a user's forward raises on other values
            failed = error
    logger.warning(
        "Whether the outputs of a %s depend on later positions could not be tried: it does not run on other "
        "values (%s: %s). Check it yourself if the model is causal.",
        type(model).__name__,
        type(failed).__name__,
        failed,
    )
    return ()


def _measured(model: nn.Module, inputs: Inputs, outputs: Sequence[Tensor]) -> list[Order]:
    candidates = [_candidates(inputs, number, outputs) for number in _readable(inputs)]
    if any(candidates):
        found = _tried(Disturber(model, inputs), candidates)
        if found or any(_tells(order, outputs) for places in candidates for some in places.values() for order in some):
            return found
    if _answers_whole_images(inputs, outputs):
        return []
    for name, tensor in reversed(outputs_inside(model, inputs).items()):
        inner = [_candidates(inputs, number, [tensor]) for number in _readable(inputs)]
        single = tensor.dim() > 2 and tensor.shape[1] == 1  # the logits of the last position alone
        if any(inner) and not (single and any(is_sequence(inputs.tensors[number]) for number in _readable(inputs))):
            found = _tried(Disturber(model, inputs, name), inner)
            return [replace(order, module=name) for order in found if order.spreads]
    return []


def _answers_whole_images(inputs: Inputs, outputs: Sequence[Tensor]) -> bool:
    """Whether the model says one thing of each image or vector, as a classifier does: it is not looked into."""
    sequences = any(is_sequence(inputs.tensors[number]) for number in _readable(inputs))
    batch = inputs.batch_size
    return not sequences and all(output.dim() in (1, 2) and output.shape[0] == batch for output in outputs)


def _tells(order: Order, outputs: Sequence[Tensor]) -> bool:
    """Whether an output has an axis of several positions beside those of the batch and the channels."""
    output = outputs[order.output]
    return order.place.axes != (0,) and output.dim() > 2 and (output.dim() > 3 or output.shape[1] > 1)


def _tried(runs: Disturber, candidates: list[dict[Place, list[Order]]]) -> list[Order]:
    """Tries the places of each input; one that the model takes no other values of, such as boxes, is passed over."""
    base, found, failed = runs.run(), [], []
    asked = [places for places in candidates if places]
    for places in asked:
        try:
            found += _heeded_somehow(runs, base, places)
        except Exception as error:  # whatever a user's forward raises on other values
            logger.debug("%s does not run on other values of an input: %s", type(runs.model).__name__, error)
            failed.append(error)
    if failed and len(failed) == len(asked):
        raise failed[0]
    return found


def _heeded_somehow(runs: Disturber, base: Sequence[Tensor], places: dict[Place, list[Order]]) -> list[Order]:
    """Tries other values, then the input's own in another order, for a model that checks their range."""
    try:
        return _heeded(runs, base, places)
    except Exception as error:  # whatever a user's forward raises on other values
        logger.debug("%s does not run on other values: %s", type(runs.model).__name__, error)
    own = {replace(place, own=True): orders for place, orders in places.items()}
    return _heeded(runs, base, {place: [replace(order, place=place) for order in own[place]] for place in own})


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
    places = [Place(number, place) for place in axes]
    found = {place: _like(inputs, place, outputs) for place in places}
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
                inner = len(shape) > 2 and size > 1 and axis > 0 and place.axes != (0,)
                if size == count or (inner and sequence):
                    found.append(Order(place, number, made_of, (axis,), size))
                if inner and size < count and count % size == 0 and len(sizes) == 1:
                    found.append(Order(place, number, made_of, (axis,), size, stride=count // size))
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
            if first is None or first < _earliest(order, cut, count):
                del distances[order]
            elif 0 < first < order.size:
                distances[order].append(first * order.stride - cut)
        if not distances:
            return []
    single = max(0, count // 2 - 1)
    strided = any(order.stride > 1 for order in distances)
    ones = [runs.run(place, at, at + 1) for at in ((0, single, single + 1) if strided else (single,))]
    held = []
    for order, found in distances.items():
        reach = max(order.count(base, one) for one in (ones if order.stride > 1 else ones[-2:][:1]))
        if order.stride > 1:
            margin = 0 if found and min(found) >= 0 else 1 - order.stride
            # A window that reaches as far ahead as behind, and not beyond its patch, touches two outputs at most.
            if found and reach > (1 if margin == 0 else 2):
                held.append(replace(order, margin=margin, spreads=True))
        elif found and (min(found) >= 0 or _begins_later(runs, order, count, found)):
            held.append(replace(order, margin=min(found), spreads=reach > 1))
    return held


def _earliest(order: Order, cut: int, count: int) -> int:
    """Returns the first position that may change in a causal model: one of a patch sees all of it."""
    return cut // order.stride if order.stride > 1 else cut + order.size - count


def _begins_later(runs: Disturber, order: Order, count: int, distances: list[int]) -> bool:
    """Whether a shorter output leaves out the first positions, as that of a WaveNet without padding does.

    Any stack of convolutions without padding gives fewer positions. Only where the model itself lines tensors up at
    their ends (`x[..., -n:]`) does the last output belong to the last input.
    """
    if len(set(distances)) > 1 or len(distances) < 2:
        return False
    with Crops(count, order.size) as crops:
        runs.run()
    return bool(crops.found)


def _mixes(runs: Disturber, base: Sequence[Tensor], place: Place, candidates: list[Order]) -> bool:
    """Whether an output sees more than one position of a place, earlier or later."""
    if not candidates:
        return False
    other = runs.run(place, 0, 1)
    return any(order.count(base, other) > 1 for order in candidates)


def leaks(model: nn.Module, inputs: Inputs, orders: Sequence[Order]) -> list[str]:
    """Says where an output sees a later position than an order allows.

    Args:
        model: After a change; its parameters are moved meanwhile, so that new layers that start at zero show.
        inputs: The inputs for which the orders were found.
        orders: What held before the change.
    """
    if not orders:
        return []
    runs = Disturber(model, inputs, orders[0].module)
    with moved(model):
        base = runs.run()
        for place in dict.fromkeys(order.place for order in orders):
            for cut in cuts_of(place.sizes(inputs)):
                other = runs.run(place, cut)
                for order in (order for order in orders if order.place == place):
                    first = order.first(base, other)
                    if first is not None and first < order.bound(cut) and first < order.size:
                        return [
                            f"the model is causal, and with this change position {first} of an output would come to "
                            f"depend on position {cut} of the input, which it must not see"
                        ]
    return []
