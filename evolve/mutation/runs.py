"""The runs by which a mutation is verified, beside the probe: training, its gradients, and what rounding does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from evolve.mutation.compare import EXACT, difference
from evolve.structure.gradients import depends_on, gradients_of, kept_gradients, without_gradients
from evolve.structure.inputs import Inputs
from evolve.structure.isolation import undisturbed, unfused
from evolve.structure.outputs import Part, copied_parts, differentiable, is_finite, single_or_wider
from evolve.structure.probe import FlopCounter, mixed_statistics
from evolve.structure.tracing.flops import formula_of

_ROUNDINGS = 10
_MOST_ROUNDING = 1e-3  # a difference beyond this is one, whatever the model makes of rounding


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
    """Notes in which types matrices are multiplied: under autocast that is half precision.

    Attributes:
        kinds: The types so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kinds: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one operation and notes its type."""
        out = func(*args, **(kwargs or {}))
        if formula_of(func) is not None:
            self.kinds |= {leaf.dtype for leaf in tree_leaves(out) if isinstance(leaf, Tensor)}
        return out


@dataclass(frozen=True)
class GradRun:
    """A run with gradients, as in training.

    Attributes:
        outputs: What the model gave, taken apart.
        flops: FLOPs of one sample.
        depends: Whether an output depends on a trainable parameter.
        faults: What is wrong with the gradients of the new parameters, where they were looked at.
        infinite: The trainable parameters whose gradient holds NaN or infinity, by name, where they were looked at.
    """

    outputs: list[Part]
    flops: int
    depends: bool
    faults: Sequence[str] = ()
    infinite: Mapping[str, nn.Parameter] = field(default_factory=dict)


def grad_run(
    model: nn.Module,
    inputs: Inputs,
    seed: int,
    *,
    training: bool = True,
    still: bool = False,
    new: Mapping[str, nn.Parameter] | None = None,
) -> GradRun:
    """Runs the model with gradients and leaves no trace; dropout draws the same numbers for the same seed.

    Args:
        model: The model.
        inputs: Arguments of the run.
        seed: Of all that is drawn.
        training: Its mode.
        still: Leave dropout out.
        new: Parameters whose gradients have to arrive and to be finite; None runs no backward pass.
    """
    with undisturbed(model, seed=seed), torch.inference_mode(False), torch.enable_grad():
        model.train(training)
        with kept_gradients(model), _without_dropout(still), FlopCounter() as counter:
            outputs = inputs.run(model)
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        ends = [tensor for tensor in differentiable(outputs) if tensor.is_floating_point()]
        depends = depends_on(ends, trainable.values())
        found = GradRun(copied_parts(outputs), counter.total // max(inputs.batch_size, 1), depends)
        if new is None or not depends:
            return found
        trained = {**trainable, **new}
        # A random weight per output value: a plain sum is constant where the model ends in a softmax.
        wide = [end.to(single_or_wider(end.dtype)) for end in ends]
        value = sum((end * torch.randn_like(end)).sum().to(wide[0].device) for end in wide)
        try:
            gradients = gradients_of(model, value, list(trained.values()))  # type: ignore[arg-type]
        except RuntimeError as error:  # such as an in-place operation on what another one has kept
            return GradRun(found.outputs, found.flops, depends, [f"a backward pass fails ({error})"])
    arrived = {name: gradient for name, gradient in zip(trained, gradients, strict=True) if gradient is not None}
    infinite = {name: trained[name] for name, gradient in arrived.items() if not is_finite(gradient)}
    faults = [f"no gradient reaches the new parameter '{name}'" for name in new if name not in arrived]
    faults += [f"the gradient of the new parameter '{name}' is not finite" for name in new if name in infinite]
    return GradRun(found.outputs, found.flops, depends, faults, infinite)


def _without_dropout(still: bool) -> Any:
    return WithoutDropout() if still else nullcontext()


def rounding(
    model: nn.Module, inputs: Inputs, outputs: Sequence[Part], seed: int, *, mode: str, still: bool = False
) -> dict[str, float]:
    """Returns how far rounding may carry each of a model's outputs, as an absolute difference, by path.

    The model is run on inputs that differ by one rounding; what that does to the outputs, a few times over (every layer
    of a changed model rounds anew), is what rounding can do. BatchNorm over few values makes much of it. A model that
    computes in half precision between inputs and outputs of single precision gets the bound of half precision.

    Args:
        model: The model.
        inputs: Arguments of a run.
        outputs: What that run gave.
        seed: Of all that was drawn in it.
        mode: "eval", "train" or "mixed" (eval with `mixed_statistics`).
        still: Whether dropout was left out.
    """
    with undisturbed(model, seed=seed):
        nudged = Inputs(tree_map(_nudged, inputs.args), tree_map(_nudged, dict(inputs.kwargs)))

    def run() -> tuple[list[Part], set[torch.dtype]]:
        with undisturbed(model, seed=seed), unfused(model), _without_dropout(still), _Precision() as seen:
            model.train(mode == "train")
            with mixed_statistics() if mode == "mixed" else nullcontext():
                return copied_parts(nudged.run(model)), seen.kinds

    found, kinds = without_gradients(model, run)
    coarsest = max((EXACT.get(kind, 0.0) for kind in kinds), default=0.0)
    measured = difference(outputs, found).leaves
    largest = max((leaf.scale for leaf in measured if leaf.rounds), default=0.0)
    allowed = {}
    for leaf in measured:
        moved = min(_ROUNDINGS * leaf.absolute, _MOST_ROUNDING * largest)
        allowed[leaf.path] = max(moved, coarsest * (leaf.scale or 1.0) if leaf.rounds else 0.0)
    return allowed


def _nudged(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
        return leaf
    nudged = leaf.detach() * (1 + torch.finfo(leaf.dtype).eps * torch.randn_like(leaf).sign())
    return nudged.requires_grad_(leaf.requires_grad)
