"""Operators from plain functions: the shortest way to a mutation of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import ConfigDict
from torch import nn

from evolve.errors import NotApplicable
from evolve.lineage import Preserves
from evolve.operators.base import Change, MutationOperator, OperatorOptions, operators
from evolve.structure.probe import Probe
from evolve.structure.sites import Site
from evolve.structure.tracing.tape import Shape


@dataclass(frozen=True)
class Context:
    """What a function operator is told.

    Attributes:
        options: The options given in the YAML or to `mutate`.
        shapes: Input and output shape of the site on the probe batch; None where it was not reached.
    """

    options: Mapping[str, Any]
    shapes: tuple[Shape, Shape] | None


EditFunction = Callable[[nn.Module, str, Context], tuple[bool, str]]


class FunctionOptions(OperatorOptions):
    """Any options: the function checks its own."""

    model_config = ConfigDict(frozen=True, extra="allow")


class FunctionOperator(MutationOperator):
    """Runs a function `(model, site, context) -> (success, message)` as an operator."""

    function: ClassVar[EditFunction]
    Options = FunctionOptions

    def plan(self, model: nn.Module, site: Site, probe: Probe) -> dict[str, Any]:
        """Keeps the site's shapes for replay."""
        try:
            shapes = probe.shapes(site)
        except NotApplicable:  # the site takes or gives no single tensor: the function is told that there are no shapes
            shapes = None
        return {"shapes": [list(shape) for shape in shapes] if shapes else None}

    def apply(self, model: nn.Module, site: Site, plan: Mapping[str, Any]) -> Change:
        """Calls the function; `(False, message)` declines."""
        shapes = tuple(tuple(shape) for shape in plan["shapes"]) if plan["shapes"] else None
        context = Context(self.options.model_dump(), shapes)  # type: ignore[arg-type]
        answer = type(self).function(model, site.name, context)
        match answer:
            case (bool(success), str(message)):
                pass
            case _:
                raise TypeError(f"The operator '{self.name}' has to return (bool, str); it returned {answer!r}.")
        if not success:
            raise NotApplicable(message)
        return Change(message)


def operator(name: str, *, preserves: Preserves = "no") -> Callable[[EditFunction], EditFunction]:
    """Registers a function `(model, site, context) -> (success, message)` as the mutation operator `name`.

    The function edits the model with plain PyTorch statements. It gets what a built-in operator gets: transaction,
    verification, optimizer care, log and replay. It must do the same for the same seed.

    Args:
        name: How the YAML and `mutate` call it.
        preserves: What it promises about the model's function: "exact", "approximate" or "no".

    Example:
        >>> @evolve.operator("wider_head", preserves="no")
        ... def wider_head(model, site, context):
        ...     model.head = nn.Linear(model.head.in_features, 20)
        ...     return True, "The head has 20 outputs now."
    """

    def register(function: EditFunction) -> EditFunction:
        identity = {
            "__module__": function.__module__,
            "__qualname__": function.__qualname__,
            "__doc__": function.__doc__,
        }
        body = {"preserves": preserves, "function": staticmethod(function), **identity}
        operators.register(name)(type(function.__name__, (FunctionOperator,), body))
        return function

    return register
