"""GradMax (Evci et al. 2022): what new units should make, so that the gradient of those who read them is largest.

A new unit that nobody reads yet keeps the function and gets its first gradient through its readers. That gradient is a
linear function of the unit's input weights where the activation f has f(a) - f(-a) proportional to a (ReLU and its kin,
GELU, SiLU, every linear stretch): the best input weights are then its largest singular vectors. Instead of a formula
for each kind of layer, the gradient is taken from the model itself, with candidate units of both signs put in.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from evolve.errors import NotApplicable, NotYetApplicable
from evolve.operators.regroup import Regrouping, Remake, regroup, regroup_plan
from evolve.operators.slots import SlotIndex, SlotPositions
from evolve.structure.analysis import Analysis
from evolve.structure.axes.groups import Group
from evolve.structure.probe import Probe, loss_gradients
from evolve.surgery.layout import members

_CANDIDATES = 64  # directions tried at a time, where the units have more inputs than that

Directions = dict[tuple[str, int], Tensor]


def steepest(model: nn.Module, analysis: Analysis, group: Group, seen: Probe, count: int) -> Directions:
    """Returns input weights for new units of a group.

    Args:
        model: It is left as it was; the candidates are tried on a copy.
        analysis: Its structure.
        group: The group that grows.
        seen: Holds the probe batch and the loss.
        count: How many units.

    Returns:
        For each weight that makes the group, by name and axis, the values of the new part.

    Raises:
        NotApplicable: If no loss is known, or no weight matrix makes the group.
    """
    gradients = loss_gradients(model, seen)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    makers = [p for p in SlotIndex(analysis).of(group) if not p.reads and p.name in parameters]
    makers = [place for place in makers if parameters[place.name].dim() > 1]
    if not makers:
        raise NotApplicable(f"init: gradmax needs weights that make '{group.name}'; there are only vectors.")
    weights = torch.cat([_rows(parameters[place.name], place) for place in makers], dim=1)
    slopes = torch.cat([_rows(gradients.get(p.name, torch.zeros_like(parameters[p.name])), p) for p in makers], dim=1)
    norm = float(weights.norm(dim=1).mean())
    tried = _orthonormal(slopes, max(count, _CANDIDATES))

    def answers(units: Tensor) -> Tensor:
        """Gradients of the readers of units with these input weights, (units, values)."""
        directions = _split(units, makers, parameters, group.size)
        return _reader_gradients(model, analysis, group, seen, len(units), directions)

    linear = answers(tried * norm) - answers(-tried * norm)
    left = torch.linalg.svd(linear, full_matrices=False).U
    best = left.T @ tried
    if len(best) < count:  # fewer directions than units: the strongest ones once more, a little turned
        again = best[torch.arange(count - len(best)) % len(best)]
        best = torch.cat([best, nn.functional.normalize(again + 0.1 * torch.randn_like(again) / again.shape[1] ** 0.5)])
    best = best[:count] * norm
    flipped = answers(-best).norm(dim=1) > answers(best).norm(dim=1)
    best = torch.where(flipped[:, None], -best, best)
    return _split(best, makers, parameters, group.size)


def _orthonormal(slopes: Tensor, most: int) -> Tensor:
    """Returns orthonormal rows: the main directions of the present units' gradients first, random ones after."""
    inputs = slopes.shape[1]
    most = min(most, inputs)
    main = torch.linalg.svd(slopes, full_matrices=False).Vh[: most // 2]
    rows = torch.cat([main, torch.randn(most, inputs, dtype=slopes.dtype)])
    basis: Tensor = torch.linalg.qr(rows.T).Q
    return basis.T[:most]


def _reader_gradients(
    model: nn.Module, analysis: Analysis, group: Group, seen: Probe, count: int, directions: Directions
) -> Tensor:
    """Puts new units into a copy of the model, unread, and returns the gradients of their readers, (units, values)."""
    plan = regroup_plan(model, analysis, [Regrouping(group, [Remake([*range(group.size), *[-1] * count])])])
    candidate = _copied(model)

    def fill(name: str, axis: int, reads: bool, old: Tensor, shape: tuple[int, ...]) -> Tensor:
        if (name, axis) in directions:
            return directions[name, axis]
        vector = not reads and old.is_floating_point() and old.dim() < 2
        return old.mean().expand(shape) if vector else old.new_zeros(shape)

    regroup(candidate, plan, fill)
    gradients = loss_gradients(candidate, seen)
    found = []
    for place in plan["places"]:
        gradient = gradients.get(place["name"])
        if place["reads"] and gradient is not None:
            index = members(place["layout"], group.name, {group.name: group.size + count})[group.size :]
            found.append(_rows(gradient, SlotPositions(place["name"], place["axis"], index, reads=True)))
    if not found:
        raise NotYetApplicable(f"init: gradmax finds no gradient where '{group.name}' is read.")
    return torch.cat(found, dim=1)


def _copied(model: nn.Module) -> nn.Module:
    """Returns a copy; weights that hooks compute (weight norm, pruning) are plain values in it until they run again."""
    kept = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in kept if not value.is_leaf})


def _rows(tensor: Tensor, place: SlotPositions) -> Tensor:
    """Returns the values of each member, (members, values), in float64 on the CPU."""
    rows = tensor.detach().movedim(place.axis, 0).double().cpu()
    return rows[place.index].flatten(1)


def _split(units: Tensor, makers: list[SlotPositions], parameters: dict[str, Tensor], size: int) -> Directions:
    """Lays the rows of new units out as the new parts of the weights that make them."""
    found: Directions = {}
    start = 0
    for place in makers:
        weight = parameters[place.name].movedim(place.axis, 0)
        each = place.index.shape[1]
        width = each * weight[0].numel()
        values = units[:, start : start + width].view(len(units), each, *weight.shape[1:])
        start += width
        inner = _inner(place, size)
        # New positions come block by block: within a block the members one after the other.
        values = values.view(len(units), each // inner, inner, *weight.shape[1:]).transpose(0, 1)
        part = values.reshape(-1, *weight.shape[1:]).movedim(0, place.axis)
        found[place.name, place.axis] = part.to(parameters[place.name])
    return found


def _inner(place: SlotPositions, size: int) -> int:
    """Returns how many positions of a member lie side by side in a block."""
    if size == 1:
        return place.index.shape[1]
    return int(place.index[1, 0] - place.index[0, 0])
