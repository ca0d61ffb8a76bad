"""Models that cannot be looked at or changed as they stand, and what to do about each: told before anything is touched.

Classes are known by their names, so that nothing distributed is imported for a model that is not.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from evolve.errors import NotApplicable

_UNWRAPPED = "Mutate the model inside (`.module`) on every rank with the same seed, then wrap it again."
_SHARDED = (
    "Mutate the model on every rank with the same seed before it is sharded. One that is trained already: gather its "
    "full state dict, load it into the plain model, mutate that, and shard it again."
)
_EXPORTED = "Mutate the Python model and export it again."
# By the name of a class of torch in the method resolution order: what is wrong with it, what to do.
_WRAPPERS = {
    "DataParallel": ("fixes its parameters when it is made", _UNWRAPPED),
    "DistributedDataParallel": ("fixes its parameters when it is made", _UNWRAPPED),
    "DDP": ("was given to `replicate`, which fixes its parameters", "Mutate the model first, then call `replicate`."),
    "FullyShardedDataParallel": ("keeps the parameters of its parts in one flat tensor", _SHARDED),
    "FSDPModule": ("was sharded by `fully_shard`, so that no rank holds the whole of a parameter", _SHARDED),
    "_StatefulGraphModule": ("was exported: its forward is a fixed graph", _EXPORTED),
    "UnflattenedModule": ("was exported: its forward is a fixed graph", _EXPORTED),
}
_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")


def refuse_wrapped(model: nn.Module) -> None:
    """Refuses a model that is wrapped, sharded or exported, as a whole or in a part.

    Raises:
        NotApplicable: With what was found where, and what to do.
    """
    for cls, (name, module) in {type(module): (name, module) for name, module in model.named_modules()}.items():
        what, advice = _wrapped(cls, module)
        if what:
            where = f"'{name}'" if name else "The model"
            raise NotApplicable(f"{where}, a {cls.__name__}, {what}. {advice}")
    for name, tensor in _tensors(model):
        kind = type(tensor).__name__
        if kind in ("DTensor", "FlatParameter") or hasattr(tensor, "ds_id"):  # the last is DeepSpeed's, ZeRO stage 3
            raise NotApplicable(f"'{name}' is a {kind} that is spread over processes. {_SHARDED}")


def _wrapped(cls: type, module: nn.Module) -> tuple[str, str]:
    for base in cls.__mro__:
        if base.__module__.startswith("torch.") and base.__name__ in _WRAPPERS:
            return _WRAPPERS[base.__name__]
    if cls.__name__.endswith("Engine") and "module" in module._modules:  # such as DeepSpeed's
        return "keeps parameters and an optimizer of its own", _UNWRAPPED
    return "", ""


def refuse_lazy(model: nn.Module) -> None:
    """Refuses a model that gets its shapes when it is run first, which makes other parameters of them.

    Raises:
        NotApplicable: If a parameter or buffer has no shape yet.
    """
    for name, tensor in _tensors(model):
        if nn.parameter.is_lazy(tensor):
            raise NotApplicable(f"'{name}' is lazy and has no shape yet. Run the model once first.")


def refuse_unworkable(model: nn.Module) -> None:
    """Refuses a model that no mutation could be made on.

    Raises:
        NotApplicable: With what was found, and what to do.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise NotApplicable("A ScriptModule cannot be changed. Mutate the Python model and script it again.")
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise NotApplicable("Inside a transform of torch.func (vmap, grad) no model can be changed. Mutate outside.")
    refuse_wrapped(model)
    refuse_lazy(model)
    for name, tensor in _tensors(model):
        if tensor.device.type == "meta":
            raise NotApplicable(
                f"'{name}' is on the meta device and has no values. Call `model.to_empty(...)` and load."
            )
    if next(model.parameters(), None) is None:
        for name, module in model.named_modules():
            if type(module).__module__.startswith(_QUANTISED):
                raise NotApplicable(
                    f"The model is quantised ('{name}' is a {type(module).__module__}.{type(module).__name__}) and has "
                    "no parameters that could be trained. Mutate the float model and quantise it again."
                )


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
