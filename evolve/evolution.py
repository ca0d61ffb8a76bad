"""The evolution section of a configuration, and one round of attempts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import Self

from evolve.care import CareConfig, grown
from evolve.config import Named, OptionFaults, Section
from evolve.limits import Limits
from evolve.lineage import Lineage
from evolve.mutation import MutationResult, mutate, sites
from evolve.operators import operators
from evolve.options import check_options
from evolve.policies import Candidate, Policy, PolicyConfig
from evolve.probation import ProbationConfig
from evolve.schedules import ScheduleConfig
from evolve.structure.probe import Loss
from evolve.structure.sites import EVERYWHERE


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
        if self.schedule is not None and not self.operators:
            raise OptionFaults([(("operators",), "is empty: a schedule needs operators, such as [{name: residual}].")])
        return self


class Round:
    """Tries candidates, one after the other, until one is applied.

    `limits` are those of the configuration; whoever knows the budget may set tighter ones before an attempt.

    Args:
        config: What may be tried.
        lineage: Takes the records.
        example: Probe batch.
        seed: From which each attempt's own seed is derived.
        loss: Of the model's outputs on the probe batch, for operators that look at gradients.
    """

    def __init__(
        self, config: EvolutionConfig, lineage: Lineage, example: Tensor, seed: int, loss: Loss | None = None
    ) -> None:
        self.policy: Policy = config.policy.build()
        self.lineage = lineage
        self.limits = config.limits
        self._config = config
        self._example = example
        self._seed = seed
        self._loss = loss

    def attempt(self, model: nn.Module, optimizer: Optimizer, note: Mapping[str, Any]) -> list[MutationResult]:
        """Makes up to `attempts` attempts and returns what became of them; at most one is applied.

        Where it is a growth and `care.shrink` is set, `shrink_perturb` of the whole model follows, as an attempt of its
        own.
        """
        answers = []
        candidates = self.candidates(model)
        for _ in range(self._config.attempts if candidates else 0):
            chosen = self.policy.choose(candidates)
            if chosen is None:
                break
            result = self._mutate(model, optimizer, chosen, note)
            answers.append(replace(result, record=self.lineage.append(result.record)))
            if result:
                break
        if answers and grown(answers[-1]) and self._config.care.shrink is not None:
            shrink = Candidate("shrink_perturb", EVERYWHERE, self._config.care.shrink.model_dump())
            result = self._mutate(model, optimizer, shrink, {**note, "reason": "care.shrink after a growth"})
            answers.append(replace(result, record=self.lineage.append(result.record)))
        return answers

    def candidates(self, model: nn.Module) -> list[Candidate]:
        """Returns what could be tried on the model as it stands."""
        found = []
        for entry, operator in enumerate(self._config.operators):
            places = operator.sites or sites(model, operator.name, example_inputs=self._example, **operator.options)
            found += [Candidate(operator.name, place, operator.options, entry) for place in places]
        return found

    def _mutate(
        self, model: nn.Module, optimizer: Optimizer, chosen: Candidate, note: Mapping[str, Any]
    ) -> MutationResult:
        return mutate(
            model,
            chosen.operator,
            site=chosen.site,
            optimizer=optimizer,
            example_inputs=self._example,
            seed=(self._seed * 1_000_003 + len(self.lineage)) % 2**31,
            loss=self._loss,
            limits=self.limits,
            note=note,
            **chosen.options,
        )
