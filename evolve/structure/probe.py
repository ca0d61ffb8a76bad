"""One look at a running model: what each submodule takes and gives, and what a forward pass costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from evolve.errors import NotApplicable
from evolve.structure.inputs import Inputs
from evolve.structure.quiet import preserved_rng, undisturbed
from evolve.structure.sites import Site

Shape = tuple[int, ...]
Loss = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Call:
    """One call of a submodule: shape of its first tensor argument and of its output, None where it is no tensor."""

    input: Shape | None
    output: Shape | None


@dataclass(frozen=True)
class Probe:
    """What an operator may know of a model beside its modules.

    Attributes:
        inputs: The probe batch; None where none is known.
        calls: Calls of each submodule by dotted name, in the order in which they happened.
        flops: FLOPs of one forward pass of one sample (2 per multiply-accumulate); None where nothing ran.
        outputs: What the model gave, in eval mode.
        loss: Makes a scalar of the model's outputs on the probe batch, for operators that look at gradients; None where
            none was given.
    """

    inputs: Inputs | None
    calls: dict[str, list[Call]]
    flops: int | None
    outputs: Any = None
    loss: Loss | None = None

    def reached(self, site: Site) -> bool:
        """Whether the probe batch came by the site."""
        return all(end in self.calls for end in site.ends)

    def shapes(self, site: Site) -> tuple[Shape, Shape] | None:
        """Returns the site's input and output shape, or None where the probe did not come by.

        Raises:
            NotApplicable: If the site takes or gives something else than one tensor.
        """
        first, last = (self.calls.get(end) for end in site.ends)
        if not first or not last:
            return None
        taken, given = first[0].input, last[0].output
        if taken is None or given is None:
            side = "takes no tensor as its first argument" if taken is None else "does not return one single tensor"
            raise NotApplicable(f"'{site.name}' {side}; this operator needs a site that maps one tensor to one tensor.")
        return taken, given


def probe(model: nn.Module, inputs: Inputs | None, seed: int = 0, loss: Loss | None = None) -> Probe:
    """Runs the model once in eval mode on the probe batch; the model is left as it was."""
    if inputs is None:
        return Probe(None, {}, None, loss=loss)
    counter = FlopCounter()
    with undisturbed(model), preserved_rng(model, seed), torch.no_grad():
        model.eval()
        with recorded_calls(model) as calls, counter:
            outputs = model(*inputs.args, **inputs.kwargs)
    return Probe(inputs, calls, counter.total // max(inputs.batch_size, 1), outputs, loss)


class FlopCounter(TorchDispatchMode):
    """Counts the FLOPs of what runs while it is open, by the formulas of `torch.utils.flop_counter`.

    Attributes:
        total: FLOPs so far (2 per multiply-accumulate).
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one operation and adds its FLOPs."""
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def loss_gradients(model: nn.Module, seen: Probe) -> dict[str, Tensor]:
    """Returns the gradient of the loss on the probe batch for each trainable parameter that it reaches.

    The model runs in eval mode, so that no sample counts for another, and is left as it was.

    Raises:
        NotApplicable: If no loss is known.
    """
    if seen.loss is None or seen.inputs is None:
        raise NotApplicable(
            "Gradients are needed, and no loss is known: pass loss=..., a function of the model's outputs on "
            "example_inputs that returns a scalar."
        )
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with undisturbed(model), preserved_rng(model, 0), torch.inference_mode(False), torch.enable_grad():
        model.eval()
        value = seen.loss(model(*seen.inputs.args, **seen.inputs.kwargs))
        gradients = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(named, gradients, strict=True) if gradient is not None}


@contextmanager
def recorded_calls(model: nn.Module) -> Iterator[dict[str, list[Call]]]:
    """Notes shapes (never tensors) of every submodule's calls while the context is open."""
    calls: dict[str, list[Call]] = {}
    handles = []

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            first = args[0] if args else next(iter(kwargs.values()), None)
            calls.setdefault(name, []).append(Call(_shape(first), _shape(output)))

        return hook

    try:
        for name, module in model.named_modules():
            handles.append(module.register_forward_hook(note(name), with_kwargs=True))
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _shape(value: Any) -> Shape | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def output_tensors(outputs: Any) -> list[Tensor]:
    """Returns the tensors in a forward pass's outputs, whatever their nesting."""
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def count_parameters(model: nn.Module) -> int:
    """Returns the number of elements of all parameters, shared ones once; lazy ones have none yet."""
    return sum(p.numel() for p in model.parameters() if not isinstance(p, nn.parameter.UninitializedParameter))
