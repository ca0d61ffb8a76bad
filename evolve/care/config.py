"""The `care` section of a configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from evolve.config import Section
from evolve.operators.shrink_perturb import ShrinkPerturb

Steps = Annotated[int, Field(ge=0)]


class RewarmConfig(Section):
    """A learning rate that rises, or falls, to the schedule's after a mutation.

    Attributes:
        steps: Optimizer steps until the schedule's is reached.
        start: Factor of the schedule's learning rate at first; from there it moves to 1 in a line.
        scope: Whether what is `new` is warmed up, or `all` of the model.
    """

    steps: Annotated[int, Field(ge=1)]
    start: Annotated[float, Field(ge=0)] = 0.0
    scope: Literal["new", "all"] = "new"


class SparsityConfig(Section):
    """What lets the members of groups that matter least go to zero before `narrow` takes them out.

    Attributes:
        strength: Of what is added to the gradients; 5e-4 in the paper, for SGD.
        until_narrowed: It ends when so many mutations by `narrow` have been applied.
    """

    strength: Annotated[float, Field(gt=0)] = 5e-4
    until_narrowed: Annotated[int, Field(ge=1)] = 1


class CareConfig(Section):
    """Care before, during and after mutations.

    Attributes:
        shrink: Options of `shrink_perturb`, which follows each growth then; null for none.
        rewarm: Learning rates after a growth; null for those of the schedule.
        moments: Whether the optimizer's state is kept at a growth, or begins anew for all of the model.
        decay_grace: Optimizer steps in which what is new has no weight decay.
        batchnorm: Batches that the running statistics of BatchNorm are taken from anew after a mutation.
        watch: Optimizer steps after which new units that have had no gradient are told; 0 for never.
        sparsity: A regulariser before the model is narrowed; null for none.
    """

    shrink: ShrinkPerturb.Options | None = None
    rewarm: RewarmConfig | None = None
    moments: Literal["carry", "reset"] = "carry"
    decay_grace: Steps = 0
    batchnorm: Steps = 0
    watch: Steps = 10
    sparsity: SparsityConfig | None = None
