"""An exponential moving average of the weights that follows a model through its mutations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from evolve.surgery.parts import renamed_keys
from evolve.surgery.resize import Cut, recut_copy

_SPAN = 0.25  # of the steps so far: over about so many an average reaches that has no decay of its own


class EMA:
    """Averaged parameters, by name; buffers are used as they stand (Polyak and Juditsky, 1992).

    The n-th update keeps at most (1 + n) / (10 + n) of the old average, so that the untrained weights it begins with
    are soon forgotten.

    Without a decay the average reaches over about a quarter of the steps so far, whatever the length of the run: a
    power-function average (Karras et al. 2024, Analyzing and improving the training dynamics of diffusion models).
    It stands for what the weights would come to if the learning rate fell now; as that falls there is less to average
    and the reach shrinks with it, to none where it is zero.

    Args:
        model: The model to follow.
        decay: Share of the old average that is kept at each step, in (0, 1); None for a reach that grows.
    """

    def __init__(self, model: nn.Module, decay: float | None = None) -> None:
        self.decay = decay
        self.updates = 0
        self.shadow: dict[str, Tensor] = {}
        self._highest = 0.0  # learning rate so far
        self.follow(model)

    @torch.no_grad()
    def update(self, model: nn.Module, lr: float | None = None) -> None:
        """Moves the averages towards the model's parameters.

        Args:
            model: After a training step.
            lr: The learning rate of it; None for one that never changes.
        """
        parameters = dict(model.named_parameters())
        self.updates += 1
        kept = self._reach(lr) if self.decay is None else min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.shadow.values()), [parameters[name].detach() for name in self.shadow], 1 - kept)

    def _reach(self, lr: float | None) -> float:
        """What is kept of an average over a part of the steps so far."""
        self._highest = max(self._highest, lr or 0.0)
        part = 1.0 if lr is None or not self._highest else lr / self._highest
        steps = _SPAN * part * self.updates
        return steps / (steps + 1)

    def state_dict(self) -> dict[str, Any]:
        """Returns the averages, by parameter name, and how many updates they have had; tensors are not copied."""
        return {"shadow": self.shadow, "updates": self.updates, "highest": self._highest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned; averages go to the device of those there are."""
        places = {name: value.device for name, value in self.shadow.items()}
        usual = next(iter(places.values()), None)
        self.updates, self._highest = state["updates"], state["highest"]
        self.shadow = {name: value.to(places.get(name, usual)) for name, value in state["shadow"].items()}

    def rename(self, names: Mapping[str, str]) -> None:
        """Keeps averages under the names that parameters have now: old names, with the new ones."""
        self.shadow = renamed_keys(self.shadow, names)

    def follow(self, model: nn.Module, cuts: Sequence[Cut] = (), redrawn: Sequence[str] = ()) -> None:
        """After a mutation: averages are cut as their parameters were; what is new begins at its present value.

        Args:
            model: After the mutation.
            cuts: What it did to the axes of parameters.
            redrawn: Parameters that took other values as a whole: an average with the old ones would be of neither.
        """
        shadow = {}
        for name, parameter in model.named_parameters():
            present = parameter.detach()
            known = None if name in redrawn else self.shadow.get(name)
            if known is not None:
                known = recut_copy(known, [cut for cut in cuts if cut.name == name], present)
            keep = known is not None and known.shape == present.shape
            shadow[name] = known if keep and known is not None else present.clone()
        self.shadow = shadow

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Lets the model bear the averaged parameters for a while."""
        parameters = dict(model.named_parameters())
        kept = {name: parameters[name].detach().clone() for name in self.shadow}
        try:
            _assign(parameters, self.shadow)
            yield
        finally:
            _assign(parameters, kept)


@torch.no_grad()
def _assign(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        parameters[name].copy_(value)
