"""In place or not at all: everything a mutation may touch, remembered, and put back on demand."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType

from torch import nn

from evolve.runtime.generators import preserved_rng
from evolve.runtime.settings import ProcessSettings
from evolve.structure.isolation import ModuleState
from evolve.structure.unworkable import refuse_wrapped
from evolve.surgery.optimizer import Optimizers, OptimizerState, as_optimizers


class Transaction:
    """Remembers model and optimizer on entry; an exception, or `rollback()`, puts them back bit for bit.

    Weights, buffers, gradients, classes, attributes, modes, hooks, optimizer groups and state are covered. The random
    number generators of Python, NumPy, torch and its accelerator are as before on every exit; settings that concern the
    whole process (`ProcessSettings`) on the exit of a transaction that was rolled back. Takes the memory of one more
    copy of parameters, buffers, gradients and optimizer state while it is open.

    Args:
        model: The root module.
        optimizer: Its optimizer, if there is one, or several; those inside others are covered too.

    Raises:
        NotApplicable: On entry, if the model is wrapped, sharded or exported.

    Example:
        >>> with evolve.transaction(model, optimizer) as change:
        ...     ok, message = evolve.mutate(model, "residual", optimizer=optimizer)
        ...     change.rollback()
    """

    def __init__(self, model: nn.Module, optimizer: Optimizers | None = None) -> None:
        self.model = model
        self.optimizer = optimizer

    def __enter__(self) -> Transaction:
        refuse_wrapped(self.model)
        with ExitStack() as stack:
            stack.enter_context(preserved_rng())  # which other threads wait for
            self._gradients = [(parameter, parameter.grad) for parameter in self.model.parameters()]
            self._rolled_back, self._settings = False, ProcessSettings()
            self._state = ModuleState(self.model, parameters=True)
            self._optimizer_state = OptimizerState(as_optimizers(self.optimizer))
            self._stack = stack.pop_all()
        return self

    def rollback(self) -> None:
        """Puts everything back. May be called once or more often while the transaction is open."""
        self._rolled_back = True
        for parameter in self.model.parameters():
            parameter.grad = None
        self._state.restore()
        self._optimizer_state.restore()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if error is not None:
                self.rollback()
            if self._rolled_back:
                self._settings.restore()
            del self._gradients, self._settings, self._state, self._optimizer_state
