"""`dropout`: dropout behind a site, or another probability where it is already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import nn

from evolve.errors import NotApplicable
from evolve.operators.base import Change, MutationOperator, OperatorOptions, operators
from evolve.structure.probe import Probe
from evolve.structure.sites import STORE, Site
from evolve.surgery.attach import attach

_DROPOUT = nn.modules.dropout._DropoutNd


@operators.register("dropout")
class Dropout(MutationOperator):
    """Inserts dropout (Srivastava et al. 2014) behind a site, or changes its probability.

    Exact in eval mode; in train mode apart from what is dropped, which is its purpose.
    """

    preserves = "exact"
    redraws = True

    class Options(OperatorOptions):
        """Options of `dropout`.

        Attributes:
            p: Probability of being dropped.
        """

        p: float = Field(default=0.1, ge=0, lt=1)

    def sites(self, model: nn.Module, probe: Probe) -> list[str]:
        """Returns the dropouts of the model, then the submodules with parameters that return one tensor."""
        own = [n for n, m in model.named_modules() if isinstance(m, _DROPOUT) and m.p != self.options.p]
        return [*own, *super().sites(model, probe)]

    def plan(self, model: nn.Module, site: Site, probe: Probe) -> dict[str, Any]:
        """Settles whether there is dropout already."""
        if site.part is not None:
            raise NotApplicable(f"'{site.name}' is a part of a submodule; dropout stands behind whole ones.")
        if isinstance(site.module, _DROPOUT) and site.span is None:
            return {"existing": True}
        if site.module is model and site.span is None:
            raise NotApplicable("Behind the whole model there is no place for a block. Name a submodule as the site.")
        if site.name.split(".")[0] == STORE:
            raise NotApplicable(
                f"'{site.name}' is a part of a block that was inserted; choose a site of the model's own."
            )
        shapes = probe.shapes(site)
        if shapes is None:
            raise NotApplicable(f"The probe batch never runs '{site.name}': what it returns is not known.")
        return {"existing": False}

    def apply(self, model: nn.Module, site: Site, plan: Mapping[str, Any]) -> Change:
        """Sets the probability, or dropout to work behind the site."""
        p = self.options.p
        if plan["existing"]:
            module: nn.Dropout = site.module  # type: ignore[assignment]
            old, module.p = module.p, p
            return Change(f"Changed the dropout of '{site.name}' from {old:g} to {p:g}.", 0)
        attach(model, site, nn.Dropout(p), name=self.name, parallel=False)
        return Change(f"Inserted dropout with p={p:g} behind '{site.name}'.", 0)
