"""`shrink_perturb`: weights a part of the way back to a fresh initialisation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from evolve.errors import NotApplicable, NotYetApplicable, did_you_mean
from evolve.operators.base import Change, MutationOperator, OperatorOptions, operators
from evolve.operators.reinit import blend, fresh_values, values_kept
from evolve.structure.isolation import undisturbed
from evolve.structure.probe import Probe
from evolve.structure.sites import EVERYWHERE, Site, parametrised

Share = Annotated[float, Field(ge=0, le=1)]

_FORGOTTEN = 0.9  # `auto`: how much of the way from the present loss to a fresh network's the loss has to go
_STEP = 0.05  # `auto`: distance of the shares that are tried


@operators.register("shrink_perturb")
class ShrinkPerturb(MutationOperator):
    """Sets weights to `keep * weights + (1 - keep) * fresh initialisation` (Ash and Adams 2020).

    A network that goes on from trained weights, a grown one too, can end worse than one that begins anew: its loss on
    the data that it has seen is low already, and little moves it. This gives up the answers and keeps a part of what
    they were made of. It promises nothing about the function.
    """

    preserves = "no"

    class Options(OperatorOptions):
        """Options of `shrink_perturb`.

        Attributes:
            keep: Share of the present weights; "auto": the largest at which the loss on the probe batch has gone nine
                tenths of the way to that of a fresh initialisation.
            fresh: Share of fresh values that is added; null for what `keep` leaves of 1. With 0.1 and a `keep` of 0.4,
                weights shrink as well (Zaidi et al. 2023), as in PBT-NAS (Chebykin et al. 2023).
            layers: Another `keep` for the parameters of these submodules, by dotted name; the longest name counts.
            moments: Whether the optimizer's state of these parameters is kept or begins anew.
        """

        keep: Share | Literal["auto"] = 0.5
        fresh: Share | None = None
        layers: dict[str, Share] = Field(default_factory=dict)
        moments: Literal["carry", "reset"] = "carry"

    def sites(self, model: nn.Module, probe: Probe) -> list[str]:
        """Returns the whole model, then the submodules with trainable parameters."""
        names = [EVERYWHERE, *parametrised(model)]
        return [n for n in names if _trainable(model.get_submodule("" if n == EVERYWHERE else n))]

    def plan(self, model: nn.Module, site: Site, probe: Probe) -> dict[str, Any]:
        """Settles the share of the old weights."""
        if site.part is not None:
            raise NotApplicable(f"'{site.name}' is a part of a submodule; name a whole one.")
        if not any(_trainable(layer) for layer in site.layers):
            raise NotApplicable(f"'{site.name}' has no trainable parameters.")
        known = dict(model.named_modules())
        for name in self.options.layers:
            if name not in known:
                raise NotApplicable(f"layers: the model has no submodule '{name}'.{did_you_mean(name, known)}")
        keep = self.options.keep
        return {"keep": self._found(model, site, probe) if keep == "auto" else keep}

    def apply(self, model: nn.Module, site: Site, plan: Mapping[str, Any]) -> Change:
        """Blends the parameters with fresh ones."""
        fresh = self._fresh(model, site)
        shares = self._shares(fresh, plan["keep"])
        changed = blend(model, fresh, shares, self.options.fresh)
        count = sum(fresh[name].numel() for name in changed)
        where = "the model" if site.module is model and site.span is None else f"'{site.name}'"
        rest = "the rest" if self.options.fresh is None else f"{self.options.fresh:g} of"
        message = f"Set {count:,} parameters of {where} to {plan['keep']:g} of their values and {rest} fresh ones."
        return Change(message, 0, redrawn=changed, forget=self.options.moments == "reset")

    def _fresh(self, model: nn.Module, site: Site) -> dict[str, Tensor]:
        return {n: v for n, v in fresh_values(model, site.layers).items() if model.get_parameter(n).requires_grad}

    def _shares(self, names: Mapping[str, Any], keep: float) -> dict[str, float]:
        layers: dict[str, float] = self.options.layers
        inside = {n: [layer for layer in layers if f"{n}.".startswith(f"{layer}.")] for n in names}
        return {n: layers[max(found, key=len)] if found else keep for n, found in inside.items()}

    def _found(self, model: nn.Module, site: Site, probe: Probe) -> float:
        """Returns the largest share at which the loss is near enough to that of a fresh network.

        All losses are of train mode, with the same dropout: what the next step of training will see.
        """
        loss, inputs = probe.loss, probe.inputs
        if loss is None or inputs is None:
            raise NotApplicable(
                "keep: auto looks at the loss, and none is known: pass loss=..., a function of the model's outputs on "
                "example_inputs that returns a scalar, or give keep a number."
            )
        fresh = self._fresh(model, site)
        parameters = [model.get_parameter(name) for name in fresh]

        def loss_at(keep: float) -> float:
            with undisturbed(model, seed=0), values_kept(parameters):
                blend(model, fresh, self._shares(fresh, keep), self.options.fresh)
                return float(loss(model.train()(*inputs.args, **inputs.kwargs)))

        present, new = loss_at(1.0), loss_at(0.0)
        if not (math.isfinite(new) and present < new):
            raise NotYetApplicable(
                f"keep: auto finds nothing to weigh: the loss on the probe batch is {present:.4g}, and {new:.4g} with "
                "fresh weights. Train on, or give keep a number."
            )
        enough = present + _FORGOTTEN * (new - present)
        tried = [round(1 - _STEP * n, 2) for n in range(1, round(1 / _STEP))]
        return next((keep for keep in tried if loss_at(keep) >= enough), 0.0)


def _trainable(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
