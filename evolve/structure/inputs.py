"""The probe batch: what the user gave, or what the first layer with weights asks for."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from evolve.errors import NotApplicable
from evolve.structure.gradients import without_gradients
from evolve.structure.isolation import undisturbed

logger = logging.getLogger(__name__)

_SIDES = (32, 28, 64, 224, 16, 8, 96, 128, 299)  # input sizes tried where only the channels are known
_BATCH = 2


@dataclass(frozen=True)
class Inputs:
    """Arguments for one forward pass, on the model's device and in its dtype."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments, flattened."""
        return [leaf for leaf in tree_leaves((self.args, dict(self.kwargs))) if isinstance(leaf, Tensor)]

    @property
    def batch_size(self) -> int:
        """Samples in the batch: the first tensor's first axis."""
        tensors = self.tensors
        return tensors[0].shape[0] if tensors and tensors[0].dim() else 1

    def run(self, model: nn.Module) -> Any:
        """Returns what a model gives for these arguments."""
        return model(*self.args, **self.kwargs)


def as_inputs(model: nn.Module, example_inputs: Any) -> Inputs:
    """Brings a tensor, a sequence of arguments or a mapping of keyword arguments to where the model lives.

    Floating-point tensors take the dtype of the model's parameters; others keep theirs. One that requires a gradient
    goes on requiring it: a forward may differentiate by its input.

    Raises:
        NotApplicable: If it is something else, such as a number, or empty though the forward takes arguments.
    """
    _check(model, example_inputs)
    device = next((t.device for t in _tensors(model)), torch.device("cpu"))
    dtype = next((t.dtype for t in _tensors(model) if t.is_floating_point()), torch.float32)

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        wanted = leaf.requires_grad
        leaf = leaf.clone() if leaf.is_inference() else leaf.detach()  # the former cannot be saved for a backward pass
        return leaf.to(device, dtype if leaf.is_floating_point() else leaf.dtype).requires_grad_(wanted)

    if isinstance(example_inputs, Mapping):
        return Inputs(kwargs=tree_map(move, dict(example_inputs)))
    if isinstance(example_inputs, Sequence):
        return Inputs(args=tree_map(move, tuple(example_inputs)))
    return Inputs(args=(move(example_inputs),))


def _check(model: nn.Module, example_inputs: Any) -> None:
    """Refuses what is no batch."""
    kind = type(example_inputs).__name__
    if type(example_inputs).__module__.partition(".")[0] == "numpy":
        raise NotApplicable(
            f"example_inputs is a NumPy {kind}; pass a tensor: example_inputs=torch.as_tensor(...), or a tuple of the "
            "forward's arguments."
        )
    if isinstance(example_inputs, str | bytes | complex | float | int):
        raise NotApplicable(
            f"example_inputs is {example_inputs!r:.40}, of type {kind}; pass a tensor, a sequence of the forward's "
            "arguments or a mapping of its keyword arguments."
        )
    if isinstance(example_inputs, Mapping | Sequence) and not example_inputs and _needs_arguments(model):
        raise NotApplicable(
            f"example_inputs is an empty {kind}, but the forward of {type(model).__name__} takes arguments; pass a "
            "tensor, a sequence of its arguments or a mapping of its keyword arguments."
        )


def _needs_arguments(model: nn.Module) -> bool:
    parameters = inspect.signature(model.forward).parameters.values()
    return any(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def example_of(model: nn.Module, shape: Sequence[int]) -> Tensor:
    """Returns an argument of a shape: noise, or tokens where the first layer with weights is an embedding."""
    kinds = (nn.Embedding, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    first = next((module for module in model.modules() if isinstance(module, kinds)), None)
    if isinstance(first, nn.Embedding):
        return torch.arange(prod(shape)).remainder(first.num_embeddings).reshape(*shape).to(first.weight.device)
    like = next(iter(model.parameters()), torch.empty(0))
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(like)


def infer_inputs(model: nn.Module) -> Inputs | None:
    """Returns a random batch that the model accepts, judged by its first layer with weights, or None.

    Sizes are tried in turn by running the model; it is left as it was.
    """
    for example in _guesses(model):
        inputs = as_inputs(model, example)
        try:
            without_gradients(model, partial(_run_once, model, inputs))
        except Exception as error:  # whatever a user's forward raises on a size that it was not made for
            logger.debug("%s does not run on %s: %s", type(model).__name__, tuple(example.shape), error)
            continue
        return inputs
    return None


def _run_once(model: nn.Module, inputs: Inputs) -> None:
    with undisturbed(model):
        inputs.run(model.eval())


def _guesses(model: nn.Module) -> Iterator[Tensor]:
    generator = torch.Generator("cpu").manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cpu")

    first = next((m for m in model.modules() if type(m).__mro__ and _guess_rule(m)), None)
    rule = _guess_rule(first) if first is not None else None
    if rule is not None and first is not None:
        yield from rule(first, noise)


def _conv_guesses(dims: int) -> Callable[[Any, Callable[..., Tensor]], Iterator[Tensor]]:
    def guesses(layer: Any, noise: Callable[..., Tensor]) -> Iterator[Tensor]:
        for side in _SIDES:
            if dims == 3 and side > 64:
                continue
            yield noise(_BATCH, layer.in_channels, *[side] * dims)

    return guesses


def _linear_guesses(layer: Any, noise: Callable[..., Tensor]) -> Iterator[Tensor]:
    features = layer.in_features
    yield noise(_BATCH, features)
    yield noise(_BATCH, 8, features)
    for channels in (1, 3):  # an image that is flattened first
        side = round((features / channels) ** 0.5)
        if side * side * channels == features:
            yield noise(_BATCH, channels, side, side)


def _embedding_guesses(layer: Any, noise: Callable[..., Tensor]) -> Iterator[Tensor]:
    yield torch.arange(_BATCH * 8, device="cpu").remainder(layer.num_embeddings).reshape(_BATCH, 8)


def _guess_rule(module: nn.Module) -> Callable[[Any, Callable[..., Tensor]], Iterator[Tensor]] | None:
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return _conv_guesses(module.weight.dim() - 2)
    if isinstance(module, nn.Linear):
        return _linear_guesses
    if isinstance(module, nn.Embedding):
        return _embedding_guesses
    return None
