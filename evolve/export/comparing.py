"""Inputs to compare an export on, and the comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from evolve.errors import EvolveError, MisfitError, described
from evolve.lineage import TensorSpec
from evolve.runtime.generators import preserved_rng
from evolve.structure.inputs import Inputs, as_inputs, infer_inputs
from evolve.structure.isolation import undisturbed
from evolve.structure.outputs import output_tensors


def inputs_for(model: nn.Module, example_inputs: Any, specs: Sequence[TensorSpec]) -> Inputs | None:
    """Returns a batch that a model takes; None where none is known.

    Args:
        model: In eval mode.
        example_inputs: What the caller gave, if anything.
        specs: Shapes and types of a batch that it was mutated on.

    Raises:
        MisfitError: If the model does not run on what the caller gave.
    """
    if example_inputs is not None:
        inputs = as_inputs(model, example_inputs)
        try:
            _run(model, inputs)
        except Exception as error:  # whatever a user's forward raises
            sizes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs.tensors)
            raise MisfitError(f"The model fails on the inputs given, of shape {sizes}: {described(error)}") from error
        return inputs
    tensors = [_tensor(spec) for spec in specs]
    for some in (tensors, tensors[:1]):
        if some and _runs(model, guess := as_inputs(model, tuple(some))):
            return guess
    return infer_inputs(model)


def largest_difference(model: nn.Module, other: Callable[..., Any], inputs: Inputs) -> tuple[float, float]:
    """Returns max|Δ| of the outputs of two models in eval mode, and the largest output of the first."""
    before = _run(model, inputs)
    with torch.no_grad(), preserved_rng():
        after = output_tensors(other(*inputs.args, **inputs.kwargs))
    return apart(before, after)


def apart(before: Sequence[Tensor], after: Sequence[Tensor]) -> tuple[float, float]:
    """Returns max|Δ| of tensors in the same order, and the largest value of the first ones.

    Raises:
        EvolveError: If there are more, fewer, or others in shape.
    """
    shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (before, after)]
    if shapes[0] != shapes[1]:
        raise EvolveError(f"The outputs have the shapes {shapes[1]}, not {shapes[0]}.")
    difference = scale = 0.0
    for one, two in zip(before, after, strict=True):
        if one.numel():
            wide = one.double()
            same = torch.isfinite(wide)
            delta = (wide - two.double())[same].abs()
            if not torch.equal(same, torch.isfinite(two.double())):
                return float("inf"), scale
            difference = max(difference, float(delta.max()) if delta.numel() else 0.0)
            scale = max(scale, float(wide[same].abs().max()) if delta.numel() else 0.0)
    return difference, scale


def _run(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    with torch.no_grad(), undisturbed(model, seed=0):
        return [tensor.detach().clone() for tensor in output_tensors(inputs.run(model.eval()))]


def _runs(model: nn.Module, inputs: Inputs) -> bool:
    try:
        _run(model, inputs)
    except Exception:  # whatever a user's forward raises on arguments that were guessed
        return False
    return True


def _tensor(spec: TensorSpec) -> Tensor:
    dtype = getattr(torch, spec.dtype)
    generator = torch.Generator().manual_seed(0)
    if dtype.is_floating_point:
        return torch.randn(spec.shape, generator=generator).to(dtype)
    return torch.randint(0, 2, spec.shape, generator=generator).to(dtype)
