"""Which of a user's hooks belong to the model's function, and which only look on.

A forward hook may be a part of the forward: `torch.nn.utils.weight_norm`, `spectral_norm` and pruning compute a weight
in one, others exchange inputs or outputs. Those have to run while a model is recorded. One that stores activations or
prints statistics must not: it would keep a fake tensor where it expects a real one, or fail on it (`.item()`). So where
a model has hooks, it is run on real tensors once in each mode, to see which of them do something to the forward: return
a value, write to a tensor, or set an attribute of their module. The others are left out of recorded runs.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as every_module
from torch.utils._pytree import tree_leaves

from evolve.structure.gradients import without_gradients
from evolve.structure.inputs import Inputs
from evolve.structure.isolation import undisturbed

logger = logging.getLogger(__name__)

HookTable = MutableMapping[int, Any]  # by numbers that no two hooks of a process share


def observing_hooks(model: nn.Module, inputs: Inputs) -> set[int]:
    """Returns the numbers of the forward hooks that do nothing to the forward; the model is left as it was.

    On the meta device nothing can be tried: every hook counts as part of the forward there.

    Args:
        model: The model.
        inputs: Arguments of a run, on real tensors.
    """
    hooks = {key for _, table in _tables(model) for key in table}
    if not hooks or any(tensor.device.type == "meta" for tensor in (*model.parameters(), *model.buffers())):
        return set()
    at_work: set[int] = set()

    def watch(training: bool) -> None:
        with undisturbed(model, seed=0):
            model.train(training)
            for module, table in _tables(model):
                for key, hook in table.items():
                    table[key] = functools.partial(_watched, hook, key, module, at_work)
            inputs.run(model)

    for training in (False, True):
        try:
            without_gradients(model, functools.partial(watch, training))
        except Exception as error:  # the recording will say so
            logger.debug("%s does not run (training: %s): %s", type(model).__name__, training, error)
            if not training:
                return set()
    return hooks - at_work


def leave_out(model: nn.Module, hooks: Iterable[int]) -> None:
    """Takes hooks away; `undisturbed` puts them back."""
    if not hooks:
        return
    for _, table in _tables(model):
        for key in [key for key in table if key in set(hooks)]:
            del table[key]


def global_hooks() -> bool:
    """Whether hooks are there that every module of the process runs: what they look at, nobody sees."""
    return bool(every_module._global_forward_hooks or every_module._global_forward_pre_hooks)


def backward_hooks(model: nn.Module) -> bool:
    """Whether a user's code runs in a backward pass: hooks on modules or on parameters, such as masks of gradients."""
    on_modules = any(module._backward_hooks or module._backward_pre_hooks for module in model.modules())
    return on_modules or any(parameter._backward_hooks for parameter in model.parameters())


def _tables(model: nn.Module) -> Iterator[tuple[nn.Module, HookTable]]:
    for module in model.modules():
        if not isinstance(module, torch.jit.ScriptModule):
            yield from ((module, table) for table in (module._forward_pre_hooks, module._forward_hooks) if table)


def _watched(hook: Any, key: int, owner: nn.Module, at_work: set[int], *args: Any) -> Any:
    before = _state(owner, args)
    result = hook(*args)
    if result is not None or _state(owner, args) != before:
        at_work.add(key)
    return result


def _state(module: nn.Module, args: Any) -> tuple[Any, ...]:
    """Returns what shows that somebody wrote to a module or to tensors."""
    kept = {**vars(module), **module._parameters, **module._buffers}
    tensors = [leaf for leaf in tree_leaves((args[1:], list(kept.values()))) if isinstance(leaf, Tensor)]
    versions = [tensor._version for tensor in tensors if not tensor.is_inference()]
    return {name: id(value) for name, value in kept.items()}, versions
