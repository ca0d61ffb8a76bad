"""`remove`: a layer or block whose output has the shape of its input is taken out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from evolve.blocks.pass_through import PassThrough
from evolve.errors import NotApplicable
from evolve.lineage import Preserves
from evolve.operators.arranging import all_run, arrangement, rearrange
from evolve.operators.base import Change, MutationOperator, OperatorOptions, operators
from evolve.structure.probe import Probe
from evolve.structure.sites import STORE, Site
from evolve.structure.stacks import run_of
from evolve.surgery.attach import blocks_inside, call_parts_around, detach


@operators.register("remove")
class Remove(MutationOperator):
    """Takes out a layer or block whose input and output have one shape; its parameters leave model and optimizer.

    A block that evolve inserted is detached without a trace, which is exact while it is still the identity; one of
    several alike in a container leaves it, as if there had been one less. For what is not the identity, the measured
    difference is in the log; layers of a residual network are the ones that can go (Huang et al. 2016, Veit et al.
    2016).
    """

    redraws = True
    recounts = True

    class Options(OperatorOptions):
        """Options of `remove`.

        Attributes:
            preserves: What the removal has to keep of the function, or it is refused: "exact", "approximate" (a
                relative difference of at most 0.1) or "no".
        """

        preserves: Preserves = "approximate"

    @property
    def preserves(self) -> Preserves:  # type: ignore[override]
        """What the options ask for."""
        return self.options.preserves  # type: ignore[no-any-return]

    def sites(self, model: nn.Module, probe: Probe) -> list[str]:
        """Returns the blocks that evolve inserted, then the submodules that keep the shape of their input."""
        store = getattr(model, STORE, None)
        inserted = [f"{STORE}.{name}" for name, _ in store.named_children()] if store is not None else []
        own = [name for name in super().sites(model, probe) if not name.startswith(f"{STORE}.")]
        return [*inserted, *own]

    def plan(self, model: nn.Module, site: Site, probe: Probe) -> dict[str, Any]:
        """Settles whether the site is a block that evolve inserted."""
        if site.span is not None or site.part is not None or site.module is model:
            raise NotApplicable(f"'{site.name}' is no single submodule. Name one.")
        if isinstance(site.module, PassThrough):
            raise NotApplicable(f"'{site.name}' has been taken out already.")
        names = site.name.split(".")
        if names[0] == STORE:
            if len(names) != 2:
                raise NotApplicable(
                    f"'{site.name}' is a part of a block; '{'.'.join(names[:2])}' can be removed whole."
                )
            return {"inserted": True}
        stack = _stack_without(model, site) if probe.reached(site) else None
        if stack is not None and not _runs(model, stack, probe):
            stack = None
        if stack is None:
            shapes = probe.shapes(site)
            if shapes is None or shapes[0] != shapes[1]:
                told = "is not reached by the probe batch" if shapes is None else f"maps {shapes[0]} to {shapes[1]}"
                raise NotApplicable(f"'{site.name}' {told}; only what keeps the shape of its input can be taken out.")
        holder = _held_elsewhere(model, site.module)
        if holder is not None:
            raise NotApplicable(
                f"'{site.name}' is also kept in {holder}, a plain attribute, by which the forward may go on calling "
                "it. Keep modules in an nn.ModuleList or nn.ModuleDict."
            )
        return {"inserted": False, "stack": stack}

    def apply(self, model: nn.Module, site: Site, plan: Mapping[str, Any]) -> Change:
        """Takes it out."""
        before = {id(p): p.numel() for p in model.parameters()}
        if plan["inserted"]:
            detach(model, site.name)
        else:
            for block in blocks_inside(site.module):
                detach(model, f"{STORE}.{block}")
        if plan.get("stack"):
            rearrange(model, plan["stack"])
        elif not plan["inserted"]:
            parent, _, name = site.name.rpartition(".")
            stand_in = PassThrough().train(site.module.training)
            model.get_submodule(parent)._modules[name] = stand_in
            call_parts_around(model, stand_in)
        kept = {id(p) for p in model.parameters()}
        gone = sum(count for key, count in before.items() if key not in kept)
        what = type(site.module).__name__
        return Change(f"Removed '{site.name}' ({what}, -{gone:,} parameters).", -gone)


def _stack_without(model: nn.Module, site: Site) -> dict[str, Any] | None:
    """Returns how a block leaves the run of its kind that it is in; None where it is in none, or alone."""
    found = run_of(model, site.name, of_one_class=True)
    if found is None or len(found[0].blocks) == 1:
        return None
    run, position = found
    order = [*range(position), *range(position + 1, len(run.blocks))]
    try:
        return arrangement(model, run, order)
    except NotApplicable:  # the model's config has no words for it
        return None


def _runs(model: nn.Module, stack: Mapping[str, Any], probe: Probe) -> bool:
    """Whether a model runs with one block less in a container; found out once for each run of blocks."""
    key = f"runs with one less in '{stack['container']}' from {stack['first']}"
    if key not in probe.found:
        probe.found[key] = all_run(model, stack, probe)
    return bool(probe.found[key])


def _held_elsewhere(model: nn.Module, part: nn.Module) -> str | None:
    """Returns where a module is kept beside the tables of modules, as in a plain list, None where it is not."""
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute == "_modules":
                continue
            items = (
                value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
            )
            if any(item is part for item in items):
                return f"'{name}.{attribute}'" if name else f"'{attribute}'"
    return None
