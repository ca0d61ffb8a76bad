"""Which group of which optimizer a new parameter joins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn import Parameter
from torch.optim import Adagrad, Optimizer

from evolve.errors import NotApplicable
from evolve.surgery.optimizer.membership import belongs, has_rule

Group = dict[str, Any]


def home(
    model: nn.Module,
    name: str,
    parameter: Parameter,
    groups: Sequence[Group],
    before: Mapping[str, Parameter],
    layers_before: Mapping[str, type],
    site: str,
    whose: str,
) -> Group:
    """Returns the group that a new parameter belongs to by its rule, or else the one most of its neighbours are in.

    The first group whose rule (see `membership`) takes the parameter has it; groups with another rule do not.
    Neighbours are what is at the site, then what is around it, and so on outwards. Matrices look at matrices and
    vectors at vectors, as weight decay and optimizers tell them apart; among the nearest, those of the same number of
    axes and in the same type of layer count first (an embedding's table is no example for a linear layer's weight).

    Args:
        model: After the change.
        name: Of the parameter.
        parameter: The new parameter.
        groups: Of all optimizers.
        before: The parameters before the change.
        layers_before: The classes of the layers that they were in, by the same names.
        site: Dotted name of the place of the change.
        whose: What a message calls the optimizers.

    Raises:
        NotApplicable: If no group takes it.
    """
    open_ = [index for index, group in enumerate(groups) if _takes(group, parameter)]
    if not open_:
        raise NotApplicable(
            f"No group of {whose} takes the new parameter '{name}' of shape {tuple(parameter.shape)}: they are for "
            "matrices. Pass all optimizers of the model, as in optimizer=[muon, adamw], or add a group for the rest "
            "where the optimizer knows one."
        )
    if (named := _by_rule(model, name, parameter, groups, open_)) is not None:
        return groups[named]
    open_ = [index for index in open_ if not has_rule(groups[index])] or open_
    held = {id(p): index for index in open_ for p in groups[index]["params"]}
    layer = type(model.get_submodule(name.rpartition(".")[0]))
    for same_side in (True, False):
        for prefix in _outwards(site):
            near = [(n, p) for n, p in before.items() if n.startswith(prefix) and id(p) in held]
            if same_side:
                near = [(n, p) for n, p in near if (p.dim() > 1) == (parameter.dim() > 1)]
            near = [(n, p) for n, p in near if p.dim() == parameter.dim()] or near
            near = [(n, p) for n, p in near if layers_before.get(n) is layer] or near
            if near:
                return groups[Counter(held[id(p)] for _, p in near).most_common(1)[0][0]]
    return groups[open_[0]]


def _by_rule(
    model: nn.Module, name: str, parameter: Parameter, groups: Sequence[Group], open_: Sequence[int]
) -> int | None:
    """Returns the first group whose rule takes a parameter; None where there is none."""
    ruled = (index for index in open_ if has_rule(groups[index]))
    return next((index for index in ruled if belongs(groups[index], model, name, parameter)), None)


def _outwards(site: str) -> Iterator[str]:
    """Returns prefixes of names at the site, around it, and so on to the whole model."""
    name = site.rpartition(".")[0] if ":" in site else site
    while name and name != "*":
        yield f"{name}."
        name = name.rpartition(".")[0]
    yield ""


def _takes(group: Mapping[str, Any], parameter: Parameter) -> bool:
    """Whether a group can step a parameter of this rank.

    Muon (Jordan et al. 2024) makes steps orthogonal by `ns_steps` of an iteration that only knows matrices, and raises
    for anything else; optimizers that hold the rest as well tell the two by a flag `use_muon`, or by the rank.
    """
    orthogonal = group.get("use_muon", "ns_steps" in group)
    ranks = {held.dim() for held in group["params"]} | {2}
    return not orthogonal or parameter.dim() in ranks or min(ranks) < 2


def join(optimizer: Optimizer, group: Group, parameter: Parameter, name: str, layers: Sequence[Optimizer]) -> None:
    """Adds a parameter to a group by way of the optimizer's own `add_param_group`.

    So an optimizer that does something for new parameters (Lookahead takes a first copy) does it; a group of their own
    would bring learning rate schedules, which know as many groups as there were, out of step.

    Args:
        optimizer: As the user holds it.
        group: That it is to be in.
        parameter: The new parameter.
        name: Its name.
        layers: The optimizer and those inside it.
    """
    counts = [(layer, len(layer.param_groups)) for layer in layers]
    options = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    added = {**options, "params": [(name, parameter)] if "param_names" in group else [parameter]}
    optimizer.add_param_group(added)
    for layer, count in counts:
        del layer.param_groups[count:]
    if all(parameter is not held for held in group["params"]):
        group["params"].append(parameter)
        if "param_names" in group:
            group["param_names"].append(name)
    for layer in layers:
        begin(layer, parameter, group)


def begin(layer: Optimizer, parameter: Parameter, group: Mapping[str, Any]) -> None:
    """Gives a parameter the state before its first step: none, but for Adagrad, which wants it made beforehand."""
    if isinstance(layer, Adagrad):
        alone = Adagrad([parameter], **{option: group[option] for option in layer.defaults if option in group})
        layer.state[parameter] = alone.state[parameter]
