"""`swap`: another activation or norm, through a learnable blend that starts at the old one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from math import gcd
from typing import Any, Literal

from torch import nn

from evolve.blocks.layers import Blend
from evolve.blocks.shortcuts import like_site
from evolve.errors import NotApplicable
from evolve.operators.base import Change, MutationOperator, OperatorOptions, operators
from evolve.operators.shapes import dtype_of_flow
from evolve.structure.probe import Probe
from evolve.structure.site_order import order_at
from evolve.structure.sites import STORE, Site, resolve
from evolve.surgery.attach import attach, links_at

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
}
_CLASSES = tuple(kind for kind in ACTIVATIONS.values() if isinstance(kind, type))
_CHANNELS_OF_A_GROUP = 8  # channels, at least: behind global pooling a group has one value of each
_BATCH_NORM = nn.modules.batchnorm._BatchNorm
To = Literal[
    "auto", "relu", "relu6", "leaky_relu", "elu", "gelu", "silu", "mish", "hardswish", "tanh", "sigmoid", "softplus",
    "group_norm", "rms_norm",
]  # fmt: skip


@operators.register("swap")
class Swap(MutationOperator):
    """Blends an activation into another, BatchNorm into GroupNorm or LayerNorm into RMSNorm.

    `out + gate * (new(x) - out)`, the gate zero at birth: exact, and training decides how far to go. Activations
    between which training chooses: Agostinelli et al. 2015; GroupNorm: Wu and He 2018; RMSNorm: Zhang and Sennrich
    2019.
    """

    preserves = "exact"

    class Options(OperatorOptions):
        """Options of `swap`.

        Attributes:
            to: What to blend into; "auto": SiLU for an activation (GELU for SiLU), the other kind for a norm.
        """

        to: To = "auto"

    def sites(self, model: nn.Module, probe: Probe) -> list[str]:
        """Returns the activations and norms of the model that the probe batch runs."""
        found = []
        for name, module in model.named_modules():
            swappable = isinstance(module, (*_CLASSES, _BATCH_NORM, nn.LayerNorm))
            if not swappable or not name or name.startswith(f"{STORE}."):
                continue
            site = resolve(model, name)
            if (probe.inputs is None or probe.reached(site)) and not _blended(site) and self._new(module) is not None:
                with suppress(NotApplicable):  # such as GroupNorm in a causal model
                    self.plan(model, site, probe)
                    found.append(name)
        return found

    def plan(self, model: nn.Module, site: Site, probe: Probe) -> dict[str, Any]:
        """Settles what comes in."""
        if site.span is not None or site.part is not None or _blended(site):
            raise NotApplicable(f"'{site.name}' is no single activation or norm that is not blended yet.")
        new = self._new(site.module)
        if new is None:
            raise NotApplicable(
                f"A {type(site.module).__name__} ('{site.name}') cannot be blended into '{self.options.to}': "
                "activations blend into activations, BatchNorm into group_norm, LayerNorm into rms_norm."
            )
        order = order_at(model, site, probe)
        if new == "group_norm" and order is not None and any(axis > 1 for axis in order[1].ordered):
            raise NotApplicable(
                f"The model is causal, and GroupNorm would take its mean over all positions of '{site.name}', later "
                "ones too. Choose another site."
            )
        return {"to": new, **dtype_of_flow(model, site, probe, behind=False)}

    def apply(self, model: nn.Module, site: Site, plan: Mapping[str, Any]) -> Change:
        """Puts the blend to work at the site."""
        module, to = site.module, plan["to"]
        if getattr(module, "inplace", False):
            setattr(module, "inplace", False)  # noqa: B010 - the blend needs what came in; not every activation has it
        block = like_site(Blend(_built(module, to)), list(module.modules()), model, plan.get("dtype"))
        added = sum(parameter.numel() for parameter in block.parameters())
        attach(model, site, block, name=self.name, parallel=True)
        return Change(
            f"Began to blend '{site.name}' ({type(module).__name__}) into {to} (+{added:,} parameters).", added
        )

    def _new(self, module: nn.Module) -> str | None:
        """Returns what a module is to become, or None where that does not go."""
        to: str = self.options.to
        if isinstance(module, _CLASSES):
            old = next(name for name, kind in ACTIVATIONS.items() if type(module).__name__ == kind.__name__)
            if to == "auto":
                return "gelu" if old == "silu" else "silu"
            return to if to in ACTIVATIONS and to != old else None
        if isinstance(module, _BATCH_NORM):
            return "group_norm" if to in {"auto", "group_norm"} else None
        if isinstance(module, nn.LayerNorm) and _base(module).forward is nn.LayerNorm.forward:
            return "rms_norm" if to in {"auto", "rms_norm"} else None  # over the last axes, as RMSNorm
        return None


def _base(module: nn.Module) -> type[nn.Module]:
    """The class of a module before a block was attached to it."""
    base: type[nn.Module] = getattr(type(module), "_evolve_base", type(module))
    return base


def _built(module: nn.Module, to: str) -> nn.Module:
    if to == "group_norm":
        channels: int = module.num_features  # type: ignore[assignment]
        groups = gcd(32, channels)
        while groups > 1 and channels // groups < _CHANNELS_OF_A_GROUP:
            groups //= 2
        return nn.GroupNorm(groups, channels)
    if to == "rms_norm":
        return nn.RMSNorm(list(module.normalized_shape))  # type: ignore[arg-type]
    return ACTIVATIONS[to]()


def _blended(site: Site) -> bool:
    return any(isinstance(link.block, Blend) for link in links_at(site))
