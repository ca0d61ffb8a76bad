"""Losses by name: functions of torch.nn.functional, or code of the user's own."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, get_args

import torch
from pydantic import ValidationInfo, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from evolve.config import KeyPath, Named, OptionFaults, is_trusted, signature_faults, signature_of
from evolve.errors import UnknownNameError, did_you_mean
from evolve.plugins import import_callable, is_import_path

Loss = Callable[[Any, Any], Tensor]

# Losses of torch whose outputs and targets are compared element by element: both have one shape and are floats.
ELEMENTWISE = frozenset(
    {"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits"}
    | {"kl_div", "poisson_nll_loss", "soft_margin_loss", "multilabel_soft_margin_loss", "gaussian_nll_loss"}
    | {"hinge_embedding_loss"}
)
# Those of them that want a weight for each element of a batch.
_WEIGHTED_ELEMENTS = frozenset({"mse_loss", "l1_loss", "huber_loss"})
# Those whose targets are class numbers.
OF_CLASSES = frozenset({"cross_entropy", "nll_loss", "multi_margin_loss"})


class LossConfig(Named):
    """A loss: a function of `torch.nn.functional`, or an import path to `(outputs, targets) -> scalar tensor`.

    An import path may also name a loss class of torch's kind, `torch.nn:HuberLoss`. Lists among the options become
    tensors where the loss takes tensors.
    """

    name: str = "cross_entropy"

    @model_validator(mode="after")
    def _loss_is_known(self, info: ValidationInfo) -> Self:
        try:
            function = self._find(is_trusted(info))
        except UnknownNameError as error:
            raise OptionFaults([(("name",), str(error))]) from error
        parameters = list(signature_of(function) or ())
        given = set() if inspect.isclass(function) else set(parameters[:2])
        faults = [
            *signature_faults(function, self.options, skip=given, finite=True),
            *_tensor_faults(function, self.options),
        ]
        if self.options.get("reduction", "mean") not in ("mean", "sum"):
            faults.append((("reduction",), "has to be mean or sum: a run needs one number to minimise."))
        if faults:
            raise OptionFaults([(("options", *path), message) for path, message in faults])
        return self

    def _find(self, trusted: bool = True) -> Callable[..., Any]:
        if self.name in known_losses():
            function: Callable[..., Any] = getattr(nn.functional, self.name)
            return function
        if is_import_path(self.name):
            return import_callable(self.name, "loss", trusted)
        known = known_losses()
        raise UnknownNameError(
            f"Unknown loss '{self.name}': neither a loss of torch.nn.functional nor an import path 'module:name'."
            f"{did_you_mean(self.name, known)} Known: {', '.join(known)}."
        )

    def build(self) -> Loss:
        """Returns the loss with its options bound."""
        function = self._find()
        tensors = {
            name: torch.tensor(value, dtype=torch.float32)
            for name, value in self.options.items()
            if name in _tensor_parameters(function) and isinstance(value, list)
        }
        plain = {name: value for name, value in self.options.items() if name not in tensors}
        if inspect.isclass(function):
            made: Any = function(**plain, **tensors)
            return _ModuleLoss(made) if isinstance(made, nn.Module) else made
        if tensors:
            return TensorLoss(partial(function, **plain), tensors)
        return partial(function, **plain) if plain else function


class TensorLoss:
    """A loss with options that are tensors, which go where the outputs are and take their dtype.

    Attributes:
        tensors: The options that are tensors.
    """

    def __init__(self, function: Loss, tensors: dict[str, Tensor]) -> None:
        self.function = function
        self.tensors = tensors

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        """Returns the loss."""
        if isinstance(outputs, Tensor):
            mixed = torch.is_autocast_enabled(outputs.device.type)
            dtype = outputs.dtype if outputs.is_floating_point() and not mixed else torch.float32
            self.tensors = {name: tensor.to(outputs.device, dtype) for name, tensor in self.tensors.items()}
        return self.function(outputs, targets, **self._options(outputs))

    def _options(self, outputs: Any) -> dict[str, Tensor]:
        spread = loss_name(self) in _WEIGHTED_ELEMENTS and isinstance(outputs, Tensor)
        return {name: tensor.expand_as(outputs) if spread else tensor for name, tensor in self.tensors.items()}


class _ModuleLoss:
    """A loss class of torch's kind; its weights go where the outputs are."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        if isinstance(outputs, Tensor):
            self.module.to(outputs.device)
        loss: Tensor = self.module(outputs, targets)
        return loss


def known_losses() -> list[str]:
    """Returns the losses of torch.nn.functional that take outputs and targets."""
    names = [*ELEMENTWISE, *OF_CLASSES, "multilabel_margin_loss"]
    return sorted(name for name in names if hasattr(nn.functional, name))


def loss_name(loss: Loss) -> str:
    """Returns the name of torch's loss that a loss is, with options or without; "" for any other."""
    function: Any = loss.function if isinstance(loss, TensorLoss) else loss
    function = function.func if isinstance(function, partial) else function
    name = getattr(function, "__name__", "")
    return name if getattr(nn.functional, name or " ", None) is function else ""


def loss_option(loss: Loss, name: str, default: Any) -> Any:
    """Returns an option of one of torch's losses, given to it or to a module of torch's kind."""
    if isinstance(loss, _ModuleLoss | nn.Module):
        return getattr(loss.module if isinstance(loss, _ModuleLoss) else loss, name, default)
    if isinstance(loss, TensorLoss) and name in loss.tensors:
        return loss.tensors[name]
    function: Any = loss.function if isinstance(loss, TensorLoss) else loss
    return getattr(function, "keywords", {}).get(name, default)


def averaged_over(loss: Loss) -> Callable[[Any], float] | None:
    """Returns what tells what one of torch's losses takes its mean over: targets not ignored, by their weights.

    Args:
        loss: As `LossConfig` builds them, or a `CrossEntropyLoss` or `NLLLoss`.

    Returns:
        A function of the loss's targets, a tensor of any shape; None for another loss, and for a sum.
    """
    module = loss.module if isinstance(loss, _ModuleLoss) else loss
    name = loss_name(loss)
    of_classes = name in ("cross_entropy", "nll_loss") or isinstance(module, nn.CrossEntropyLoss | nn.NLLLoss)
    if not (name or of_classes) or loss_option(loss, "reduction", "mean") != "mean":
        return None
    if not of_classes:
        return Tensor.numel
    ignored, weight = loss_option(loss, "ignore_index", -100), loss_option(loss, "weight", None)

    def counted(targets: Tensor) -> float:
        if targets.is_floating_point():
            return targets.numel()
        counts = targets != ignored
        if weight is None:
            return int(torch.count_nonzero(counts))  # the quickest way: it is asked in each step
        return float(weight.to(targets.device)[targets[counts]].sum())

    return counted


def _tensor_parameters(function: Callable[..., Any]) -> set[str]:
    """Names of the parameters that take a tensor, by their annotations."""
    parameters = signature_of(function) or {}
    return {n for n, p in parameters.items() if p.annotation is Tensor or Tensor in get_args(p.annotation)}


def _tensor_faults(function: Callable[..., Any], options: Mapping[str, Any]) -> list[tuple[KeyPath, str]]:
    parameters = signature_of(function) or {}
    faults: list[tuple[KeyPath, str]] = []
    for name in _tensor_parameters(function) & options.keys():
        value, kinds = options[name], get_args(parameters[name].annotation)
        if value is None or isinstance(value, Tensor) or (float in kinds and _is_number(value)):
            continue
        if not (isinstance(value, list) and value and _is_numbers(value)):
            faults.append(((name,), f"has to be a list of numbers, such as [1.0, 5.0]; found {value!r:.60}."))
    return faults


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_numbers(value: list[Any]) -> bool:
    """Whether it is a list of numbers, or of lists of numbers of one length."""
    if all(map(_is_number, value)):
        return True
    return all(isinstance(row, list) and row and _is_numbers(row) for row in value) and len(set(map(len, value))) == 1
