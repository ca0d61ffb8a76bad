"""`narrow`: fewer channels, units or heads in a group, taken out physically."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from evolve.errors import NotApplicable, NotYetApplicable
from evolve.lineage import Preserves
from evolve.operators.base import Change, MutationOperator, OperatorOptions, operators
from evolve.operators.criteria import CRITERIA, Gradients, scores
from evolve.operators.members import Members, Tensors
from evolve.operators.regroup import Regrouping, Remake, groups_at, listed, regroup, regroup_plan, structure_of, told
from evolve.operators.target import Target, Ways, narrowed_to, told_target
from evolve.structure.analysis import Analysis
from evolve.structure.axes.groups import Group
from evolve.structure.inputs import as_inputs
from evolve.structure.probe import Probe, loss_gradients
from evolve.structure.sites import EVERYWHERE, Site

Criterion = Literal["magnitude", "taylor", "hessian", "fpgm", "lamp", "batch_norm", "random", "redundant", "indices"]
Share = Annotated[float, Field(ge=0, le=1)]
# What only a target looks at.
_OF_TARGET = ("steps", "ranking", "max_ratio", "scopes")


@operators.register("narrow")
class Narrow(MutationOperator):
    """Takes channels, units or heads out of a group of coupled layers.

    How many: a part of each group (`factor`, `remove`), or as many of all groups as a `target` for the whole model
    asks for. Which: those that matter least by a criterion of `criteria.py`, those that are named (`indices`), or those
    without which the function is the same (`redundant`: nobody reads them, or they are copies). What is read from a
    copy is added to what is read from its original, so that `narrow` undoes `widen`.
    """

    on_groups = True
    redraws = True

    class Options(OperatorOptions):
        """Options of `narrow`.

        Attributes:
            factor: New size relative to the old.
            remove: How many to take out, instead of `factor`.
            target: What the whole model is to cost, instead of `factor`; at site "*".
            steps: Mutations in which the target is reached; each one goes an equal factor of the way.
            ranking: Whether members of all groups are ranked together, or within groups of the same structure.
            max_ratio: The largest part of a group that one mutation takes out for a target.
            scopes: The same by module.
            multiple_of: Round the new size up to a multiple of this.
            criterion: Which go.
            batches: Batches that `taylor` and `hessian` look at; 1 is the probe batch.
            indices: Those that go, for `criterion: indices`.
        """

        factor: float | None = Field(default=None, gt=0, lt=1)
        remove: int | None = Field(default=None, ge=1)
        target: Target | None = None
        steps: int = Field(default=1, ge=1)
        ranking: Literal["global", "isomorphic"] = "global"
        max_ratio: Share = 0.9
        scopes: dict[str, Share] = Field(default_factory=dict)
        multiple_of: int = Field(default=1, ge=1)
        criterion: Criterion = "magnitude"
        batches: int = Field(default=1, ge=1)
        indices: list[NonNegativeInt] | None = Field(default=None, min_length=1)

        @model_validator(mode="after")
        def _one_size(self) -> Self:
            sizes = (self.factor, self.remove, self.target, self.indices)
            if sum(size is not None for size in sizes) > 1:
                raise ValueError("give one of factor, remove, target and indices")
            if (self.criterion == "indices") != (self.indices is not None):
                raise ValueError("criterion: indices and the list of indices go together")
            if self.indices is not None and self.multiple_of > 1:
                raise ValueError("multiple_of does nothing beside indices, which already say what is left; drop it")
            return self

        @model_validator(mode="after")
        def _with_a_target(self) -> Self:
            fields = type(self).model_fields
            said = [
                name
                for name in _OF_TARGET
                if getattr(self, name) != fields[name].get_default(call_default_factory=True)
            ]
            if self.target is None and said:
                raise ValueError(f"{said[0]} says how a target is met: give a target, such as {{flops: 0.5}}")
            if self.target is not None and self.criterion == "redundant":
                raise ValueError("criterion: redundant takes what the function can do without, and knows no target")
            if self.target is not None and self.steps > 1 and not self.target.relative:
                raise ValueError("steps divide a target that is a part, such as {flops: 0.5}")
            if self.batches > 1 and (self.criterion not in CRITERIA or CRITERIA[self.criterion].gradients is None):
                raise ValueError("batches are for criterion: taylor and hessian, which look at gradients")
            return self

    @property
    def preserves(self) -> Preserves:  # type: ignore[override]
        """Exact for `criterion: redundant`, else not."""
        return "exact" if self.options.criterion == "redundant" else "no"

    def sites(self, model: nn.Module, probe: Probe) -> list[str]:
        """Returns the groups of channels, units and heads with more than one member."""
        analysis = structure_of(model, probe)
        found = listed(model, analysis, self._candidates(model, analysis))
        return [EVERYWHERE] if found and self.options.target is not None else found

    def _candidates(self, model: nn.Module, analysis: Analysis) -> list[Group]:
        found = [group for group in analysis.changeable if group.size > 1]
        if self.options.criterion == "redundant":
            held = Tensors(model, analysis)
            found = [group for group in found if Members(held, group).redundant()]
        return found

    def plan(self, model: nn.Module, site: Site, probe: Probe) -> dict[str, Any]:
        """Settles which go, and whom their readers turn to."""
        analysis, groups = groups_at(model, site, probe)
        if site.name == EVERYWHERE:
            found = self._candidates(model, analysis)
            names = set(listed(model, analysis, found))
            tied = [others for name in names if isinstance(others := analysis.together.get(name), list)]
            names = names.union(*tied)
            groups = [group for group in found if group.name in names and not group.mixed]
        if not groups:
            raise NotApplicable("No group of the model has anything to take out.")
        held = Tensors(model, analysis)
        members = {group: Members(held, group) for group in groups}
        worth = self._scores(model, probe, list(members.values()))
        if self.options.target is not None:
            if site.name != EVERYWHERE:
                raise NotApplicable(f"A target is met by all groups together: name '*' as the site, not '{site.name}'.")
            scored = {group: one for group, one in zip(groups, worth, strict=True) if isinstance(one, Tensor)}
            if not scored:
                raise next(one for one in worth if isinstance(one, NotApplicable))
            return narrowed_to(
                self._ways(), model, analysis, scored, lambda group, gone: _without(members[group], gone)
            )
        changes = [_without(one, self._gone(one, score)) for one, score in zip(members.values(), worth, strict=True)]
        return regroup_plan(model, analysis, changes)

    def apply(self, model: nn.Module, site: Site, plan: Mapping[str, Any]) -> Change:
        """Cuts every tensor of the group."""
        added, cuts = regroup(model, plan)
        copies = sum(len(step["merged"]) for group in plan["groups"] for step in group["steps"])
        what = f"{told(plan)}, merging {copies} copies" if copies else told(plan)
        if "target" in plan:
            what = f"{what}, to {told_target(plan['target'])}"
        return Change(f"Narrowed {what} ({added:+,} parameters).", added, cuts)

    def _scores(
        self, model: nn.Module, probe: Probe, groups: Sequence[Members]
    ) -> Sequence[Tensor | NotApplicable | None]:
        """Returns for each group the scores of its members, or why it has none; None where no score is asked for."""
        name = self.options.criterion
        if name not in CRITERIA:
            return [None] * len(groups)
        return scores(name, groups, self._gradients(model, probe))

    def _gradients(self, model: nn.Module, probe: Probe) -> Iterator[Gradients]:
        """Yields the gradients of the loss, batch by batch."""
        if self.options.batches == 1:
            yield loss_gradients(model, probe)
            return
        if probe.loss_batches is None:
            raise NotYetApplicable(
                f"batches: {self.options.batches} asks for more than the probe batch: pass loss_batches=..., pairs of "
                "inputs and a loss of the outputs on them."
            )
        count = 0
        for inputs, loss in islice(probe.loss_batches, self.options.batches):
            yield loss_gradients(model, replace(probe, inputs=as_inputs(model, inputs), loss=loss))
            count += 1
        if count < self.options.batches:
            raise NotYetApplicable(f"batches: {self.options.batches} were asked for, and loss_batches gave {count}.")

    def _ways(self) -> Ways:
        options = self.options
        return Ways(
            options.target,
            steps=options.steps,
            ranking=options.ranking,
            max_ratio=options.max_ratio,
            scopes=options.scopes,
            multiple_of=options.multiple_of,
            absolute=CRITERIA[options.criterion].absolute,
        )

    def _gone(self, members: Members, scores: Tensor | NotApplicable | None) -> set[int]:
        options, group = self.options, members.group
        if options.indices is not None:
            wrong = [index for index in options.indices if not 0 <= index < group.size]
            if wrong or len(set(options.indices)) >= group.size:
                raise NotYetApplicable(
                    f"indices={options.indices} cannot be taken out of the {group.size} of '{group.name}': "
                    + (f"there is no position {wrong[0]}." if wrong else "one has to stay.")
                )
            return set(options.indices)
        if group.size < 2:
            raise NotYetApplicable(f"'{group.name}' has one position left, which has to stay.")
        redundant = members.redundant() if options.criterion == "redundant" else []
        if options.criterion == "redundant" and not redundant:
            raise NotYetApplicable(f"'{group.name}' has no position without which the function is the same.")
        count = self._count(group, len(redundant))
        if options.criterion == "redundant":
            if len(redundant) < count:
                raise NotYetApplicable(
                    f"'{group.name}' has {len(redundant)} positions without which the function is the same; "
                    f"{count} were to go."
                )
            return set(redundant[-count:])
        if not isinstance(scores, Tensor):
            raise scores or NotApplicable(f"criterion: {options.criterion} scores nothing.")
        return set(scores.argsort(stable=True)[:count].tolist())

    def _count(self, group: Group, redundant: int) -> int:
        options = self.options
        if options.criterion == "redundant" and options.factor is None and options.remove is None:
            wanted = redundant
        elif options.remove is not None:
            wanted = options.remove
        else:
            wanted = group.size - max(1, round(group.size * (options.factor or 0.5)))
        if wanted >= group.size:
            raise NotYetApplicable(
                f"{wanted} cannot be taken out of the {group.size} of '{group.name}': one has to stay."
            )
        kept = -(-(group.size - wanted) // options.multiple_of) * options.multiple_of
        if kept >= group.size:
            raise NotYetApplicable(
                f"The {group.size} of '{group.name}' cannot become {kept}: rounded up to a multiple of "
                f"{options.multiple_of}, nothing is left to take out."
            )
        return group.size - int(kept)


def _without(members: Members, gone: Collection[int]) -> Regrouping:
    """Takes some members out; what is read from a copy is read from its original then."""
    kept = set(range(members.size)).difference(gone)
    copies = members.copies()
    merged = [(position, copies[position]) for position in sorted(gone) if copies.get(position) in kept]
    return Regrouping(members.group, [Remake(sorted(kept), merged=merged)])
