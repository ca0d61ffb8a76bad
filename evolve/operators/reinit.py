"""Fresh initial values of parameters, as their layers would draw them if they were made now."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.nn.utils.parametrize import is_parametrized

from evolve.structure.isolation import undisturbed


def fresh_values(model: nn.Module, layers: Sequence[nn.Module]) -> dict[str, Tensor]:
    """Returns what the parameters of layers could have been before any training; the model is left as it was.

    Each layer's own `reset_parameters` draws them, inner layers first, as when the model was built; then the model's
    `_init_weights` (of transformers, and of many who write models like theirs) has its say. A parameter that none of
    them draws is drawn from a normal of its own mean and spread where it is a matrix, and takes its own mean where it
    is a vector or a number (a scale, a gate, a bias).

    Args:
        model: The root module.
        layers: Modules of it, outer ones before those inside them.

    Returns:
        New tensors by parameter name. The random number generators stand where they stood.
    """
    wanted = {id(parameter) for layer in layers for parameter in layer._parameters.values() if parameter is not None}
    parameters = {n: p for n, p in model.named_parameters() if id(p) in wanted and p.is_floating_point()}
    with undisturbed(model), values_kept(parameters.values()) as kept:
        for parameter in parameters.values():
            parameter.fill_(torch.nan)  # what is no number afterwards has not been drawn
        for layer in reversed(layers):
            _reset(layer)
            if callable(of_model := getattr(model, "_init_weights", None)) and _takes_one(of_model):
                of_model(layer)
        drawn = {name: model.get_parameter(name).detach().clone() for name in parameters}
        for (name, value), old in zip(drawn.items(), kept, strict=True):
            if bool(value.isnan().any()):
                drawn[name] = _alike(old)
    return drawn


@contextmanager
def values_kept(parameters: Iterable[nn.Parameter]) -> Iterator[list[Tensor]]:
    """Lets parameters be written to without a gradient; afterwards they hold what they held. Gives that.

    As nothing has been written then, their version counters, by which others tell, are as they were.
    """
    held = list(parameters)
    kept = [parameter.detach().clone() for parameter in held]
    with ExitStack() as versions, torch.no_grad():
        for parameter in held:
            versions.enter_context(_unsafe_preserve_version_counter(parameter))
        try:
            yield kept
        finally:
            for parameter, value in zip(held, kept, strict=True):
                parameter.copy_(value)


@torch.no_grad()
def blend(
    model: nn.Module, fresh: Mapping[str, Tensor], shares: Mapping[str, float], new: float | None = None
) -> list[str]:
    """Sets each parameter to `share * parameter + new * fresh` and returns the names of those that changed.

    A share of 1 leaves a parameter bit for bit where `new` is not given; so does a fresh value that is the present one.

    Args:
        model: The model.
        fresh: Freshly initialised values by the name of their parameter.
        shares: Of each parameter.
        new: Of all fresh values; what a share leaves of 1 if None.
    """
    changed = []
    for name, value in fresh.items():
        parameter = model.get_parameter(name)
        share = shares[name]
        mixed = torch.lerp(value, parameter, share) if new is None else share * parameter + new * value
        if not torch.equal(mixed, parameter):
            parameter.copy_(mixed)
            changed.append(name)
    return changed


def _reset(layer: Any) -> None:
    """Lets a layer draw its parameters; where they are computed from others, there is nothing to be drawn."""
    draw = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)
    if draw is not None and not is_parametrized(layer):
        draw()


def _takes_one(function: Callable[..., Any]) -> bool:
    needed = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    return len(needed) == 1 and needed[0].kind is needed[0].POSITIONAL_OR_KEYWORD


def _alike(old: Tensor) -> Tensor:
    if old.dim() < 2:
        return old.mean().expand_as(old).clone()
    wide = old.float()
    spread = wide.std() if old.numel() > 1 else torch.zeros_like(wide.mean())
    return (torch.randn_like(wide) * spread + wide.mean()).to(old.dtype)
