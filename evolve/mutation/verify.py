"""Proves that a change did what it promised: same outputs as declared, gradients that arrive, an optimizer in line."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.flop_counter import flop_registry

from evolve.runtime.generators import preserved_rng
from evolve.structure.inputs import Inputs
from evolve.structure.isolation import undisturbed, unfused
from evolve.structure.probe import gradients_of, mixed_statistics, output_tensors

# Largest max|difference| relative to the largest |output| that still counts as exact: rounding, nothing more.
EXACT = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
_ROUNDINGS = 10
_MOST_ROUNDING = 1e-3  # a difference beyond this is one, whatever the model makes of rounding
APPROXIMATE = 0.1  # likewise for operators that declare to preserve the function approximately


@dataclass(frozen=True)
class Difference:
    """Largest |difference| of outputs, and the same relative to the largest |output|."""

    absolute: float
    relative: float


class WithoutDropout(TorchDispatchMode):
    """Lets dropout and its kin pass everything on: a mask of another width cannot be compared."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Keeps with certainty what would be kept by chance."""
        if func is torch.ops.aten.native_dropout.default:
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        if func is torch.ops.aten.bernoulli_.float:  # a mask is then divided by its probability
            return args[0].fill_(args[1] if len(args) > 1 else 0.5)
        return func(*args, **(kwargs or {}))


class _Precision(TorchDispatchMode):
    """Notes in which types matrices are multiplied: autocast in a forward computes in half precision.

    Attributes:
        kinds: The types so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kinds: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one operation and notes its type."""
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.kinds |= {leaf.dtype for leaf in output_tensors(out)}
        return out


def train_outputs(model: nn.Module, inputs: Inputs, seed: int, *, still: bool = False) -> Any:
    """Runs the model in train mode without a trace; dropout draws the same numbers for the same seed.

    Args:
        model: The model.
        inputs: Arguments of the run.
        seed: Of all that is drawn.
        still: Leave dropout out.
    """
    quiet = WithoutDropout() if still else contextlib.nullcontext()
    with undisturbed(model), preserved_rng(seed), torch.no_grad(), quiet:
        model.train()
        return model(*inputs.args, **inputs.kwargs)


def structure_faults(before: Any, after: Any) -> list[str]:
    """Says where two outputs differ in nesting, shape, dtype or device."""
    old, old_tree = tree_flatten(before)
    new, new_tree = tree_flatten(after)
    if old_tree != new_tree:
        return [f"the output's structure changed from {old_tree} to {new_tree}"]
    faults = []
    for one, other in zip(old, new, strict=True):
        if isinstance(one, Tensor) != isinstance(other, Tensor):
            faults.append(f"an output changed from {type(one).__name__} to {type(other).__name__}")
        elif isinstance(one, Tensor) and (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device):
            faults.append(
                f"an output changed from {tuple(one.shape)} {one.dtype} on {one.device} "
                f"to {tuple(other.shape)} {other.dtype} on {other.device}"
            )
    return faults


def difference(before: Any, after: Any) -> Difference:
    """Measures two outputs of equal structure; NaN in the same place counts as equal."""
    absolute = scale = 0.0
    for one, other in zip(output_tensors(before), output_tensors(after), strict=True):
        if one.numel() == 0:
            continue
        kind = torch.complex128 if one.is_complex() else torch.float64
        delta = (one.to(kind) - other.to(kind)).abs()
        same = (one == other) | (torch.isnan(one) & torch.isnan(other))
        delta = torch.where(same, torch.zeros_like(delta), delta)
        largest = float(delta.max())
        absolute = max(absolute, float("inf") if math.isnan(largest) else largest)
        finite = one[torch.isfinite(one)]
        scale = max(scale, float(finite.abs().max()) if finite.numel() else 0.0)
    return Difference(absolute, absolute / scale if scale > 0 else absolute)


def tolerance(outputs: Any, preserves: str) -> float | None:
    """Returns the largest relative difference that a declaration allows; None where it promises nothing."""
    if preserves == "no":
        return None
    if preserves == "approximate":
        return APPROXIMATE
    kinds = [tensor.dtype for tensor in output_tensors(outputs) if tensor.dtype in EXACT]
    return max((EXACT[kind] for kind in kinds), default=0.0)


def rounding(
    model: nn.Module,
    inputs: Inputs,
    outputs: Any,
    seed: int,
    *,
    training: bool,
    still: bool = False,
    mixed: bool = False,
) -> float:
    """Returns how far rounding may carry this model's outputs, relative to the largest.

    The model is run on inputs that differ by one rounding; what that does to the outputs, a few times over (every layer
    of a changed model rounds anew), is what rounding can do. BatchNorm over few values makes much of it. A model that
    computes in half precision between inputs and outputs of single precision gets the bound of half precision.

    Args:
        model: The model.
        inputs: Arguments of a run.
        outputs: What that run gave.
        seed: Of all that was drawn in it.
        training: Its mode.
        still: Whether dropout was left out.
        mixed: Whether it was made with `mixed_statistics`.
    """

    def nudge(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        return leaf * (1 + torch.finfo(leaf.dtype).eps * torch.randn_like(leaf).sign())

    with undisturbed(model), preserved_rng(seed):
        other = Inputs(tree_map(nudge, inputs.args), tree_map(nudge, dict(inputs.kwargs)))
    quiet = WithoutDropout() if still else contextlib.nullcontext()
    statistics = mixed_statistics() if mixed else contextlib.nullcontext()
    with undisturbed(model), preserved_rng(seed), torch.no_grad(), unfused(model), quiet, _Precision() as seen:
        model.train(training)
        with statistics:
            nudged = model(*other.args, **other.kwargs)
    coarsest = max((EXACT.get(kind, 0.0) for kind in seen.kinds), default=0.0)
    return max(min(_ROUNDINGS * difference(outputs, nudged).relative, _MOST_ROUNDING), coarsest)


def gradient_faults(
    model: nn.Module, inputs: Inputs, seed: int, fresh: dict[str, nn.Parameter], *, training: bool
) -> list[str]:
    """Says which new parameters a backward pass does not reach, or reaches with NaN or infinity, or why it fails."""
    trainable = fresh or {name: p for name, p in model.named_parameters() if p.requires_grad}
    with undisturbed(model), preserved_rng(seed), torch.inference_mode(False), torch.enable_grad():
        model.train(training)
        outputs = [t for t in output_tensors(model(*inputs.args, **inputs.kwargs)) if t.requires_grad]
        if not outputs:
            return ["no output depends on a trainable parameter"] if fresh else []
        # A random weight per output value: a plain sum is constant where the model ends in a softmax.
        loss = sum((t * torch.randn_like(t)).sum() for t in outputs if t.is_floating_point())
        try:
            gradients = gradients_of(model, loss, list(trainable.values()))  # type: ignore[arg-type]
        except RuntimeError as error:  # such as an in-place operation on what another one has kept
            return [f"a backward pass fails ({error})"]
    faults = []
    for name, gradient in zip(trainable, gradients, strict=True):
        if name not in fresh:
            continue
        if gradient is None:
            faults.append(f"no gradient reaches the new parameter '{name}'")
        elif not bool(torch.isfinite(gradient).all()):
            faults.append(f"the gradient of the new parameter '{name}' is not finite")
    return faults
