"""What a model and its optimizer were before a mutation, and what has to be left of it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from evolve.surgery.parts import renamed_keys


class ModelSnapshot:
    """Copies of all that a refused mutation must not touch, and of what an applied one has to keep."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.everything = _everything(model, optimizer)
        self.rng = self.everything["rng"]
        self.parameters = dict(model.named_parameters())
        self.buffers = dict(model.named_buffers())
        self.values = {key: p.detach().clone() for key, p in self.parameters.items()}
        self.trainable = {key: p.requires_grad for key, p in self.parameters.items()}
        self.modes = {key: module.training for key, module in model.named_modules()}
        self.states = {
            key: {k: v.clone() for k, v in optimizer.state[p].items()}
            for key, p in self.parameters.items()
            if p in optimizer.state
        }
        self.groups = _groups(optimizer)

    def follow(self, model: nn.Module) -> dict[str, str]:
        """Knows parameters and buffers by the names that they have now; returns old names, with the new ones."""
        now = {id(tensor): key for key, tensor in (*model.named_buffers(), *model.named_parameters())}
        names = {key: now.get(id(tensor), key) for key, tensor in (*self.parameters.items(), *self.buffers.items())}
        for table in ("parameters", "buffers", "values", "trainable", "states"):
            setattr(self, table, renamed_keys(getattr(self, table), names))
        return names

    def check_same(self, model: nn.Module, optimizer: torch.optim.Optimizer, message: str) -> None:
        """Asserts that nothing has changed."""
        after = _everything(model, optimizer)
        assert self.everything.keys() == after.keys(), f"{message}: {sorted(self.everything.keys() ^ after.keys())}"
        for key, value in self.everything.items():
            equal = torch.equal(value, after[key]) if isinstance(value, Tensor) else value == after[key]
            assert equal, f"{message}: {key}"

    def check_kept(self, model: nn.Module, optimizer: torch.optim.Optimizer, where: str) -> None:
        """Asserts that what is still there is of the same kind, and that the optimizer fits."""
        floats = [p for p in self.parameters.values() if p.is_floating_point()]
        kinds = {(p.dtype, p.device) for p in floats}
        for key, tensor in (*model.named_parameters(), *model.named_buffers()):
            old = self.parameters.get(key, self.buffers.get(key))
            if old is not None:
                assert (tensor.dtype, tensor.device) == (old.dtype, old.device), f"{where}: '{key}' has another dtype"
            elif tensor.is_floating_point() and kinds:
                assert (tensor.dtype, tensor.device) in kinds, f"{where}: the new '{key}' has another dtype"
            if key in self.parameters:
                assert tensor is self.parameters[key], f"{where}: '{key}' is another object"
                assert tensor.requires_grad == self.trainable[key], f"{where}: requires_grad of '{key}' changed"
        for key, module in model.named_modules():
            mode = self.modes.get(key, self.modes[""])
            assert module.training == mode, f"{where}: the mode of '{key}' is not kept"
        groups = _groups(optimizer)
        for parameter in self.parameters.values():
            kept = groups.get(id(parameter))
            assert kept in (None, self.groups.get(id(parameter))), f"{where}: a parameter is in another group"
        check_optimizer(model, optimizer, where)


def _groups(optimizer: torch.optim.Optimizer) -> dict[int, int]:
    return {id(p): index for index, group in enumerate(optimizer.param_groups) for p in group["params"]}


def _everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    found: dict[str, Any] = {f"model {k}": v.detach().clone() for k, v in model.state_dict(keep_vars=True).items()}
    found |= {f"grad {k}": p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    found |= {f"trainable {k}": (id(p), p.requires_grad) for k, p in model.named_parameters()}
    found |= {f"module {k}": (id(m), type(m), m.training) for k, m in model.named_modules()}
    found |= {f"settings {k}": v for k, v in settings_of(model).items()}
    for index, group in enumerate(optimizer.param_groups):
        found |= {f"group {index} {k}": v for k, v in group.items() if k != "params"}
        found[f"group {index}"] = [id(p) for p in group["params"]]
    for index, (parameter, state) in enumerate(optimizer.state.items()):
        found[f"state {index}"] = id(parameter)
        found |= {f"state {index} {k}": v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}
    found["rng"] = torch.get_rng_state()
    return found


def settings_of(model: nn.Module) -> dict[str, Any]:
    """The plain values that modules keep, by module: sizes, strides, numbers of heads."""
    kinds = (bool, int, float, str, tuple)
    return {
        name: {key: value for key, value in vars(module).items() if isinstance(value, kinds) and key[0] != "_"}
        for name, module in model.named_modules()
    }


def check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, where: str) -> None:
    """Asserts that an optimizer holds every trainable parameter once and nothing else, with state of its shape."""
    counts = Counter(id(p) for group in optimizer.param_groups for p in group["params"])
    living = {id(p) for p in model.parameters() if p.requires_grad}
    assert living <= counts.keys(), f"{where}: trainable parameters are missing in the optimizer"
    assert max(counts.values()) == 1, f"{where}: a parameter is in the optimizer more than once"
    assert counts.keys() <= living, f"{where}: the optimizer holds stale parameters"
    assert {id(p) for p in optimizer.state} <= living, f"{where}: the optimizer holds stale state"
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            assert value.dim() == 0 or value.shape == parameter.shape, f"{where}: '{key}' has the shape {value.shape}"
