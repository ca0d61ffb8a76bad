"""Edits carried out on a model: an operator at a site of a region, and what one parent has over another."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from evolve.errors import NotApplicable
from evolve.evolver.config import OperatorConfig
from evolve.lineage import Record
from evolve.mutation import MutationResult, mutate, sites
from evolve.mutation.limits import Limits
from evolve.population.individual import Edit
from evolve.structure.analysis import analyse
from evolve.structure.depth import depth_of, depths
from evolve.structure.inputs import as_inputs
from evolve.structure.probe import OutputLoss
from evolve.structure.sites import EVERYWHERE

_TRIES = 3  # sites of a region that are tried, until one is not refused
# What population based training does to the weights of a child: PBT-NAS (Chebykin et al. 2023).
SHRINK = Edit("shrink_perturb")
_SHRINK = OperatorConfig(name="shrink_perturb", options={"keep": 0.4, "fresh": 0.1})

Made = tuple[Edit, Record]


def labels(operators: Sequence[OperatorConfig]) -> dict[str, OperatorConfig]:
    """Returns operators by what they are called in edits: their name, and a number where it is there again."""
    found: dict[str, OperatorConfig] = {}
    for operator in operators:
        again = sum(name.partition("#")[0] == operator.name for name in found)
        found[f"{operator.name}#{again + 1}" if again else operator.name] = operator
    return found


@dataclass
class Editor:
    """Carries out edits.

    Attributes:
        operators: By what they are called in edits.
        regions: Of a model, by depth.
        limits: Caps that no edit may pass.
    """

    operators: Mapping[str, OperatorConfig]
    regions: int
    limits: Limits

    def edit(
        self, model: nn.Module, edit: Edit, inputs: Any, loss: OutputLoss | None, chance: random.Random
    ) -> MutationResult | str:
        """Makes one edit at a random site of its region.

        Returns:
            What `mutate` answered, of the last site tried where all refused; or why there is none.
        """
        if edit == SHRINK:
            return self._mutate(model, _SHRINK, EVERYWHERE, inputs, loss, chance)
        operator = self.operators[edit.operator]
        try:
            places = operator.sites or sites(model, operator.name, example_inputs=inputs, **operator.options)
            found = depths(analyse(model, as_inputs(model, inputs)))
        except NotApplicable as error:
            return str(error)
        here = [place for place in places if self.region(depth_of(place, found)) == edit.where]
        if not here:
            return f"there is no site for '{edit.operator}' in region {edit.where} of {self.regions}"
        answers = []
        for place in chance.sample(here, min(_TRIES, len(here))):
            answers.append(self._mutate(model, operator, place, inputs, loss, chance))
            if answers[-1]:
                break
        return answers[-1]

    def cross(
        self,
        model: nn.Module,
        own: Sequence[Record],
        other: Sequence[Record],
        inputs: Any,
        loss: OutputLoss | None,
        chance: random.Random,
    ) -> list[Made]:
        """Makes anew in a model what another one has been edited by beside, in that order, where its places are there.

        Args:
            model: The first parent, with its weights.
            own: Its records.
            other: Those of the other parent.
            inputs: The probe batch.
            loss: Of outputs on it.
            chance: What is drawn from.
        """
        known = [(record.operator, record.site, record.plan) for record in own]
        made: list[Made] = []
        for record in other:
            label = self._label(record)
            if (record.operator, record.site, record.plan) in known or label is None:
                continue
            operator = OperatorConfig(name=record.operator, options=record.options)
            where = self.region(depth_of(record.site, depths(analyse(model, as_inputs(model, inputs)))))
            if answer := self._mutate(model, operator, record.site, inputs, loss, chance):
                made.append((Edit(label, where), answer.record))
        return made

    def region(self, depth: float | None) -> str:
        """Returns which region a depth lies in, counted from 1."""
        return str(1 + int((depth or 0.0) * self.regions))

    def _label(self, record: Record) -> str | None:
        named = [label for label, operator in self.operators.items() if operator.name == record.operator]
        alike = [label for label in named if self.operators[label].options.items() <= record.options.items()]
        return next(iter(alike or named), None)

    def _mutate(
        self,
        model: nn.Module,
        operator: OperatorConfig,
        place: str,
        inputs: Any,
        loss: OutputLoss | None,
        chance: random.Random,
    ) -> MutationResult:
        return mutate(
            model,
            operator.name,
            site=place,
            example_inputs=inputs,
            seed=chance.randrange(2**31),
            loss=loss,
            limits=self.limits,
            **operator.options,
        )
