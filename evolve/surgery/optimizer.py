"""Keeps an optimizer right while the parameters under it change.

Old parameters keep group and state; replaced or resized ones have their state carried along; new ones join the group
of their neighbours. This is the only place where optimizer state is touched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Adagrad, Optimizer

from evolve.errors import NotApplicable
from evolve.structure.isolation import copied
from evolve.structure.tracing.tape import Shape
from evolve.surgery.resize import Cut, recut_state


class OptimizerState:
    """Everything an optimizer holds, to be put back bit for bit; dicts and lists keep their identity.

    Args:
        optimizer: The optimizer to remember.
        device: Where to keep the copies; None for where the tensors are.
    """

    def __init__(self, optimizer: Optimizer, device: torch.device | None = None) -> None:
        self._optimizer = optimizer
        self._groups = [(group, [(k, v, _clone(v)) for k, v in group.items()]) for group in optimizer.param_groups]
        self._states = [
            (parameter, state, [(key, value, _clone(value, device)) for key, value in state.items()])
            for parameter, state in optimizer.state.items()
        ]
        self._lists = [(group["params"], list(group["params"])) for group in optimizer.param_groups]

    def restore(self) -> None:
        """Puts groups and state back."""
        self._optimizer.param_groups[:] = [group for group, _ in self._groups]
        for group, items in self._groups:
            group.clear()
            group.update(_restored(items))
        for (group, _), (params, content) in zip(self._groups, self._lists, strict=True):
            params[:] = content
            group["params"] = params
        self._optimizer.state.clear()
        for parameter, state, items in self._states:
            state.clear()
            state.update(_restored(items))
            self._optimizer.state[parameter] = state


def _restored(items: Iterable[tuple[str, Any, Any]]) -> dict[str, Any]:
    """Returns values by key as they were when they were copied; tensors are the ones they were."""
    return {k: value.copy_(copy) if isinstance(value, Tensor) else copy for k, value, copy in items}


def _clone(value: Any, device: torch.device | None = None) -> Any:
    if isinstance(value, Tensor):
        return copied(value, device)
    return value.copy() if isinstance(value, (list, dict)) else value


class ParameterTable:
    """The parameters of a model by name, with their shapes, as they were before a change."""

    def __init__(self, model: nn.Module) -> None:
        self.by_name = dict(model.named_parameters(remove_duplicate=False))
        self.shapes = {id(parameter): tuple(parameter.shape) for parameter in self.by_name.values()}

    def __contains__(self, parameter: Parameter) -> bool:
        return id(parameter) in self.shapes


def reconcile(
    model: nn.Module, optimizer: Optimizer, before: ParameterTable, site: str, cuts: Sequence[Cut] = ()
) -> None:
    """Brings the optimizer in line with the model after a change.

    Moments of a parameter that was cut follow the cuts; those of one that was replaced under its name or resized in
    another way are carried over the axes' common range. What was added starts at zero, as a fresh optimizer would start
    it.

    Args:
        model: After the change.
        optimizer: Still as before the change.
        before: The parameters before the change.
        site: Dotted name of the place of the change: new parameters join the group that most of its parameters are in.
        cuts: How axes were made anew.

    Raises:
        NotApplicable: If the optimizer's state cannot follow (flattened or factored over other shapes), or if it takes
            matrices alone and others were added.
    """
    after = dict(model.named_parameters(remove_duplicate=False))
    living = {id(parameter) for parameter in after.values()}
    if isinstance(optimizer, torch.optim.LBFGS) and any(p not in before for p in after.values()):
        raise NotApplicable("LBFGS keeps one flattened history of all parameters, which cannot follow new ones.")
    own: dict[str, list[Cut]] = {}
    for cut in cuts:
        own.setdefault(cut.name, []).append(cut)
    followed: set[int] = set()
    for name, its_cuts in own.items():
        parameter = after.get(name)
        if parameter is not None and id(parameter) not in followed:
            followed.add(id(parameter))
            _cut_state(optimizer, parameter, before.shapes[id(parameter)], its_cuts)
    for name, parameter in after.items():
        old = before.by_name.get(name)
        if old is None or id(parameter) in followed:
            continue
        if id(old) not in living and parameter not in before:
            _replace(optimizer, old, parameter, before.shapes[id(old)])
        elif old is parameter and tuple(parameter.shape) != before.shapes[id(old)]:
            _resize_state(optimizer, parameter, before.shapes[id(old)], name)
    _drop(optimizer, [old for old in before.by_name.values() if id(old) not in living])
    _adopt(after, optimizer, before, site)


def forget(optimizer: Optimizer, parameters: Iterable[Parameter]) -> None:
    """Lets the state of parameters begin anew, as a new optimizer would begin it."""
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    for parameter in parameters:
        optimizer.state.pop(parameter, None)
        if id(parameter) in groups:
            _unstepped(optimizer, parameter, groups[id(parameter)])


def _unstepped(optimizer: Optimizer, parameter: Parameter, group: Mapping[str, Any]) -> None:
    """Gives a parameter the state before its first step: none, but for Adagrad, which wants it made beforehand."""
    if isinstance(optimizer, Adagrad):
        alone = Adagrad([parameter], **{option: group[option] for option in optimizer.defaults})
        optimizer.state[parameter] = alone.state[parameter]


# How an optimizer's tensors scale with the gradient, by their names in torch.optim; others are carried as they are.
_POWERS = {"momentum_buffer": 1, "exp_avg": 1, "exp_inf": 1, "grad_avg": 1, "prev": 1}
_POWERS |= {"exp_avg_sq": 2, "max_exp_avg_sq": 2, "square_avg": 2, "sum": 2}


def _cut_state(optimizer: Optimizer, parameter: Parameter, old_shape: Shape, cuts: Sequence[Cut]) -> None:
    state = optimizer.state.get(parameter, {})
    for key, value in state.items():
        if isinstance(value, Tensor) and value.dim() > 0 and (value.numel() > 1 or tuple(value.shape) == old_shape):
            _refuse_factored(key, value, old_shape, cuts[0].name)
            power = _POWERS.get(key, 0)
            if key == "momentum_buffer" and "square_avg" in state:  # RMSprop: of steps, which are normalised already
                power = 0
            level = key == "step_size"  # Rprop cannot grow a step of zero
            dense = value.to_dense() if value.is_sparse else value  # as of an embedding with sparse gradients
            cut = recut_state(dense, cuts, power, level=level)
            state[key] = cut.to_sparse(value.sparse_dim()) if value.is_sparse else cut


def _refuse_factored(key: str, value: Tensor, old_shape: Shape, name: str) -> None:
    if tuple(value.shape) != old_shape:
        raise NotApplicable(
            f"The optimizer's '{key}' of {name} has the shape {tuple(value.shape)}, the parameter had {old_shape}: "
            "factored state cannot follow a change of shape. Use an optimizer with state of the parameter's shape."
        )


def _replace(optimizer: Optimizer, old: Parameter, new: Parameter, old_shape: Shape) -> None:
    for group in optimizer.param_groups:
        for position, parameter in enumerate(group["params"]):
            if parameter is old:
                if new.requires_grad:
                    group["params"][position] = new
                    if old in optimizer.state:
                        optimizer.state[new] = optimizer.state.pop(old)
                        _resize_state(optimizer, new, old_shape, "the replaced parameter")
                return


def _resize_state(optimizer: Optimizer, parameter: Parameter, old_shape: Shape, name: str) -> None:
    state = optimizer.state.get(parameter)
    shape = tuple(parameter.shape)
    if not state or shape == old_shape:
        return
    for key, value in state.items():
        if not isinstance(value, Tensor) or value.dim() == 0:
            continue
        if value.numel() == 1 and tuple(value.shape) != old_shape:  # a count of steps
            continue
        _refuse_factored(key, value, old_shape if len(shape) == len(old_shape) else (), name)
        carried = value.new_zeros(shape)
        common = tuple(slice(min(a, b)) for a, b in zip(shape, old_shape, strict=True))
        carried[common] = value[common]
        state[key] = carried


def _drop(optimizer: Optimizer, gone: Iterable[Parameter]) -> None:
    ids = {id(parameter) for parameter in gone}
    for group in optimizer.param_groups:
        kept = [index for index, parameter in enumerate(group["params"]) if id(parameter) not in ids]
        if len(kept) < len(group["params"]):
            if "param_names" in group:
                group["param_names"][:] = [group["param_names"][index] for index in kept]
            group["params"][:] = [group["params"][index] for index in kept]
    for parameter in [parameter for parameter in optimizer.state if id(parameter) in ids]:
        del optimizer.state[parameter]


def _adopt(parameters: Mapping[str, Parameter], optimizer: Optimizer, before: ParameterTable, site: str) -> None:
    """New trainable parameters join the group that most of their neighbours of the same kind are in.

    Raises:
        NotApplicable: If no group takes one of them.
    """
    held = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    parent = site.rpartition(".")[0] if ":" in site else site
    prefix = f"{parent}." if parent else ""

    def home(name: str, parameter: Parameter) -> dict[str, Any]:
        open_ = [index for index, group in enumerate(optimizer.param_groups) if _takes(group, parameter)]
        if not open_:
            raise NotApplicable(
                f"No group of this {type(optimizer).__name__} takes the new parameter '{name}' of shape "
                f"{tuple(parameter.shape)}: they are for matrices. Add a group for the rest where the optimizer knows "
                "one, or pass the optimizer that steps the model's vectors."
            )
        for neighbours in (
            [p for n, p in before.by_name.items() if n.startswith(prefix)],
            list(before.by_name.values()),
        ):
            for same_kind in (True, False):  # weights apart from biases and norms: weight decay often tells them apart
                votes = Counter(
                    index
                    for index in open_
                    for p in neighbours
                    if held.get(id(p)) is optimizer.param_groups[index]
                    and (not same_kind or (p.dim() > 1) == (parameter.dim() > 1))
                )
                if votes:
                    return optimizer.param_groups[votes.most_common(1)[0][0]]
        return optimizer.param_groups[open_[0]]

    for name, parameter in parameters.items():
        if parameter.requires_grad and parameter not in before and id(parameter) not in held:
            group = home(name, parameter)
            held[id(parameter)] = group  # a tied one comes again under another name
            group["params"].append(parameter)
            _unstepped(optimizer, parameter, group)
            if "param_names" in group:
                group["param_names"].append(name)


def _takes(group: Mapping[str, Any], parameter: Parameter) -> bool:
    """Whether a group can step a parameter of this rank.

    Muon (Jordan et al. 2024) makes steps orthogonal by `ns_steps` of an iteration that only knows matrices, and raises
    for anything else; optimizers that hold the rest as well tell the two by a flag `use_muon`.
    """
    orthogonal = group.get("use_muon", "ns_steps" in group)
    return not orthogonal or parameter.dim() in {held.dim() for held in group["params"]} | {2}


def left_behind(optimizer: Optimizer, before: ParameterTable, held_before: set[int]) -> str:
    """Says which trainable parameters changed shape that this optimizer never held: another one may hold their state.

    Args:
        optimizer: After the change.
        before: The parameters before the change.
        held_before: Ids of the parameters that the optimizer held before.

    Returns:
        A sentence, "" where there are none.
    """
    changed = {
        id(parameter): f"'{name}'"
        for name, parameter in before.by_name.items()
        if parameter.requires_grad
        and id(parameter) not in held_before
        and tuple(parameter.shape) != before.shapes[id(parameter)]
    }
    if not changed:
        return ""
    names = ", ".join(list(changed.values())[:3]) + (", ..." if len(changed) > 3 else "")
    return (
        f"{len(changed)} parameters that changed are not in this {type(optimizer).__name__} ({names}): if another "
        "optimizer steps them, give it new state for them."
    )


def optimizer_faults(
    model: nn.Module, optimizer: Optimizer, before: ParameterTable, held_before: set[int]
) -> list[str]:
    """Says what is wrong between a model and its optimizer: missing, doubled or stale parameters.

    Args:
        model: After the change.
        optimizer: After the change.
        before: The parameters before the change.
        held_before: Ids of the parameters that the optimizer held before: what it left out then, it may leave out now.
    """
    counts = Counter(id(parameter) for group in optimizer.param_groups for parameter in group["params"])
    faults = []
    after = dict(model.named_parameters())
    for name, parameter in after.items():
        count = counts.get(id(parameter), 0)
        left_out = parameter in before and id(parameter) not in held_before
        if count > 1 or (count == 0 and parameter.requires_grad and not left_out):
            faults.append(f"'{name}' is in the optimizer {count} times instead of once")
        if parameter in before and tuple(parameter.shape) != before.shapes[id(parameter)]:
            state = optimizer.state.get(parameter, {})
            unfit = [key for key in _POWERS if key in state and state[key].shape != parameter.shape]
            faults += [f"the optimizer's '{key}' of '{name}' has not the shape of the parameter" for key in unfit]
    living = {id(parameter) for parameter in after.values()}
    stale = [
        id(p) for p in before.by_name.values() if id(p) not in living and (id(p) in counts or p in optimizer.state)
    ]
    if stale:
        faults.append(f"the optimizer still holds {len(set(stale))} parameters that the model no longer has")
    return faults
