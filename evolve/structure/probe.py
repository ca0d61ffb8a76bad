"""One look at a running model: what each submodule takes and gives, and what a forward pass costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from evolve.errors import NotApplicable
from evolve.structure.gradients import gradients_of, without_gradients
from evolve.structure.inputs import Inputs
from evolve.structure.isolation import undisturbed, unfused
from evolve.structure.outputs import Part, copied_parts
from evolve.structure.sites import Site
from evolve.structure.tracing.calls import watched_calls
from evolve.structure.tracing.flops import flops, hidden_parts
from evolve.structure.tracing.tape import Shape

OutputLoss = Callable[[Any], Tensor]


@dataclass(frozen=True)
class CallShapes:
    """One call of a submodule.

    Attributes:
        input: Shape of its first argument, None where it is no tensor; likewise `output`.
        counts: Whether its first argument holds integers, such as the numbers of tokens.
        input_dtype: The floating-point type of its first argument; None where there is none, and under autocast, which
            casts for every layer by itself; likewise `output_dtype`.
    """

    input: Shape | None
    output: Shape | None
    counts: bool = False
    input_dtype: torch.dtype | None = None
    output_dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Probe:
    """What an operator may know of a model beside its modules.

    Attributes:
        inputs: The probe batch; None where none is known.
        calls: Calls of each submodule by dotted name, in the order in which they happened; empty for operators on
            groups, which learn all they need from the recorded runs.
        flops: FLOPs of one forward pass of one sample (2 per multiply-accumulate); None where they were not counted.
        outputs: What the model gave in eval mode, taken apart.
        loss: Makes a scalar of the model's outputs on the probe batch, for operators that look at gradients; None where
            none was given.
        loss_batches: More batches to look at gradients on: what the model is called with, and the loss of its outputs
            on that; None where none were given.
        found: What has been found out about the model since, for whoever needs it again.
    """

    inputs: Inputs | None
    calls: dict[str, list[CallShapes]]
    flops: int | None
    outputs: Sequence[Part] = ()
    loss: OutputLoss | None = None
    loss_batches: Iterable[tuple[Any, OutputLoss]] | None = None
    found: dict[str, Any] = field(default_factory=dict, repr=False)

    def reached(self, site: Site) -> bool:
        """Whether the probe batch runs the site."""
        return all(end in self.calls for end in site.ends)

    def shapes(self, site: Site) -> tuple[Shape, Shape] | None:
        """Returns the site's input and output shape, or None where the probe batch never runs it.

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


def probe(model: nn.Module, inputs: Inputs | None, seed: int = 0, loss: OutputLoss | None = None) -> Probe:
    """Runs the model once in eval mode on the probe batch; the model is left as it was.

    Args:
        model: The model.
        inputs: The probe batch; None looks at nothing.
        seed: Of all that is drawn.
        loss: For the probe.
    """
    if inputs is None:
        return Probe(None, {}, None, loss=loss)

    def run() -> Probe:
        with undisturbed(model, seed=seed), unfused(model):
            model.eval()
            with recorded_calls(model) as calls, FlopCounter() as counter:
                outputs = inputs.run(model)
            return Probe(inputs, calls, counter.total // max(inputs.batch_size, 1), copied_parts(outputs), loss)

    return without_gradients(model, run)


def outputs_in_use(model: nn.Module, inputs: Inputs, seed: int) -> list[Part]:
    """Runs the model as it is run in use, in eval mode: no hook, no mode of torch, nothing switched off.

    Whatever a forward asks about how it is run, it is told what it is told in use. PyTorch's transformer layers take
    their fused path here, and in no other run. Compiled parts alone run uncompiled: compiling takes minutes.
    """

    def run() -> list[Part]:
        with undisturbed(model, seed=seed), _uncompiled(model):
            return copied_parts(inputs.run(model.eval()))

    return without_gradients(model, run)


def mixed_outputs(model: nn.Module, inputs: Inputs, seed: int) -> list[Part]:
    """Runs the model with `mixed_statistics`: a change that shows in either mode shows in what this gives."""

    def run() -> list[Part]:
        with undisturbed(model, seed=seed), unfused(model), mixed_statistics():
            return copied_parts(inputs.run(model.eval()))

    return without_gradients(model, run)


class FlopCounter(TorchDispatchMode):
    """Counts the FLOPs of what runs while it is open, by the formulas of `tracing/flops.py`.

    Attributes:
        total: FLOPs so far (2 per multiply-accumulate).
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one operation and adds its FLOPs."""
        parts = hidden_parts(self, func, args, kwargs or {})
        if parts is not NotImplemented:
            return parts
        out = func(*args, **(kwargs or {}))
        self.total += flops(func, args, kwargs or {}, out)
        return out


def _uncompiled(model: nn.Module) -> AbstractContextManager[None]:
    compiled = any(getattr(m, "_compiled_call_impl", None) or hasattr(m, "_orig_mod") for m in model.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


@contextmanager
def mixed_statistics() -> Iterator[None]:
    """Lets BatchNorm in eval mode normalise half by its running statistics, half by those of the batch.

    Eval mode takes the ones, train mode the others, and what the model gives depends smoothly on the share of each: a
    change that shows in either mode shows here. Models whose modes differ in nothing else are compared in one run.
    Compiled parts run uncompiled: what they were compiled to takes no notice.
    """
    with torch.compiler.set_stance("force_eager"), _MixedStatistics():
        yield


class _MixedStatistics(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm and len(args) > 2 and args[1] is not None:
            training = args[5] if len(args) > 5 else kwargs.get("training", False)
            if not training:
                args = (args[0], *_mixed(*args[:3]), *args[3:])
        return func(*args, **kwargs)


def _mixed(x: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and variance half way to those of each channel of a batch; much faster than `torch.var_mean`."""
    axes = [0, *range(2, x.dim())]
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    center = x.mean(axes, keepdim=True)
    spread = torch.linalg.vector_norm(x - center, dim=axes).square() * x.shape[1] / x.numel()
    return mean.lerp(center.flatten().to(mean), 0.5), var.lerp(spread.to(var), 0.5)


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
    with undisturbed(model, seed=0), torch.inference_mode(False), torch.enable_grad():
        model.eval()
        value = seen.loss(seen.inputs.run(model))
        gradients = gradients_of(model, value, list(named.values()))
    return {name: gradient for name, gradient in zip(named, gradients, strict=True) if gradient is not None}


@contextmanager
def recorded_calls(model: nn.Module) -> Iterator[dict[str, list[CallShapes]]]:
    """Notes shapes (never tensors) of every submodule's calls while the context is open."""
    calls: dict[str, list[CallShapes]] = {}
    names = {id(module): name for name, module in model.named_modules()}

    def noted(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = module._call_impl(*args, **kwargs)
        first = args[0] if args else next(iter(kwargs.values()), None)
        call = CallShapes(_shape(first), _shape(output), _counts(first), _dtype(first), _dtype(output))
        calls.setdefault(names[id(module)], []).append(call)
        return output

    with watched_calls(model, noted):
        yield calls


def _shape(value: Any) -> Shape | None:
    return tuple(value.shape) if isinstance(value, Tensor) and not value.is_nested else None


def _dtype(value: Any) -> torch.dtype | None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return None
    kind = value.device.type
    casts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return None if casts else value.dtype


def _counts(value: Any) -> bool:
    return isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex())


def count_parameters(model: nn.Module) -> int:
    """Returns the number of elements of all parameters, shared ones once; lazy ones have none yet."""
    return sum(p.numel() for p in model.parameters() if not isinstance(p, nn.parameter.UninitializedParameter))
