"""`stack`: more of the model's own blocks, put into the container where they stand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn
from typing_extensions import Self

from evolve.errors import NotApplicable
from evolve.lineage import Preserves
from evolve.operators.arranging import all_run, arrangement, rearrange
from evolve.operators.base import Change, MutationOperator, OperatorOptions, operators
from evolve.operators.reinit import blend, fresh_values
from evolve.structure.analysis import analyse
from evolve.structure.branches import identity_values
from evolve.structure.probe import Probe
from evolve.structure.sites import EVERYWHERE, Site
from evolve.structure.stacks import Run, find_runs, period, run_of

_TIMES = 2


@operators.register("stack")
class Stack(MutationOperator):
    """Puts copies of blocks into the `nn.ModuleList` or `nn.Sequential` where they stand, as one would have built them.

    With `init: zero` the last layer of each residual branch of a copy starts at zero, so that it passes its input on
    (as in LLaMA Pro, Wu et al. 2024). Copies that stay copies: StackBERT (Gong et al. 2019), G_stack (Du et al. 2024).
    """

    redraws = True
    recounts = True

    class Options(OperatorOptions):
        """Options of `stack`.

        Attributes:
            times: How many times as many blocks there are to be; 2 where `to` is not given either.
            to: How many blocks there are to be in all, in place of `times`; of a single block, how many of it.
            where: Copies behind the block that each is of ("each"), or behind ("end") or before ("start") all blocks.
            init: "zero" (preserving), "copy" or "fresh" (as the layers would be drawn if they were made now).
        """

        times: int | None = Field(default=None, ge=2, le=64)
        to: int | None = Field(default=None, ge=2, le=4096)
        where: Literal["each", "end", "start"] = "each"
        init: Literal["zero", "copy", "fresh"] = "zero"

        @model_validator(mode="after")
        def _one_number(self) -> Self:
            if self.times is not None and self.to is not None:
                raise ValueError("times and to both say how many blocks there are to be; drop one")
            return self

    @property
    def preserves(self) -> Preserves:  # type: ignore[override]
        """Exact for `init: zero`, else not."""
        return "exact" if self.options.init == "zero" else "no"

    def sites(self, model: nn.Module, probe: Probe) -> list[str]:
        """Returns "*" for all blocks at once, then the containers, then the blocks."""
        runs = _apart([run for run in find_runs(model) if self._fault(model, run, probe) is None])
        containers = [run.container for run in runs if run.container]
        blocks = [name for run in runs for name in run.names]
        return [*([EVERYWHERE] if runs else []), *dict.fromkeys(containers), *blocks]

    def plan(self, model: nn.Module, site: Site, probe: Probe) -> dict[str, Any]:
        """Settles which blocks are copied to where, what makes them pass their input on, and which numbers follow."""
        stacks, faults = [], []
        for run, order, new in self._wanted(model, site, probe):
            values = self._values(model, run, probe) if self.options.init == "zero" else {}
            try:
                stack = arrangement(model, run, order, new)
            except NotApplicable as fault:
                faults.append(fault)
                continue
            # Of one that is exact the outputs tell.
            if self.options.init == "zero" or all_run(model, stack, probe):
                stacks.append({**stack, "values": values})
            else:
                faults.append(
                    NotApplicable(f"With {len(order)} blocks in {run.called} the model does not run all of them.")
                )
        if not stacks:
            raise faults[0]
        return {"stacks": stacks}

    def apply(self, model: nn.Module, site: Site, plan: Mapping[str, Any]) -> Change:
        """Puts the copies in."""
        before = {id(parameter): name for name, parameter in model.named_parameters()}
        pairs = []
        told: dict[str, list[int]] = {}
        # From the last run of a container to the first: so those still to come stand where they stood.
        for stack in sorted(plan["stacks"], key=lambda one: -one["first"]):
            run, made = rearrange(model, stack)
            pairs += made
            self._initialise(model, [run.blocks[place] for place in stack["new"]], stack["values"])
            counts = told.get(run.called, [0, 0])
            told[run.called] = [counts[0] + stack["count"], counts[1] + len(run.blocks)]
        after = {id(parameter): name for name, parameter in model.named_parameters()}
        copies = {after[id(new)]: before[id(old)] for new, old in pairs}
        added = sum(model.get_parameter(name).numel() for name in copies)
        where = ", ".join(f"{name} {old} → {new}" for name, (old, new) in sorted(told.items()))
        return Change(f"Stacked blocks: {where} (+{added:,} parameters).", added, copies=copies)

    @torch.no_grad()
    def _initialise(self, model: nn.Module, blocks: Sequence[nn.Module], values: Mapping[str, float]) -> None:
        for block in blocks:
            for name, value in values.items():
                block.get_parameter(name).fill_(value)
        if self.options.init == "fresh":
            layers = [layer for block in blocks for layer in block.modules()]
            fresh = fresh_values(model, layers)
            blend(model, fresh, dict.fromkeys(fresh, 0.0))
            for layer in layers:
                if isinstance(layer, nn.modules.batchnorm._NormBase):
                    layer.reset_running_stats()

    def _wanted(self, model: nn.Module, site: Site, probe: Probe) -> Iterator[tuple[Run, list[int], list[int]]]:
        """Yields the runs that the site asks for, with the order of their blocks, and which of these are copies."""
        if site.span is not None or site.part is not None:
            raise NotApplicable(f"'{site.name}' is a part of a container; name a block, a container or '*'.")
        runs = [run for run in find_runs(model) if site.name in (EVERYWHERE, run.container)]
        faults = {run: self._fault(model, run, probe) for run in runs}
        fitting = _apart([run for run, fault in faults.items() if fault is None])
        for run in fitting:
            count = len(run.blocks)
            yield run, *_ordered(count, self._count(count) - count, self.options.where, period(run.blocks))
        if fitting:
            return
        block = run_of(model, site.name)
        if block is not None:
            yield self._beside(model, probe, *block)
            return
        declined = [fault for fault in faults.values() if fault is not None]
        if declined:
            raise declined[0]
        raise NotApplicable(
            f"'{site.name}' holds no blocks that could be stacked, and is none. Blocks stand in an nn.ModuleList or "
            "nn.Sequential under numbered names, and are more than one of PyTorch's layers."
        )

    def _beside(self, model: nn.Module, probe: Probe, run: Run, position: int) -> tuple[Run, list[int], list[int]]:
        """Returns a run with copies of one block behind it, or before it."""
        if (fault := self._fault(model, run, probe)) is not None:
            raise fault
        more = self._count(1) - 1
        order = [*range(position + 1), *[position] * more, *range(position + 1, len(run.blocks))]
        first = position if self.options.where == "start" else position + 1
        return run, order, list(range(first, first + more))

    def _count(self, count: int) -> int:
        """Returns how many blocks there are to be in the place of so many."""
        wanted: int = self.options.to or count * (self.options.times or _TIMES)
        if wanted <= count:
            raise NotApplicable(
                f"There are {count} blocks already, and `to` asks for {wanted}. Take some out by remove."
            )
        return wanted

    def _fault(self, model: nn.Module, run: Run, probe: Probe) -> NotApplicable | None:
        """Returns why copies of a run's blocks cannot be put in; None where they can."""
        try:
            _check_shapes(run, probe)
            if self.options.init == "zero":
                self._values(model, run, probe)
        except NotApplicable as fault:
            return fault
        return None

    def _values(self, model: nn.Module, run: Run, probe: Probe) -> dict[str, float]:
        """Returns the values at which copies of a run's blocks pass their input on."""
        name = run.names[-1]
        if probe.inputs is None:
            raise NotApplicable(
                "init: zero looks at a recorded run: pass example_inputs, or choose init: copy or fresh."
            )
        try:
            values = identity_values(model, analyse(model, probe.inputs), name)
        except NotApplicable as error:
            raise NotApplicable(
                f"A copy of '{name}' cannot start as the identity, as {error}. Choose init: copy or fresh."
            ) from error
        inside = {id(module) for module in run.blocks[-1].modules()}
        others = {id(p) for m in model.modules() if id(m) not in inside for p in m._parameters.values()}
        if shared := [key for key in values if id(run.blocks[-1].get_parameter(key)) in others]:
            raise NotApplicable(
                f"A copy of '{name}' cannot start as the identity, as it would share '{shared[0]}' with other modules. "
                "Choose init: copy or fresh."
            )
        return values


def _check_shapes(run: Run, probe: Probe) -> None:
    for name in run.names if probe.inputs is not None else ():
        calls = probe.calls.get(name)
        if not calls:
            raise NotApplicable(f"The probe batch never runs '{name}': whether it could be stacked is not known.")
        taken, given = calls[0].input, calls[0].output
        if taken is not None and given is not None and taken != given:
            raise NotApplicable(f"'{name}' maps {taken} to {given}: a copy of it could not take what it gives.")


def _apart(runs: Sequence[Run]) -> list[Run]:
    """Leaves out runs that lie in blocks of others: a block that is alone and has runs inside gives way to them."""
    many = [run for run in runs if len(run.blocks) > 1 or not any(_inside(other, run) for other in runs)]
    return [run for run in many if not any(_inside(run, other) for other in many)]


def _inside(run: Run, other: Run) -> bool:
    return any(f"{run.container}.".startswith(f"{name}.") for name in other.names)


def _ordered(count: int, more: int, where: str, unit: int) -> tuple[list[int], list[int]]:
    """Returns for each block of the new run which old one it is, or is a copy of, and which are copies.

    Blocks whose settings take turns (local and global attention) are copied by whole turns where that adds up.

    Args:
        count: Blocks that there are.
        more: Copies.
        where: As in the options.
        unit: Blocks of a turn.
    """
    unit = unit if more % unit == 0 else 1
    turns, added = count // unit, more // unit
    if where == "each":
        groups = [
            (turn, copy)
            for turn in range(turns)
            for copy in range(1 + (turn + 1) * added // turns - turn * added // turns)
        ]
    else:
        whole = [(turn, 1) for _ in range(added // turns) for turn in range(turns)]
        rest = added % turns
        part = range(turns - rest, turns) if where == "end" else range(rest)
        extra, own = [(turn, 1) for turn in part], [(turn, 0) for turn in range(turns)]
        groups = [*own, *whole, *extra] if where == "end" else [*extra, *whole, *own]
    order = [turn * unit + step for turn, _ in groups for step in range(unit)]
    return order, [at for at in range(len(order)) if groups[at // unit][1]]
