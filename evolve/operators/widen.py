"""`widen`: more channels, units or heads in a group, the function kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from evolve.errors import NotApplicable
from evolve.lineage import Preserves
from evolve.operators.base import Change, MutationOperator, OperatorOptions, operators
from evolve.operators.gradmax import steepest
from evolve.operators.regroup import Regrouping, Remake, groups_at, listed, regroup, regroup_plan, structure_of, told
from evolve.structure.axes.groups import Group
from evolve.structure.probe import Probe
from evolve.structure.sites import EVERYWHERE, Site


@operators.register("widen")
class Widen(MutationOperator):
    """Adds channels, units or heads to a group of coupled layers.

    `split`: new ones are copies of old ones, and whoever reads them takes unequal shares of the original and its copies
    (Net2WiderNet, Chen et al. 2016; unequal shares break the symmetry without noise: LEMON, Wang et al. 2024). Where a
    mean or variance is taken over the group (LayerNorm, RMSNorm, GroupNorm), only whole copies of all of it are exact.
    `twins`: pairs of equal random units that are read with opposite signs, so that both sides get gradients at once.
    `zero_out`: random units that nobody reads yet. `gradmax`: like those, but made so that the gradient of their
    readers is largest (Evci et al. 2022); needs a `loss`. `random`: not preserving.

    An optimizer's averages of gradients follow the chain rule: a copy's makers get the share of its readers of the
    original's average (its square for averages of squares), its readers the original's; random units start at zero.
    """

    on_groups = True
    redraws = True

    class Options(OperatorOptions):
        """Options of `widen`.

        Attributes:
            factor: New size relative to the old; rounded up to whole copies where only those are exact.
            add: How many to add, instead of `factor`.
            multiple_of: Round the new size up to a multiple of this.
            init: How the new ones begin.
        """

        factor: float | None = Field(default=None, gt=1, le=64)
        add: int | None = Field(default=None, ge=1)
        multiple_of: int = Field(default=1, ge=1)
        init: Literal["split", "twins", "zero_out", "gradmax", "random"] = "split"

        @model_validator(mode="after")
        def _one_size(self) -> Self:
            if self.factor is not None and self.add is not None:
                raise ValueError("give factor or add, not both")
            return self

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # Values that gradmax found; replay rebuilds the shapes alone, the values come with the weights.
        self._directions: dict[tuple[str, int], Tensor] = {}

    @property
    def preserves(self) -> Preserves:  # type: ignore[override]
        """Exact unless `init` is random."""
        return "no" if self.options.init == "random" else "exact"

    def sites(self, model: nn.Module, probe: Probe) -> list[str]:
        """Returns the groups of channels, units and heads that this init can widen."""
        analysis = structure_of(model, probe)
        return listed(model, analysis, [group for group in analysis.changeable if self._objection(group) is None])

    def plan(self, model: nn.Module, site: Site, probe: Probe) -> dict[str, Any]:
        """Settles the new size, what is copied, in which shares, and the settings that follow."""
        analysis, groups = groups_at(model, site, probe)
        objections = [objection for group in groups if (objection := self._objection(group)) is not None]
        if site.name == EVERYWHERE:
            groups = [group for group in groups if self._objection(group) is None]
        if not groups or (objections and site.name != EVERYWHERE):
            raise NotApplicable(objections[0] if objections else "No group of the model can change.")
        sizes = [self.new_size(group) for group in groups]
        if site.name != EVERYWHERE:  # several groups are counted by one integer then
            sizes = [max(sizes)] * len(groups)
        if self.options.init == "gradmax":
            if site.name == EVERYWHERE:
                raise NotApplicable("init: gradmax finds directions for one group at a time. Name one as the site.")
            self._directions = steepest(model, analysis, groups[0], probe, sizes[0] - groups[0].size)
        plan = regroup_plan(model, analysis, [self._wider(*each) for each in zip(groups, sizes, strict=True)])
        remark = self._more_than_asked(groups, sizes)
        return {**plan, "remark": remark} if remark else plan

    def apply(self, model: nn.Module, site: Site, plan: Mapping[str, Any]) -> Change:
        """Resizes every tensor of the group."""
        added, cuts = regroup(model, plan, self._fill)
        remark = f" {plan['remark']}" if "remark" in plan else ""
        return Change(f"Widened {told(plan)} ({added:+,} parameters).{remark}", added, cuts)

    def _fill(self, name: str, axis: int, reads: bool, old: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Values of new units, where they are made and where they are read."""
        if reads and self.options.init in {"zero_out", "gradmax"}:
            return old.new_zeros(shape)
        if (name, axis) in self._directions:
            return self._directions[name, axis]
        return _random(old, shape)

    def _more_than_asked(self, groups: Sequence[Group], sizes: Sequence[int]) -> str:
        """Says which groups got more than was asked for because only whole copies keep the function."""
        asked = [self._asked(group) for group in groups]
        more = [(group, size, wish) for group, size, wish in zip(groups, sizes, asked, strict=True) if size != wish]
        more = [each for each in more if each[0].statistic and self.options.init == "split"]
        if not more:
            return ""
        group, size, wish = more[0]
        others = f" Likewise {len(more) - 1} other groups." if len(more) > 1 else ""
        return (
            f"'{group.name}' has {size} instead of the {wish} that were asked for: {group.statistic}, so that only "
            f"whole copies of all {group.size} keep the function.{others}"
        )

    def _wider(self, group: Group, size: int) -> Regrouping:
        old, new = list(range(group.size)), size - group.size
        if self.options.init == "split":
            source = old * math.ceil(size / group.size)
            if not group.statistic:  # any may be copied, not only all of them
                source = old + torch.randperm(group.size).repeat(math.ceil(size / group.size)).tolist()
            return Regrouping(group, [Remake(source[:size], _shares(source[:size]))])
        if self.options.init == "twins":  # random units first, then a copy of each of them with the opposite sign
            half = list(range(group.size, group.size + new // 2))
            shares = [*[1.0] * (group.size + new // 2), *[-1.0] * (new // 2)]
            return Regrouping(group, [Remake([*old, *[-1] * (new // 2)]), Remake([*old, *half, *half], shares)])
        return Regrouping(group, [Remake([*old, *[-1] * new])])

    def _objection(self, group: Group) -> str | None:
        init = self.options.init
        if init == "random":
            return None
        if group.mixed:
            return (
                f"'{group.name}' cannot be widened exactly: {group.mixed}. `init: random` does not promise exactness."
            )
        if group.statistic and init != "split":
            return (
                f"'{group.name}' cannot be widened exactly by init: {init}: {group.statistic}, so that only whole "
                "copies keep it. Use init: split."
            )
        return None

    def _asked(self, group: Group) -> int:
        options = self.options
        return group.size + options.add if options.add else math.ceil(group.size * (options.factor or 2.0) - 1e-9)

    def new_size(self, group: Group) -> int:
        """Returns how many channels, units or heads the group is to have."""
        options, multiple, wanted = self.options, self.options.multiple_of, self._asked(group)
        if options.init == "split" and group.statistic:
            copies = math.ceil(wanted / group.size)
            while copies * group.size % multiple:
                copies += 1
            return copies * group.size
        size: int = math.ceil(wanted / multiple) * multiple
        return size + (size - group.size) % 2 if options.init == "twins" else size


def _shares(source: list[int]) -> list[float]:
    """Returns for each position its share of the original: drawn in [0.5, 1.5], so that hardly two copies are equal."""
    drawn = (0.5 + torch.rand(len(source), dtype=torch.float64)).tolist()
    totals: dict[int, float] = {}
    for position, share in zip(source, drawn, strict=True):
        totals[position] = totals.get(position, 0.0) + share
    return [share / totals[position] for position, share in zip(source, drawn, strict=True)]


def _random(old: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Matrices as random as the old values, vectors (biases, norms) like their mean."""
    if not old.is_floating_point():
        return old.new_zeros(shape)
    if old.dim() < 2:
        return old.mean().expand(shape)
    spread = float(old.float().std()) if old.numel() > 1 else 0.0
    return torch.randn(shape, dtype=torch.float32).mul_(spread).to(old)
