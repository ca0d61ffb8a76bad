"""Carries would-be units along the recorded run, from where they are made to where they are read.

The operations between two layers are done again on the new channels alone. A normalisation gives them mean and spread
of a fresh one; where another tensor is added or put beside, the new channels pass, for it has none of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from evolve.structure.tracing.tape import Op, Tape, Value

_POINTWISE = {
    *("relu", "gelu", "silu", "sigmoid", "tanh", "elu", "leaky_relu", "hardtanh", "hardswish", "hardsigmoid"),
    *("softplus", "mish", "_prelu_kernel", "celu", "selu", "clamp", "clamp_min", "neg", "abs", "square", "pow", "exp"),
    *("clone", "detach", "alias", "contiguous", "_to_copy", "native_dropout"),
}
_SPATIAL = {
    *("max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d", "mean"),
    *("adaptive_avg_pool1d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "constant_pad_nd", "permute", "transpose"),
    *("upsample_nearest2d", "upsample_bilinear2d", "squeeze", "unsqueeze", "adaptive_max_pool2d"),
}
_NORMS = {"native_batch_norm", "native_layer_norm", "native_group_norm", "cudnn_batch_norm", "miopen_batch_norm"}


def carry(tape: Tape, starts: Mapping[Value, Tensor]) -> dict[Value, Tensor]:
    """Returns the values of the new channels wherever they come to.

    Args:
        tape: The recorded run.
        starts: What the layers that make the units give, for these units alone.
    """
    known: dict[Value, Tensor] = dict(starts)
    for op in tape.ops:
        made = op.outputs[0] if op.outputs else None
        written = made in op.tensors  # in place
        if made is None or (made in known and not written) or not any(value in known for value in op.tensors):
            continue
        new = _again(op, known, made)
        if new is not None:
            known[made] = new
    return known


def _again(  # noqa: PLR0911 - one for each kind of operation
    op: Op, known: Mapping[Value, Tensor], made: Value
) -> Tensor | None:
    """Does one operation for the new channels; None where that is not known."""
    name = op.name.removeprefix("aten.").rstrip("_")
    moving = [value for value in op.tensors if value in known]
    first = known[moving[0]]
    if name in {"add", "sub"}:
        return sum((known[value] for value in moving[1:]), first) if moving[0].shape == made.shape else None
    if name in {"mul", "div"}:
        return first if moving[0].shape == made.shape and len(moving) == 1 else None
    if name == "cat":
        return first
    if name in _NORMS:
        return _normalised(first, -1 if "layer" in name else 1)
    if name in {"view", "reshape", "_unsafe_view", "flatten"}:
        return _viewed(first, moving[0].shape, made.shape)
    if name in _POINTWISE | _SPATIAL and len(op.tensors) == 1:
        fresh = {moving[0]: first.clone()} if made in op.tensors else known
        out = op.func(*_filled(op.args, fresh), **_filled(op.kwargs, fresh))
        result: Tensor = out[0] if isinstance(out, tuple) else out
        return result
    return None


def _filled(arguments: Any, known: Mapping[Value, Tensor]) -> Any:
    if isinstance(arguments, dict):
        return {key: _filled(value, known) for key, value in arguments.items()}
    if isinstance(arguments, (list, tuple)):
        return type(arguments)(_filled(value, known) for value in arguments)
    return known[arguments] if isinstance(arguments, Value) else arguments


def _normalised(values: Tensor, channel: int) -> Tensor:
    """Gives each channel mean 0 and spread 1 over the batch."""
    others = [axis for axis in range(values.dim()) if axis != channel % values.dim()]
    spread, mean = torch.var_mean(values, dim=others, keepdim=True, correction=0)
    return (values - mean) * (spread + 1e-5).rsqrt()


def _viewed(values: Tensor, old: tuple[int, ...], new: tuple[int, ...]) -> Tensor | None:
    """Views that leave all axes, or flatten all but the samples'."""
    if old == new:
        return values
    if len(new) == 2 and new[0] == old[0]:
        return values.flatten(1)
    return None
