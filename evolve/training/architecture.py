"""What a run's model consisted of when it began and consists of now, for whoever looks at the run without its code."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from evolve.errors import NotApplicable
from evolve.structure.latency import latency
from evolve.structure.sites import STORE

logger = logging.getLogger(__name__)

_LONGEST = 200  # letters of what a module says of itself


class ModuleLine(BaseModel):
    """One module.

    Attributes:
        name: Dotted name, "" for the model.
        kind: Its class.
        settings: What its `extra_repr` says, such as "16, 32, kernel_size=(3, 3)".
        params: Elements of the parameters that are its own; shared ones count once.
        inserted: Names of the blocks that evolve set to work at it.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    kind: str
    settings: str = ""
    params: int = 0
    inserted: list[str] = Field(default_factory=list)


class Timed(BaseModel):
    """How long a model took.

    Attributes:
        step: Optimizer steps made when it was measured.
        seconds: Of one forward pass of the probe batch in eval mode.
    """

    model_config = ConfigDict(frozen=True)

    step: int
    seconds: float


class Architecture(BaseModel):
    """What `architecture.json` holds.

    Attributes:
        version: Of this form.
        first: The model when the run began; None where that was not written down.
        last: The model after the last epoch.
        latency: One for each architecture that an epoch ended with.
    """

    model_config = ConfigDict(frozen=True)

    version: int = 1
    first: list[ModuleLine] | None = None
    last: list[ModuleLine] = Field(default_factory=list)
    latency: list[Timed] = Field(default_factory=list)

    def now(self, model: nn.Module, inputs: Any, step: int) -> Architecture:
        """Returns it with the model as it stands; its latency is measured if it has changed.

        Args:
            model: As it stands.
            inputs: The probe batch.
            step: Optimizer steps made.
        """
        listed = module_lines(model)
        earlier = [timed for timed in self.latency if timed.step <= step]  # the run may have gone back
        if listed == self.last and earlier == self.latency and earlier:
            return self
        seconds = _measured(model, inputs)
        timed = [] if seconds is None else [Timed(step=step, seconds=seconds)]
        return self.model_copy(update={"last": listed, "latency": [*earlier, *timed]})


def module_lines(model: nn.Module) -> list[ModuleLine]:
    """Returns every module of a model, outermost first."""
    seen: set[int] = set()
    lines = []
    for name, module in model.named_modules():
        own = {id(parameter): parameter.numel() for parameter in module.parameters(recurse=False)}
        lines.append(
            ModuleLine(
                name=name,
                kind=type(module).__name__,
                settings=_settings(module),
                params=sum(count for each, count in own.items() if each not in seen),
                inserted=[f"{STORE}.{link.name}" for link in getattr(module, "_evolve_links", ())],
            )
        )
        seen |= own.keys()
    return lines


def total(lines: Sequence[ModuleLine]) -> int:
    """Returns the parameters of a model."""
    return sum(line.params for line in lines)


def _settings(module: nn.Module) -> str:
    try:
        return " ".join(module.extra_repr().split())[:_LONGEST]
    except Exception as error:  # a user's own, which nobody may have called before
        logger.debug("%s.extra_repr fails: %s", type(module).__name__, error)
        return ""


def _measured(model: nn.Module, inputs: Any) -> float | None:
    try:
        return latency(model, inputs, modules=False)[""]
    except NotApplicable as error:
        logger.debug("The latency is not known: %s", error)
        return None
