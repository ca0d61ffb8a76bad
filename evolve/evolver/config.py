"""The `evolution` section of a configuration."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator
from typing_extensions import Self

from evolve.care import CareConfig
from evolve.config import KeyPath, Named, OptionFaults, Section
from evolve.config.options import Watched, check_options
from evolve.errors import did_you_mean
from evolve.evolver.probation import ProbationConfig
from evolve.mutation.limits import Limits
from evolve.operators import operators
from evolve.policies import PolicyConfig
from evolve.schedules import ScheduleConfig
from evolve.training.metrics import METRICS


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

    @model_validator(mode="after")
    def _parts_go_together(self) -> Self:
        faults = self.policy.build().faults([operator.name for operator in self.operators])
        if faults:
            raise OptionFaults([(("policy", "options", *path), message) for path, message in faults])
        if faults := self._metric_faults():
            raise OptionFaults(faults)
        if self.schedule is not None and not self.operators:
            raise OptionFaults([(("operators",), "is empty: a schedule needs operators, such as [{name: residual}].")])
        return self

    def watched(self) -> list[tuple[KeyPath, Watched]]:
        """Returns the metrics that schedule and policy look at, and the options that name them."""
        found = {"policy": self.policy.build().watched()}
        if self.schedule is not None:
            found["schedule"] = self.schedule.build().watched()
        return [((part, "options", seen.option), seen) for part, watched in found.items() for seen in watched]

    def _metric_faults(self) -> list[tuple[KeyPath, str]]:
        faults: list[tuple[KeyPath, str]] = []
        for path, seen in self.watched():
            better = "max" if seen.metric.endswith("accuracy") else "min" if seen.metric.endswith("loss") else None
            if seen.metric not in METRICS:
                known = ", ".join(METRICS)
                faults.append(
                    (path, f"no run measures '{seen.metric}'.{did_you_mean(seen.metric, METRICS)} Known: {known}.")
                )
            elif seen.mode and better and seen.mode != better:
                way = "rises" if better == "max" else "falls"
                faults.append(
                    (path, f"'{seen.metric}' {way} as a model gets better, and mode: {seen.mode} is the other way.")
                )
        return faults
