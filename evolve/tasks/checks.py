"""Whether outputs and targets are what torch's losses take, told before a run begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from evolve.errors import MisfitError
from evolve.tasks.losses import ELEMENTWISE, OF_CLASSES, Loss, TensorLoss, loss_name, loss_option

_ROUNDING = 0.02  # of a sum of probabilities in half precision


def check_pair(
    loss: Loss,
    outputs: Any,
    targets: Any,
    where: str = "",
    *,
    what: str = "Class numbers",
    given_as: Mapping[str, str] | None = None,
) -> None:
    """Checks outputs and targets against what torch's losses take; a loss of the user's own takes anything.

    Args:
        loss: Of the task.
        outputs: Of the model.
        targets: Those of the outputs; or of all the data, of which classes alone are looked at then.
        where: What to call all the data, such as " of the training data".
        what: What to call class numbers.
        given_as: Where a user sets options of the loss, such as `{"weight": "task.options.class_weights"}`; in
            `training.loss.options` if None.

    Raises:
        MisfitError: If they do not fit, with the cause.
    """
    name = loss_name(loss)
    if name and not isinstance(targets, Tensor):
        raise MisfitError(f"{name} takes targets as one tensor; these are a {type(targets).__name__}.")
    if not isinstance(outputs, Tensor):
        if name:
            raise MisfitError(
                f"The model returned a {type(outputs).__name__}, and {name} takes a tensor. Give a loss of your own "
                "that takes it apart (training.loss: module:function), or let the model return the tensor."
            )
        return
    if name in ELEMENTWISE and not where:
        _check_elements(name, outputs, targets)
    elif name in OF_CLASSES:
        _check_classes(loss, outputs, targets, where, what)
    if isinstance(loss, TensorLoss):
        _check_weights(loss.tensors, name, outputs, given_as or {})


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


def _check_classes(loss: Loss, outputs: Any, targets: Tensor, where: str, what: str) -> None:
    name = loss_name(loss)
    if not isinstance(outputs, Tensor) or outputs.dim() < 2:
        found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise MisfitError(f"{name} needs outputs of shape (samples, classes); the model returned {found}.")
    classes = outputs.shape[1]
    probabilities = targets.is_floating_point() and targets.shape[1:] == outputs.shape[1:] and name == "cross_entropy"
    if probabilities:
        _check_probabilities(targets, where)
        return
    if targets.is_floating_point():
        advice = "For classes convert them with .long(); for a regression use mse_loss."
        raise MisfitError(f"{name} needs class numbers as targets{where}; these are {_dtype(targets)}. {advice}")
    if targets.dtype != torch.long:
        raise MisfitError(f"{name} needs targets{where} of dtype int64; these are {_dtype(targets)}. Use .long().")
    if targets.shape[1:] != outputs.shape[2:]:
        raise MisfitError(
            f"{name} needs one class number for each output{where}: outputs have shape {tuple(outputs.shape)}, targets "
            f"{tuple(targets.shape)}. {_advice_on_shapes(outputs.shape, targets.shape)}"
        )
    if classes == 1:
        raise MisfitError(
            f"{name} with a single output is always 0: a model of two classes needs two outputs, or one and "
            "binary_cross_entropy_with_logits."
        )
    ignored = loss_option(loss, "ignore_index", -100)
    counted = targets[targets != ignored]
    if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) < classes:
        low, high = int(counted.min()), int(counted.max())
        dense = outputs.dim() > 2
        ignore = " Where one of them stands for what is not counted, name it: ignore_index." if dense else ""
        raise MisfitError(
            f"{what}{where} run from {low} to {high}, out of bounds for a model with {classes} outputs, which "
            f"knows 0 to {classes - 1}. Give the model {high + 1} outputs, or renumber the targets from 0.{ignore}"
        )


def _advice_on_shapes(outputs: torch.Size, targets: torch.Size) -> str:
    """Says what to do where class numbers do not go with outputs (N, classes, ...)."""
    if targets[1:] == outputs[1:]:
        return "They look one-hot: use targets.argmax(1)."
    if len(targets) == len(outputs) and targets[1] == 1:
        return "Squeeze them: targets.squeeze(1)."
    if len(targets) > 1 and targets == outputs[:-1]:
        return "The outputs have the classes last, as in the task 'language_modeling': move them to dimension 1."
    if len(targets) == len(outputs) - 1 > 1:
        return "Resize the targets, or let the model return their size (torch.nn.functional.interpolate)."
    return "Give one class number for each sample." if len(outputs) == 2 else "Give one class number for each position."


def _check_probabilities(targets: Tensor, where: str) -> None:
    """Refuses what is taken for probabilities of classes and is none, as several labels at once."""
    sums = targets.float().sum(1)
    if bool((targets >= 0).all()) and bool((sums - 1).abs().max() <= _ROUNDING):
        return
    odd = float(sums.flatten()[(sums - 1).abs().argmax()])
    raise MisfitError(
        f"cross_entropy takes floating-point targets{where} for the probabilities of the classes, from 0 on and with "
        f"a sum of 1 for each sample; one of these sums up to {odd:g}. For several labels of a sample use the task "
        "'multilabel', for numbers the task 'regression'."
    )


def _check_weights(tensors: Mapping[str, Tensor], name: str, outputs: Tensor, given_as: Mapping[str, str]) -> None:
    for option, tensor in tensors.items():
        where = given_as.get(option, f"training.loss.options.{option}")
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


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
