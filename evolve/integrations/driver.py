"""A controller driven by the hooks of somebody else's loop."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from evolve.errors import CheckpointError, EvolveError
from evolve.evolver.controller import MutationController
from evolve.lineage import Record


class Driver:
    """Takes the events of a training in the order in which libraries tell of them, and makes mutations in between.

    A library tells of a step before it evaluates, and may save a checkpoint in between. So the last step of an epoch
    is counted only when its metrics are known, and a mutation that is due is made right before the next step: whatever
    is saved in between is a state that a training can be taken up from.

    Args:
        controller: Of a loop that has no probe batch yet: the first training batch becomes it.
        model: Whose forward is watched for that batch.

    Attributes:
        open: Whether the training is still going on.
    """

    def __init__(self, controller: MutationController, model: nn.Module) -> None:
        self.controller = controller
        self.open = True
        self._model = model
        self._last: float | Tensor | None = None  # the loss of the last step of an epoch that has no metrics yet
        self._watch: Any = model.register_forward_pre_hook(self._first_batch, with_kwargs=True)

    @property
    def records(self) -> list[Record]:
        """The records so far."""
        return self.controller.lineage.records

    def before_batch(self) -> None:
        """To be called before the forward pass that begins a step: makes the mutation that is due.

        Raises:
            EvolveError: If no forward pass of the model was seen in training.
        """
        if not self.controller.due:
            return
        if self._watch is not None:
            raise EvolveError(
                f"The training steps do not call {type(self._model).__name__} itself, so there is no batch to verify a "
                "mutation on. Call the module (not its methods or its parts) in the training step."
            )
        self.controller.mutate()

    def before_step(self) -> None:
        """To be called when gradients are complete."""
        self.controller.before_step()

    def after_step(self, loss: float | Tensor, epoch_ends: bool) -> None:
        """To be called when the optimizer has made its step.

        Args:
            loss: Of the step.
            epoch_ends: Whether it was the last of its epoch: `end_epoch` has to follow.
        """
        self.end_epoch()  # whose metrics did not come
        if epoch_ends:
            self._last = loss
        else:
            self.controller.after_step(loss)

    def measured(self, metrics: Mapping[str, float]) -> None:
        """To be called when held-out data were evaluated: at the end of an epoch, or within one."""
        if self._last is not None:
            self.end_epoch(metrics)
        else:
            self.controller.end_epoch(metrics)

    def end_epoch(self, metrics: Mapping[str, float] | None = None) -> None:
        """To be called when an epoch is over, with what was measured if `measured` was not called at its end."""
        if self._last is not None:
            loss, self._last = self._last, None
            self.controller.after_step(loss, metrics or {})

    def close(self) -> None:
        """Takes its hands off the model."""
        self.open = False
        self._unwatch()

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.remove()
            self._watch = None

    def state(self) -> dict[str, Any]:
        """Returns what a resumed training needs beside weights, optimizers and records, as plain values and tensors.

        A mutation that is on probation counts as kept from then on.
        """
        last = float(self._last) if self._last is not None else None
        return {
            "controller": self.controller.state(keep=True),
            "probe": self.controller.loop.example,
            "last": last,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` returned, once the records are replayed.

        Raises:
            CheckpointError: If it is damaged or does not fit.
        """
        if not isinstance(state, Mapping) or set(state) != {"controller", "probe", "last"}:
            raise CheckpointError("What the checkpoint holds of evolve's state is damaged. Resume from another one.")
        self.controller.load_state(state["controller"])
        self._last = state["last"]
        if state["probe"] is not None:
            self._unwatch()
            self.controller.loop.example = state["probe"]

    def _first_batch(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if model.training:
            self.controller.loop.example = probe_batch(model, args, kwargs, self.controller.config.probe)
            self._unwatch()


def probe_batch(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], samples: int) -> Any:
    """Returns the arguments of a forward pass as a probe batch of a few samples.

    Args:
        model: That they were given to.
        args: Positional arguments. The first axis of a tensor counts samples where it is as long as that of the first.
        kwargs: Keyword arguments.
        samples: How many samples to keep.
    """
    sizes = [leaf.shape[0] for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor) and leaf.dim()]

    def few(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        whole = not leaf.dim() or leaf.shape[0] != sizes[0]
        return (leaf if whole else leaf[:samples]).detach().clone()

    if args and kwargs:
        named = inspect.signature(model.forward).bind(*args, **kwargs).arguments
        return tree_map(few, {name: value for name, value in named.items() if name not in kwargs} | dict(kwargs))
    return tree_map(few, dict(kwargs) if kwargs else tuple(args))


def numbers(metrics: Mapping[str, Any], monitor: str | None) -> dict[str, float]:
    """Returns the numbers among a library's metrics, with the one that is monitored as `val_loss`.

    Args:
        metrics: By their names there.
        monitor: What schedules, policies and probation know as `val_loss`; None for none.
    """
    found = {name: float(value) for name, value in metrics.items() if _is_number(value)}
    return found | ({"val_loss": found[monitor]} if monitor in found else {})


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1
    return isinstance(value, int | float) and not isinstance(value, bool)


class Driven:
    """What callbacks of other libraries have in common: mutations by a driver, while a training goes on."""

    _driver: Driver | None = None
    _records: list[Record]  # of the model as it stands, where no training is going on

    @property
    def records(self) -> list[Record]:
        """The records of all mutations, applied or refused, that led to the model as it stands."""
        return self._records if self._driver is None else self._driver.records

    @property
    def controller(self) -> MutationController:
        """What makes the mutations; there is one from the start of a training on.

        Raises:
            EvolveError: Before that.
        """
        if self._driver is None:
            raise EvolveError("There is no controller before the training has begun.")
        return self._driver.controller
