"""Looking at how a task calls its model, without knowing the task."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from evolve.data.batches import form_of
from evolve.errors import MisfitError, described

_NOTHING = object()


class _Called(BaseException):
    """Ends a loss at its first call of the model; no Exception, so that a user's `except Exception` lets it pass."""


class StandIn:
    """Stands for a model while a task computes its loss, and notes the arguments of the first call.

    Args:
        model: Whose attributes it has, and who answers further calls.
        outputs: What the first call returns; nothing to end the loss there.
    """

    def __init__(self, model: nn.Module, outputs: Any = _NOTHING) -> None:
        self._model = model
        self._outputs = outputs
        self.arguments: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Notes the arguments."""
        if self.arguments is not None:
            return self._model(*args, **kwargs)
        self.arguments = args, kwargs
        if self._outputs is _NOTHING:
            raise _Called
        return self._outputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def arguments_of(loss: Callable[[Any, Any], Any], model: nn.Module, batch: Any) -> Any:
    """Returns what a loss calls the model with: a tensor, a tuple of arguments or a mapping of keyword arguments.

    The model is not run.

    Args:
        loss: `(model, batch) -> loss`.
        model: The model.
        batch: A batch.

    Raises:
        MisfitError: If it does not call the model, or fails before.
    """
    seen = StandIn(model)
    try:
        loss(seen, batch)
    except _Called:
        pass
    except MisfitError:  # says it all
        raise
    except Exception as error:  # a task of the user's own may raise anything
        stands = type(seen).__name__ in str(error)
        whole = " Call the model as a whole, model(...): what it is called with is what is verified." if stands else ""
        raise MisfitError(
            f"The task fails on its batch before it calls the model: {described(error).rstrip('.')}. The batch is "
            f"{form_of(batch)}.{whole}"
        ) from error
    if seen.arguments is None:
        raise MisfitError(
            f"The loss of the task never calls the model ({type(model).__name__}): write model(...), so that mutations "
            "can be verified on the same arguments."
        )
    args, kwargs = seen.arguments
    if not kwargs:
        return args[0] if len(args) == 1 else args
    if args:
        names = [
            p.name for p in inspect.signature(model.forward).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD
        ]
        kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
    return kwargs


def loss_of_outputs(loss: Callable[[Any, Any], Any], model: nn.Module, batch: Any) -> Callable[[Any], Any]:
    """Returns the loss as a function of what the model's first call in it returns."""
    return lambda outputs: loss(StandIn(model, outputs), batch)
