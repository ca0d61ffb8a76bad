"""Optimizers by name or import path, and their parameter groups."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from pydantic import Field, ValidationInfo, field_validator, model_validator
from torch import nn
from torch.optim import Optimizer
from typing_extensions import Self

from evolve.config import KeyPath, Named, OptionFaults, Section, is_trusted, signature_faults, signature_of
from evolve.errors import EvolveError, UnknownNameError, did_you_mean
from evolve.plugins import import_callable, is_import_path
from evolve.surgery.optimizer.membership import DECAYED, KINDS, MATCH, belongs, has_rule, matches
from evolve.training.refused import refused_options

# What torch has and a run cannot use.
_UNUSABLE = {
    "LBFGS": "It evaluates the model several times a step, by a closure, and a run makes each step from one gradient. "
    "Use it in a loop of your own, with evolve.mutate or a MutationController.",
}
# Optimizers of torch that take sparse gradients.
_SPARSE = {"SGD", "Adagrad", "SparseAdam"}


def optimizer_class(name: str, trusted: bool = True) -> Callable[..., Any]:
    """Returns `torch.optim.<name>`, or what an import path stands for.

    Args:
        name: A class name in `torch.optim`, or an import path to a class or function that takes parameters or groups of
            them first: `timm.optim:Lion`.
        trusted: Whether the name comes from the user; an import path that does not is refused.

    Raises:
        UnknownNameError: If torch has no such optimizer, or the path cannot be imported.
    """
    known = [k for k, v in vars(torch.optim).items() if inspect.isclass(v) and issubclass(v, Optimizer)]
    known = [k for k in known if k != "Optimizer" and k not in _UNUSABLE]
    if name in known:
        cls: Callable[..., Any] = getattr(torch.optim, name)
        return cls
    if is_import_path(name):
        return import_callable(name, "optimizer", trusted)
    raise UnknownNameError(
        f"Unknown optimizer '{name}'.{did_you_mean(name, known)} Known: {', '.join(known)}. An import path such as "
        "timm.optim:Lion names another one."
        if name not in _UNUSABLE
        else f"A run cannot use {name}. {_UNUSABLE[name]}"
    )


class ParameterGroupConfig(Section):
    """Parameters of a model that get options of their own.

    Attributes:
        match: Globs of dotted names (`head.*`) or kinds: `bias`, `norm`, `embedding`, `vector`, `matrix`. A
            parameter that any of them matches belongs to the first group of the list that takes it.
        options: What is different for them, such as `{lr: 0.01, weight_decay: 0}`.
    """

    match: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("match", mode="before")
    @classmethod
    def _from_one_term(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class OptimizerConfig(Named):
    """An optimizer and its options.

    Attributes:
        name: Class name in `torch.optim`, such as "SGD" or "AdamW", or an import path such as "timm.optim:Lion".
        options: Its keyword arguments, such as `{lr: 0.1}`.
        groups: Parameters with options of their own; those that a mutation adds join the group that takes them.
        decay_biases_and_norms: Whether weight decay is for biases, normalisation layers and other vectors too.
    """

    name: str = "AdamW"
    groups: list[ParameterGroupConfig] = Field(default_factory=list)
    decay_biases_and_norms: bool = True

    @model_validator(mode="after")
    def _options_are_known(self, info: ValidationInfo) -> Self:
        try:
            function = optimizer_class(self.name, is_trusted(info))
        except UnknownNameError as error:
            raise OptionFaults([(("name",), str(error))]) from error
        parameters = signature_of(function) or {}
        first = set(list(parameters or ["params"])[:1])
        faults = [(("options", *key), message) for key, message in _option_faults(function, self.options, {}, first)]
        for index, group in enumerate([] if faults else self.groups):
            found = _option_faults(function, group.options, self.options, first)
            faults += [(("groups", index, "options", *key), message) for key, message in found]
        anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if not self.decay_biases_and_norms and "weight_decay" not in parameters and not anything:
            faults.append(
                (("decay_biases_and_norms",), f"is false, and {self.name} has no weight_decay. Leave it out.")
            )
        if faults:
            raise OptionFaults(faults)
        return self

    def build(self, model: nn.Module) -> Optimizer:
        """Returns the optimizer over the model's trainable parameters.

        Raises:
            EvolveError: If it refuses options or the model's parameters, or a name in `groups` matches nothing.
        """
        function = optimizer_class(self.name)
        self._check_parameters(model)
        groups = self._filled(model)
        try:
            optimizer = function(groups if has_rule(groups[0]) else groups[0]["params"], **self.options)
        except Exception as error:  # a class or function of the user's own may raise anything
            raise EvolveError(f"Optimizer {self.name} refuses its options {self.options}: {error}") from error
        if not isinstance(optimizer, Optimizer):
            raise EvolveError(
                f"'{self.name}' made a {type(optimizer).__name__}, not a torch.optim.Optimizer. Name a class or "
                "function that makes one."
            )
        return optimizer

    def _filled(self, model: nn.Module) -> list[dict[str, Any]]:
        """The parameter groups, in the order in which they take parameters; those that are empty may get some later."""
        rules: list[dict[str, Any]] = [{MATCH: group.match, **group.options} for group in self.groups]
        rules.append({})
        if not self.decay_biases_and_norms:
            halves: tuple[dict[str, Any], ...] = ({DECAYED: True}, {DECAYED: False, "weight_decay": 0.0})
            rules = [{**rule, **half} for rule in rules for half in halves]
        filled = [{**rule, "params": []} for rule in rules]
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                next(g for g in filled if belongs(g, model, name, parameter))["params"].append(parameter)
        return filled

    def _check_parameters(self, model: nn.Module) -> None:
        """Refuses globs that match nothing, and gradients that the optimizer cannot take.

        Raises:
            EvolveError: With the key or the parameter.
        """
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        for index, group in enumerate(self.groups):
            for term in group.match:
                if term not in KINDS and not any(matches(term, model, name, p) for name, p in named):
                    raise EvolveError(
                        f"optimizer.groups[{index}].match: '{term}' matches no trainable parameter."
                        f"{did_you_mean(term, [name for name, _ in named])} Give a glob of dotted names, such as "
                        f"'{named[-1][0].partition('.')[0] if named else 'head'}.*', or one of {', '.join(KINDS)}."
                    )
        for name, _ in named:
            sparse = bool(getattr(model.get_submodule(name.rpartition(".")[0]), "sparse", False))
            if self.name == "SparseAdam" and not sparse:
                raise EvolveError(
                    f"SparseAdam takes sparse gradients alone, which nn.Embedding(sparse=True) has; those of '{name}' "
                    "are dense. Use Adam or AdamW."
                )
            if sparse and self.name in vars(torch.optim) and self.name not in _SPARSE:
                raise EvolveError(
                    f"The gradients of '{name}' are sparse, and {self.name} takes dense ones alone. Use "
                    f"{', '.join(sorted(_SPARSE - {'SparseAdam'}))}, or an embedding with sparse=False."
                )


def _option_faults(
    function: Callable[..., Any], options: Mapping[str, Any], beside: Mapping[str, Any], skip: set[str]
) -> list[tuple[KeyPath, str]]:
    """Says what is wrong with options: by the signature, or by making an optimizer over a matrix of its own.

    Args:
        function: Makes the optimizer.
        options: To be checked.
        beside: Options that hold too, and are known to be right.
        skip: Parameters of the function that evolve gives itself.
    """
    found = signature_faults(function, {**beside, **options}, skip=skip, finite=True)
    return found or refused_options(
        lambda tried: function([nn.Parameter(torch.zeros(2, 2))], **{**beside, **tried}), options
    )
