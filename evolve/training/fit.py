"""Whether model, loss and data fit together, checked before the first step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from evolve.data import Batches, TensorBatches
from evolve.errors import MisfitError
from evolve.structure.isolation import undisturbed
from evolve.training.losses import ELEMENTWISE, OF_CLASSES, TensorLoss, loss_name
from evolve.training.state import TrainState
from evolve.training.step import Batch, autocast, eval_mode, place, right_answers, to_device

logger = logging.getLogger(__name__)

# Operations that compare outputs with targets position by position, where broadcasting is a mistake.
_COMPARISONS = {"sub", "__sub__", "rsub", "__rsub__", "subtract", "pairwise_distance", *ELEMENTWISE}
_EXAMPLES = 8  # training samples that the model is run on in train mode


def check_data(state: TrainState, train: Batches, val: Batches) -> list[str]:
    """Runs the model on training and validation data, so that a misfit is reported before a run begins.

    Data in memory is checked as a whole, other data by its first batch. Nothing of the model is changed.

    Returns:
        What can be measured on the data: "loss" and, where targets are class numbers, "accuracy".

    Raises:
        MisfitError: If model, loss and data do not fit together, with the cause.
        DataError: If the data cannot be read.
    """
    examples = train.examples(_EXAMPLES)
    for values, what in zip(_whole(train) or examples, ("inputs", "targets"), strict=True):
        if fault := _not_finite(values, f"{what} of the training data"):
            raise MisfitError(f"{fault} Fill in or drop those samples.")
    with undisturbed(state.model):
        state.model.train()
        _check_outputs(state, _outputs_of(state, state.model, examples), examples[1].to(state.device))
        measured = check_fit(state, next(iter(val.epoch(0))))
        with torch.no_grad(), eval_mode(state.model):
            for name, batches in (("training", train), ("validation", val)):
                if (whole := _whole(batches)) and loss_name(state.loss) in OF_CLASSES:
                    outputs = state.model(place(state, batches.example(2)))
                    _check_classes(state, outputs, whole[1], f" of the {name} data")
    return measured


def check_fit(state: TrainState, batch: Batch) -> list[str]:
    """Runs model and loss on one batch of validation data, in eval mode.

    Returns:
        What can be measured: "loss" and, where targets are class numbers, "accuracy".

    Raises:
        MisfitError: If model, loss and batch do not fit together, with the cause.
    """
    targets = to_device(state, batch[1])
    spoiled = [f for f in map(_not_finite, batch, ("inputs", "targets")) if f]
    with eval_mode(state.model), torch.enable_grad(), autocast(state):
        outputs = _outputs_of(state, state.forward, batch)
        _check_outputs(state, outputs, targets)
        loss = _loss_of(state, outputs, targets)
    if spoiled:
        logger.warning("Validation data: %s Metrics will be NaN or infinite.", spoiled[0])
    _check_loss(loss, finite=not spoiled)
    return ["loss"] if right_answers(outputs, targets) is None else ["loss", "accuracy"]


def _whole(batches: Batches) -> tuple[Tensor, Tensor] | None:
    """All inputs and targets, where they lie in memory."""
    return (batches.inputs, batches.targets) if isinstance(batches, TensorBatches) else None


def _outputs_of(state: TrainState, forward: Callable[..., Any], batch: Batch) -> Any:
    inputs = place(state, batch[0])
    try:
        with autocast(state):
            return forward(inputs)
    except Exception as error:  # a model may fail in any way on data that it was not made for
        raise MisfitError(
            f"Model and data do not fit: on inputs of shape {tuple(inputs.shape)} ({_dtype(inputs)}) "
            f"{type(state.model).__name__} raised {type(error).__name__}: {error}. {_advice(state, inputs)}"
        ) from error


def _advice(state: TrainState, inputs: Tensor) -> str:
    dtype = next((p.dtype for p in state.model.parameters() if p.is_floating_point()), torch.float32)
    if inputs.is_floating_point() and inputs.dtype != dtype and state.config.precision == "fp32":
        return f"The model computes in {str(dtype).removeprefix('torch.')}: convert the inputs to that."
    if not inputs.is_floating_point():
        return "These inputs are whole numbers: convert them with .float() unless the model takes tokens."
    return "Check the shape that the model expects: channels, image size, features."


def _check_outputs(state: TrainState, outputs: Any, targets: Tensor) -> None:
    """Checks outputs and targets against what torch's losses take."""
    name = loss_name(state.loss)
    if not isinstance(outputs, Tensor):
        if name:
            raise MisfitError(
                f"The model returned a {type(outputs).__name__}, and {name} takes a tensor. Give a loss of your own "
                "that takes it apart (training.loss: module:function), or let the model return the tensor."
            )
        return
    if name in ELEMENTWISE:
        _check_elements(name, outputs, targets)
    elif name in OF_CLASSES:
        _check_classes(state, outputs, targets)
    if isinstance(state.loss, TensorLoss):
        _check_weights(state.loss.tensors, name, outputs)


def _check_elements(name: str, outputs: Tensor, targets: Tensor) -> None:
    if outputs.shape != targets.shape:
        same = outputs.numel() == targets.numel()
        sizes = ", ".join(map(str, (-1, *outputs.shape[1:])))
        advice = (
            f"Give the targets that shape, targets.reshape({sizes}), or squeeze the outputs."
            if same
            else "Both have to have one shape: change the model's last layer or the targets."
        )
        raise MisfitError(
            f"{name} compares outputs and targets element by element, and the outputs have shape "
            f"{tuple(outputs.shape)}, the targets {tuple(targets.shape)}. {advice}"
        )
    if not targets.is_floating_point():
        raise MisfitError(f"{name} needs floating-point targets; these are {_dtype(targets)}. Convert them: .float().")
    if name.startswith("binary_cross_entropy") and not ((targets >= 0) & (targets <= 1)).all():
        raise MisfitError(
            f"{name} needs targets between 0 and 1; these lie between {float(targets.min()):g} and "
            f"{float(targets.max()):g}."
        )
    if name == "binary_cross_entropy" and not ((outputs >= 0) & (outputs <= 1)).all():
        raise MisfitError(
            "binary_cross_entropy needs outputs between 0 and 1. Use binary_cross_entropy_with_logits, or end the "
            "model with a sigmoid."
        )


def _check_classes(state: TrainState, outputs: Any, targets: Tensor, where: str = "") -> None:
    name = loss_name(state.loss)
    if not isinstance(outputs, Tensor) or outputs.dim() < 2:
        found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise MisfitError(f"{name} needs outputs of shape (samples, classes); the model returned {found}.")
    classes = outputs.shape[1]
    probabilities = targets.is_floating_point() and targets.shape[1:] == outputs.shape[1:] and name == "cross_entropy"
    if probabilities:
        return
    if targets.is_floating_point():
        advice = "For classes convert them with .long(); for a regression use mse_loss."
        raise MisfitError(f"{name} needs class numbers as targets{where}; these are {_dtype(targets)}. {advice}")
    if targets.dtype != torch.long:
        raise MisfitError(f"{name} needs targets{where} of dtype int64; these are {_dtype(targets)}. Use .long().")
    if targets.shape[1:] != outputs.shape[2:]:
        one_hot = targets.shape[1:] == outputs.shape[1:]
        advice = "They look one-hot: use targets.argmax(1)." if one_hot else "Give one class number for each sample."
        if targets.dim() == outputs.dim() and targets.shape[1] == 1:
            advice = "Squeeze them: targets.squeeze(1)."
        raise MisfitError(
            f"{name} needs one class number for each output{where}: outputs have shape {tuple(outputs.shape)}, targets "
            f"{tuple(targets.shape)}. {advice}"
        )
    if classes == 1:
        raise MisfitError(
            f"{name} with a single output is always 0: a model of two classes needs two outputs, or one and "
            "binary_cross_entropy_with_logits."
        )
    ignored = _option(state, "ignore_index", -100)
    counted = targets[targets != ignored]
    if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) < classes:
        low, high = int(counted.min()), int(counted.max())
        raise MisfitError(
            f"Class numbers{where} run from {low} to {high}, out of bounds for a model with {classes} outputs, which "
            f"knows 0 to {classes - 1}. Give the model {high + 1} outputs, or renumber the targets from 0."
        )


def _option(state: TrainState, name: str, default: Any) -> Any:
    loss: Any = state.loss.function if isinstance(state.loss, TensorLoss) else state.loss
    return getattr(loss, "keywords", {}).get(name, default)


def _check_weights(tensors: Mapping[str, Tensor], name: str, outputs: Tensor) -> None:
    for option, tensor in tensors.items():
        where = f"training.loss.options.{option}"
        if name in OF_CLASSES or name == "multilabel_soft_margin_loss":
            if tensor.shape != outputs.shape[1:2]:
                size = "x".join(map(str, tensor.shape))
                raise MisfitError(
                    f"{where} has {size} entries and the model {outputs.shape[1]} outputs: give one for each class."
                )
        elif name and not _spreads(tensor.shape, outputs.shape):
            raise MisfitError(
                f"{where} has shape {tuple(tensor.shape)}, which does not spread over outputs of shape "
                f"{tuple(outputs.shape)}: give one number for each output ({outputs.shape[-1]})."
            )


def _spreads(shape: torch.Size, outputs: torch.Size) -> bool:
    """Whether a tensor of a shape spreads over a batch of outputs, whatever its size."""
    per_sample = shape[1:] if len(shape) == len(outputs) and shape[0] == 1 else shape
    try:
        return bool(torch.broadcast_shapes(per_sample, outputs[1:]) == outputs[1:])
    except RuntimeError:  # the sizes do not go together
        return False


def _loss_of(state: TrainState, outputs: Any, targets: Tensor) -> Any:
    shapes = f"{tuple(outputs.shape)} ({_dtype(outputs)})" if isinstance(outputs, Tensor) else type(outputs).__name__
    given = f"outputs {shapes} and targets {tuple(targets.shape)} ({_dtype(targets)})"
    try:
        with _Comparisons(outputs, targets) as comparisons:
            loss = state.loss(outputs, targets)
    except Exception as error:  # a loss, the user's own too, may raise anything
        raise MisfitError(
            f"The loss does not take {given}: {type(error).__name__}: {error}. Check training.loss and the targets."
        ) from error
    if comparisons.spread:
        raise MisfitError(
            f"The loss compares {given}, which have different shapes, so that each output is compared with every "
            "target. Give both one shape: targets.unsqueeze(1), or outputs.squeeze(1)."
        )
    return loss


def _check_loss(loss: Any, finite: bool) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise MisfitError(f"The loss returned {found}; a run needs one number, such as the mean over the samples.")
    if finite and not loss.isfinite().all():
        raise MisfitError(
            f"The loss is {loss.item()} before any step. Look at the model's initial weights and at the targets' range."
        )
    if not loss.requires_grad:
        raise MisfitError(
            "No gradient reaches the model from the loss: all parameters are frozen, or the forward or the loss works "
            "under no_grad or detaches its result."
        )


class _Comparisons(TorchFunctionMode):
    """Notes whether outputs and targets of different shapes are spread over each other where they are compared."""

    def __init__(self, outputs: Any, targets: Tensor) -> None:
        self.spread = False
        self._pair = (outputs, targets)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Looks at one call of torch."""
        outputs, targets = self._pair
        given = [*args, *(kwargs or {}).values()]
        both = any(value is outputs for value in given) and any(value is targets for value in given)
        if both and getattr(func, "__name__", "") in _COMPARISONS and outputs.shape != targets.shape:
            self.spread = torch.broadcast_shapes(outputs.shape, targets.shape).numel() > max(
                outputs.numel(), targets.numel()
            )
        return func(*args, **(kwargs or {}))


def _not_finite(values: Tensor, what: str) -> str:
    """Says where values are NaN or infinite; "" where all are finite."""
    if not values.is_floating_point() or (finite := values.isfinite()).all():
        return ""
    first, count = (~finite).nonzero()[0].tolist(), int((~finite).sum())
    return f"The {what} hold NaN or infinity: {count:,} of {values.numel():,} values, the first at {first}."


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
