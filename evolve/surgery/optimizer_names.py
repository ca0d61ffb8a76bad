"""Groups and state of optimizers by parameter name, so that they find their way in another process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from evolve.errors import CheckpointError
from evolve.surgery.optimizer.layers import Optimizers, as_optimizers, is_optimizer, layers
from evolve.surgery.optimizer.places import Places

_PLAIN = (bool, int, float, str, type(None))


def optimizer_by_name(model: nn.Module, optimizer: Optimizers) -> dict[str, Any]:
    """Returns what optimizers hold, with names in the place of parameters; tensors are not copied.

    Args:
        model: That the parameters belong to, as a whole: the optimizer may hold no others.
        optimizer: One optimizer or a sequence of several.

    Returns:
        For one `{"class": name, "groups": [{..., "params": names}], "state": {name: {...}}, "other": {...},
        "attributes": {...}, "kept": {...}, "inside": [...]}`, where "other" is state under keys that are no
        parameters, "kept" what lists and tables outside the state hold, and "inside" the same for optimizers within
        it; for several `{"optimizers": [...]}`. All of it can be written by `torch.save` and read with
        `weights_only=True`, if the optimizers' own state can.

    Raises:
        CheckpointError: If the optimizer holds parameters that the model does not have.
    """
    if not is_optimizer(optimizer):
        return {"optimizers": [optimizer_by_name(model, one) for one in as_optimizers(optimizer)]}
    (one,) = as_optimizers(optimizer)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    outer, *inside = layers(one)
    saved = _layer_by_name(model, outer, names, set(), set())
    known_groups, known_states = {id(group) for group in outer.param_groups}, {id(outer.state)}
    saved["inside"] = [_layer_by_name(model, layer, names, known_groups, known_states) for layer in inside]
    return saved


def _layer_by_name(
    model: nn.Module, layer: Optimizer, names: Mapping[int, str], known_groups: set[int], known_states: set[int]
) -> dict[str, Any]:
    groups = [group for group in layer.param_groups if id(group) not in known_groups]
    strangers = [p for group in groups for p in group["params"] if id(p) not in names]
    if strangers:
        raise CheckpointError(
            f"The optimizer holds {len(strangers)} parameters that the model does not have (first shape "
            f"{tuple(strangers[0].shape)}). Build it over the parameters of this model alone."
        )
    state = {} if id(layer.state) in known_states else dict(layer.state)
    kept: dict[str, dict[str, Any]] = {}
    for entry in Places(layer, {}, dict(model.named_parameters())).owned:
        if entry.layer is None and id(entry.owner) in names:
            kept.setdefault(".".join(entry.path), {})[names[id(entry.owner)]] = entry.value
    return {
        "class": type(layer).__name__,
        "groups": [{**group, "params": [names[id(p)] for p in group["params"]]} for group in groups],
        "state": {names[id(p)]: dict(values) for p, values in state.items() if isinstance(p, Tensor)},
        "other": {key: value for key, value in state.items() if not isinstance(key, Tensor)},
        "attributes": {key: value for key, value in vars(layer).items() if type(value) in _PLAIN},
        "kept": kept,
    }


def load_optimizer_by_name(model: nn.Module, optimizer: Optimizers, saved: Mapping[str, Any]) -> None:
    """Gives optimizers the groups and the state that `optimizer_by_name` returned.

    Args:
        model: With the parameters' names as they were; their order does not matter.
        optimizer: Built as it was when it was saved; it may have been carried through other mutations since.
        saved: From `optimizer_by_name`.

    Raises:
        CheckpointError: If number or class of optimizers, groups or parameters do not fit. Nothing is changed then.
    """
    parameters = dict(model.named_parameters())
    parts = []
    for layers_and_parts in check_optimizers(optimizer, saved):
        known: set[int] = set()
        for layer, part in layers_and_parts:
            groups = [group for group in layer.param_groups if id(group) not in known]
            known |= {id(group) for group in groups}
            _check(groups, part, parameters)
            parts.append((layer, part, groups))
    for layer, part, groups in parts:
        _load_layer(layer, part, groups, parameters)


def check_optimizers(
    optimizer: Optimizers, saved: Mapping[str, Any]
) -> list[list[tuple[Optimizer, Mapping[str, Any]]]]:
    """Checks that optimizers are as many and of the same classes as those that were saved, with all inside them.

    Args:
        optimizer: One optimizer or a sequence of several.
        saved: From `optimizer_by_name`.

    Returns:
        For each optimizer its layers, from the outside in, with what was saved of them.

    Raises:
        CheckpointError: If they are not.
    """
    optimizers = as_optimizers(optimizer)
    each: Sequence[Mapping[str, Any]] = saved.get("optimizers", [saved])
    if len(each) != len(optimizers):
        raise CheckpointError(
            f"The checkpoint has {len(each)} optimizers, {len(optimizers)} were passed. Pass them as in the run that "
            "was saved, in the same order."
        )
    pairs = []
    for one, its in zip(optimizers, each, strict=True):
        found, parts = layers(one), [its, *its.get("inside", [])]
        if len(found) != len(parts):
            raise CheckpointError(
                f"The checkpoint's optimizer holds {len(parts) - 1} others inside, {type(one).__name__} holds "
                f"{len(found) - 1}. Build it as in the run that was saved."
            )
        for layer, part in zip(found, parts, strict=True):
            if part["class"] != type(layer).__name__:
                raise CheckpointError(
                    f"The checkpoint has optimizer {part['class']}, this one has {type(layer).__name__}. Build it of "
                    "the same class, with the same parameter groups, as in the run that was saved; pass several in the "
                    "same order."
                )
        pairs.append(list(zip(found, parts, strict=True)))
    return pairs


def check_held(
    model: nn.Module, optimizer: Optimizers, saved: Mapping[str, Any], base: Mapping[str, Parameter]
) -> None:
    """Checks that optimizers, carried through the mutations, hold the base model's parameters as those saved did.

    Parameters that a mutation added are left out: who steps them may have been settled by hand.

    Args:
        model: After the mutations.
        optimizer: One optimizer or a sequence of several.
        saved: From `optimizer_by_name`.
        base: The parameters, by name, from before the mutations.

    Raises:
        CheckpointError: If one holds more, fewer or others.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    old = set(base) | {names.get(id(parameter), "") for parameter in base.values()}
    for pairs in check_optimizers(optimizer, saved):
        held = old & {
            names.get(id(p), "") for layer, _ in pairs for group in layer.param_groups for p in group["params"]
        }
        known = old & {name for _, part in pairs for group in part["groups"] for name in group["params"]}
        if held != known:
            what, names_of = ("does not hold", known - held) if known - held else ("also holds", held - known)
            raise CheckpointError(
                f"The checkpoint's {pairs[0][1]['class']} held {len(known)} parameters of the base model, the one that "
                f"was passed has {len(held)}: it {what} '{min(names_of)}'. Build it over the same parameters as in "
                "the run that was saved; pass several in the same order."
            )


def _check(groups: Sequence[Mapping[str, Any]], part: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> None:
    if len(part["groups"]) != len(groups):
        raise CheckpointError(
            f"The checkpoint has {len(part['groups'])} parameter groups, the optimizer {len(groups)}. "
            "Build it as in the run that was saved."
        )
    named = [*(name for group in part["groups"] for name in group["params"]), *part["state"]]
    missing = [name for name in named if name not in parameters]
    if missing:
        raise CheckpointError(f"The checkpoint's optimizer knows '{missing[0]}', which the model does not have.")


def _load_layer(
    layer: Optimizer, part: Mapping[str, Any], groups: Sequence[dict[str, Any]], parameters: Mapping[str, Parameter]
) -> None:
    places = Places(layer, {}, parameters)
    for group, values in zip(groups, part["groups"], strict=True):
        group["params"][:] = [parameters[name] for name in values["params"]]
        group.update({key: value for key, value in values.items() if key != "params"})
    places.complete(lambda path: True)
    if part["state"] or part.get("other") or groups:
        layer.state.clear()
    for name, state in part["state"].items():
        layer.state[parameters[name]] = _placed(state, parameters[name].device)
    for key, value in part.get("other", {}).items():
        layer.state[key] = value
    for key, value in part.get("attributes", {}).items():
        if key in vars(layer) and type(vars(layer)[key]) in _PLAIN:
            setattr(layer, key, value)
    for path, values in part.get("kept", {}).items():
        _load_kept(layer, places, path, {parameters[name]: value for name, value in values.items()}, parameters)


def _load_kept(
    layer: Optimizer,
    places: Places,
    path: str,
    values: Mapping[Parameter, Any],
    parameters: Mapping[str, Parameter],
) -> None:
    """Puts values back into a list, or into a table, which may still be empty in a new optimizer."""
    mirror = next((m for m in places.mirrors if ".".join(m.path) == path), None)
    if mirror is not None:
        positions = {id(p): index for index, p in enumerate(mirror.order)}
        for parameter, value in values.items():
            mirror.items[positions[id(parameter)]] = _placed(value, parameter.device)
        return
    table: Any = vars(layer)
    for step in path.split("."):
        table = table.get(step) if isinstance(table, dict) else None
    by = next((by for _, by, at in places.tables if ".".join(at) == path), "parameter")
    if not isinstance(table, dict):
        raise CheckpointError(f"The optimizer has no table '{path}'. Build it as in the run that was saved.")
    names = {id(parameter): name for name, parameter in parameters.items()}
    table.clear()
    for parameter, value in values.items():
        key: Any = {"id": id(parameter), "name": names[id(parameter)]}.get(by, parameter)
        table[key] = _placed(value, parameter.device)


def _placed(value: Any, device: torch.device) -> Any:
    """Returns a value in new containers, with tensors on a device; counts of steps stay where they are."""
    if isinstance(value, Tensor):
        return value.to(device) if value.dim() else value
    if isinstance(value, dict):
        return {key: _placed(item, device) for key, item in value.items()}
    if isinstance(value, list):
        return [_placed(item, device) for item in value]
    if type(value) is tuple:
        return tuple(_placed(item, device) for item in value)
    return value
