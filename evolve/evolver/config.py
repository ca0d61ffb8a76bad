"""The `evolution` section of a configuration."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field, model_validator
from typing_extensions import Self

from evolve.care import CareConfig
from evolve.config import KeyPath, Named, OptionFaults, Section
from evolve.config.options import Monitor, Watched, Watching, check_options
from evolve.evolver.presets import with_preset
from evolve.evolver.probation import ProbationConfig
from evolve.mutation.limits import Limits
from evolve.operators import operators
from evolve.policies import PolicyConfig
from evolve.schedules import ScheduleConfig


class OperatorConfig(Named):
    """An operator with its options.

    Attributes:
        sites: Dotted names of the places to use; null for every place where it applies, the operator's default first.
    """

    sites: Annotated[list[str], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _known(self) -> Self:
        check_options(self, operators)
        return self


class EvolutionConfig(Section):
    """When, what and how far to mutate.

    `auto`, or `{preset: auto, ...}` with what is to differ, stands for the preset of `evolve.evolver.presets`.

    Attributes:
        schedule: When a mutation is due; null for never.
        policy: Which operator, and where.
        operators: Those to choose from.
        limits: Caps that no mutation may pass.
        repay: Epochs for which the budget left must pay after a growth; a larger model than that is refused with the
            figure. Null for none.
        care: What is done for the model after a mutation.
        probation: How mutations are put to the test; null keeps them at once.
        attempts: Candidates to try when a mutation is due, until one is applied.
        probe: Samples of the training data that each mutation is verified on.
    """

    schedule: ScheduleConfig | None = None
    policy: PolicyConfig = PolicyConfig()
    operators: list[OperatorConfig] = Field(default_factory=list)
    limits: Limits = Limits()
    repay: Annotated[float, Field(gt=0)] | None = None
    care: CareConfig = CareConfig()
    probation: ProbationConfig | None = None
    attempts: Annotated[int, Field(ge=1)] = 3
    probe: Annotated[int, Field(ge=2)] = 8

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, value: Any) -> Any:
        return with_preset(value)

    @model_validator(mode="after")
    def _parts_go_together(self) -> Self:
        faults = self.policy.build().faults([operator.name for operator in self.operators])
        if faults:
            raise OptionFaults([(("policy", "options", *path), message) for path, message in faults])
        if self.schedule is not None and not self.operators:
            raise OptionFaults([(("operators",), "is empty: a schedule needs operators, such as [{name: residual}].")])
        needed = self.schedule.build().needs_operator if self.schedule is not None else ""
        if self.schedule is not None and needed and needed not in {operator.name for operator in self.operators}:
            raise OptionFaults([(("operators",), f"lacks {needed}, which the schedule {self.schedule.name} looks at.")])
        return self

    def watched(self, monitor: Monitor | None = None) -> list[tuple[KeyPath, Watched]]:
        """Returns the metrics that are looked at, and the options that name them.

        Args:
            monitor: That of the run.
        """
        looked_at = monitor or Monitor()
        parts: dict[str, Watching] = {"policy": self.policy.build()}
        if self.schedule is not None:
            parts["schedule"] = self.schedule.build()
        found: list[tuple[KeyPath, Watched]] = []
        for name, part in parts.items():
            part.follow(looked_at)
            said = getattr(part.options, "mode", None) is not None
            for seen in part.watched():
                guessed = not said and seen.mode is not None and not looked_at.knows(seen.metric)
                found.append(((name, "options", seen.option), replace(seen, guessed=guessed)))
        if self.probation is not None and self.probation.metric is not None:
            metric = self.probation.metric
            found.append((("probation", "metric"), Watched("metric", metric, guessed=not looked_at.knows(metric))))
        return found
