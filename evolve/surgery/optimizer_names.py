"""An optimizer's groups and state by parameter name, so that they find their way in another process."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from evolve.errors import CheckpointError


def optimizer_by_name(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Returns `{"groups": [{..., "params": names}], "state": {name: {...}}}`; tensors are not copied.

    Raises:
        CheckpointError: If the optimizer holds parameters that the model does not have.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    strangers = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in names]
    if strangers:
        raise CheckpointError(
            f"The optimizer holds {len(strangers)} parameters that the model does not have (first shape "
            f"{tuple(strangers[0].shape)}). Build it over the parameters of this model alone."
        )
    groups = [{**group, "params": [names[id(p)] for p in group["params"]]} for group in optimizer.param_groups]
    return {"groups": groups, "state": {names[id(p)]: state for p, state in optimizer.state.items()}}


def load_optimizer_by_name(model: nn.Module, optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Gives an optimizer the groups and the state that `optimizer_by_name` returned.

    Raises:
        CheckpointError: If groups or parameters do not fit.
    """
    parameters = dict(model.named_parameters())
    if len(saved["groups"]) != len(optimizer.param_groups):
        raise CheckpointError(
            f"The checkpoint has {len(saved['groups'])} parameter groups, the optimizer {len(optimizer.param_groups)}. "
            "Build it as in the run that was saved."
        )
    missing = [name for group in saved["groups"] for name in group["params"] if name not in parameters]
    if missing:
        raise CheckpointError(f"The checkpoint's optimizer knows '{missing[0]}', which the model does not have.")
    for group, values in zip(optimizer.param_groups, saved["groups"], strict=True):
        group.update({**values, "params": [parameters[name] for name in values["params"]]})
    optimizer.state.clear()
    for name, values in saved["state"].items():
        parameter = parameters[name]
        optimizer.state[parameter] = {
            key: value.to(parameter.device) if isinstance(value, Tensor) and value.dim() else value
            for key, value in values.items()
        }
