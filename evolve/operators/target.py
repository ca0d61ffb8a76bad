"""Narrowing all groups of a model until it costs no more than a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from evolve.errors import NotApplicable, NotYetApplicable, did_you_mean
from evolve.operators.costs import Cost, flops_cost, params_cost, seconds_cost
from evolve.operators.ranking import Bundle, bundle, inside, most, role, share_of, sized, structure, taken
from evolve.operators.regroup import Regrouping, regroup_plan
from evolve.registry import TypedOptions
from evolve.structure.analysis import Analysis
from evolve.structure.axes.groups import Group


def _part_or_number(value: float) -> float:
    if value <= 0 or (value >= 1 and value != int(value)):
        raise ValueError(f"give a part below 1, such as 0.5, or a whole number; found {value:g}")
    return value


Part = Annotated[float, Field(gt=0, lt=1)]
Goal = Annotated[float | int, AfterValidator(_part_or_number)]
_NAMES = {"flops": "FLOPs", "params": "parameters", "seconds": "seconds"}
_FINE = 64  # what is measured is measured for so many cuts at most


class Target(TypedOptions):
    """What a model is to cost: a part of what it costs at the time of the mutation, or a number.

    Attributes:
        flops: FLOPs of a forward pass of one sample (2 per multiply-accumulate).
        params: Parameters.
        seconds: Part of the seconds that a forward pass of the probe batch takes, in eval mode on this device.
    """

    flops: Goal | None = None
    params: Goal | None = None
    seconds: Part | None = None

    @model_validator(mode="after")
    def _one_of_three(self) -> Self:
        if sum(getattr(self, what) is not None for what in _NAMES) != 1:
            raise ValueError("give one of flops, params and seconds, such as {flops: 0.5}")
        return self

    @property
    def what(self) -> str:
        """One of "flops", "params" and "seconds"."""
        return next(what for what in _NAMES if getattr(self, what) is not None)

    @property
    def value(self) -> float:
        """The part, or the number."""
        return float(getattr(self, self.what))

    @property
    def relative(self) -> bool:
        """Whether it is a part of what the model costs."""
        return self.value < 1


@dataclass(frozen=True)
class Ways:
    """How a target is met; see the options of `narrow`."""

    target: Target
    steps: int
    ranking: str
    max_ratio: float
    scopes: Mapping[str, float]
    multiple_of: int
    absolute: bool  # whether scores of different groups can be compared


def narrowed_to(
    ways: Ways,
    model: nn.Module,
    analysis: Analysis,
    scored: Mapping[Group, Tensor],
    without: Callable[[Group, Sequence[int]], Regrouping],
) -> dict[str, Any]:
    """Plans to take as few members out of all groups as the target asks for.

    Args:
        ways: How.
        model: The model.
        analysis: Its structure.
        scored: The groups that may change, with a score for each member; the smallest go first.
        without: What becomes of a group that some members are taken out of.

    Returns:
        A plan for `regroup`, with what the target was and what has become of it.

    Raises:
        NotApplicable: If the target cannot be met, or is met already.
    """
    _check_scopes(model, ways.scopes)
    bundles = _bundles(ways, model, analysis, scored)
    cost = _cost(ways.target, model, analysis)
    now = cost([])
    goal = ways.target.value ** (1 / ways.steps) * now if ways.target.relative else ways.target.value
    if now <= goal:
        raise NotYetApplicable(f"The model has {_told(ways.target, now)}, no more than the target of {goal:,.0f}.")

    while True:
        counts = taken(bundles, cost, goal, ways.multiple_of, _fineness(ways, bundles))
        if counts is None:
            least = cost(sized(bundles, most(bundles, ways.multiple_of)))
            raise NotApplicable(
                f"The target of {_told(ways.target, goal)} cannot be met: of {_told(ways.target, now)}, what may go "
                f"leaves {_told(ways.target, least)}. Raise max_ratio or scopes, or ask for less."
            )
        going = zip(bundles, counts, strict=True)
        chosen = [
            without(group, order[:count].tolist())
            for one, count in going
            if count
            for group, order in zip(one.groups, one.orders, strict=True)
        ]
        plan = regroup_plan(model, analysis, chosen)
        if not plan["left_out"]:
            found = {"of": ways.target.what, "before": now, "goal": goal, "after": cost(chosen)}
            return {**plan, "target": found}
        left_out = set(plan["left_out"])  # others have to go in their place
        bundles = [one for one in bundles if not left_out & {group.name for group in one.groups}]


def told_target(found: Mapping[str, Any]) -> str:
    """Returns what came of the target of a plan, for a message."""
    part = f"{found['after'] / found['before']:.3f} of its {_NAMES[found['of']]}"
    asked = f"at most {found['goal'] / found['before']:.3f} asked for"
    if found["of"] == "seconds":
        return f"{part} as measured, {asked}"
    return f"{part} ({found['after']:,.0f}), {asked}"


def _told(target: Target, cost: float) -> str:
    return f"{cost:.3f} of the seconds" if target.what == "seconds" else f"{cost:,.0f} {_NAMES[target.what]}"


def _fineness(ways: Ways, bundles: Sequence[Bundle]) -> int:
    return max(1, sum(one.most for one in bundles) // _FINE) if ways.target.what == "seconds" else 1


def _cost(target: Target, model: nn.Module, analysis: Analysis) -> Cost:
    if target.what == "flops":
        return flops_cost(analysis)
    if target.what == "params":
        return params_cost(model, analysis)
    return seconds_cost(model, analysis)


def _bundles(ways: Ways, model: nn.Module, analysis: Analysis, scored: Mapping[Group, Tensor]) -> list[Bundle]:
    """Returns the groups that may change, those that change together in one, as they are ranked."""
    by_name = {group.name: group for group in scored}
    found, seen = [], set[str]()
    for group in scored:
        if group.name in seen:
            continue
        tied = analysis.together.get(group.name)
        names = tied if isinstance(tied, list) else [group.name]
        seen |= set(names)
        if not by_name.keys() >= set(names):  # one of them may not change
            continue
        groups = [by_name[name] for name in names]
        share = min(share_of(one, ways.scopes, ways.max_ratio) for one in groups)
        kind: tuple[object, ...] = (role(analysis, group),)
        if ways.ranking == "isomorphic":
            kind += structure(model, group)
        part = bundle(
            groups,
            [scored[one] for one in groups],
            absolute=ways.absolute,
            most=min(group.size - 1, int(group.size * share + 1e-9)),
            kind=kind,
        )
        found.append(part)
    return found


def _check_scopes(model: nn.Module, scopes: Mapping[str, float]) -> None:
    """Refuses a scope that is no module of the model.

    Raises:
        NotApplicable: With the name that may have been meant.
    """
    names = [name for name, _ in model.named_modules() if name]
    for scope in scopes:
        if not any(inside(name, scope) for name in names):
            raise NotApplicable(f"scopes: the model has no module '{scope}'.{did_you_mean(scope, names)}")
