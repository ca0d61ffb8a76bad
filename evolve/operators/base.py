"""What a mutation operator is, and the registry in which it is found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field
from torch import nn

from evolve.errors import NotApplicable
from evolve.lineage import Preserves
from evolve.registry import Registered, Registry, TypedOptions
from evolve.structure.probe import Probe
from evolve.structure.sites import Site, parametrised, resolve
from evolve.surgery.resize import Cut


class OperatorOptions(TypedOptions):
    """Base of an operator's typed options."""


def odd(size: int) -> int:
    """Returns the size of a kernel that has a center; an even one would shift positions or change sizes."""
    if size % 2 == 0:
        raise ValueError(f"{size} is even and would shift the sizes; take {size - 1} or {size + 1}")
    return size


OddKernel = Annotated[int, Field(ge=1, le=15), AfterValidator(odd)]


@dataclass(frozen=True)
class Change:
    """What an operator did.

    Attributes:
        message: One sentence for the log.
        params_added: Parameters it means to have added (negative: removed); held against the count. None: no claim.
        cuts: How axes of parameters were made anew; the optimizer's state follows them.
        redrawn: Parameters, by name, that took other values as a whole: an average of the weights begins anew there.
        forget: Whether the optimizer's state of those begins anew as well.
        copies: New parameters, by name, with the names that those they are copies of had before: they join the same
            groups of the optimizer.
    """

    message: str
    params_added: int | None = None
    cuts: Sequence[Cut] = ()
    redrawn: Sequence[str] = ()
    forget: bool = False
    copies: Mapping[str, str] = field(default_factory=dict)


class MutationOperator(Registered, ABC):
    """A kind of change.

    An operator works in two steps, so that the log can rebuild a model without data: `plan` settles everything that
    depends on the running model and returns it as plain JSON values; `apply` builds from the plan alone. Both run
    inside a transaction with seeded random number generators; either may raise `NotApplicable` to decline.

    Attributes:
        name: Registered name.
        preserves: Whether the function is preserved: "exact" (to rounding), "approximate" or "no". May be a property
            that depends on `self.options`.
        on_groups: Whether its sites are groups of channels or units: `0:1` is the second group of the layer `0` then,
            not a run of children.
        redraws: Whether dropout draws other masks afterwards (for layers of other widths): it is left out of the
            comparison in train mode then.
        recounts: Whether lists that the model returns with one item for each block (a cache, hidden states) may become
            longer or shorter: they are left out of the comparison then.
    """

    on_groups: ClassVar[bool] = False
    redraws: ClassVar[bool] = False
    recounts: ClassVar[bool] = False
    preserves: Preserves = "no"
    Options: ClassVar[type[OperatorOptions]] = OperatorOptions

    def __init__(self, **options: Any) -> None:
        self.options: Any = self.Options.read(options)

    @abstractmethod
    def apply(self, model: nn.Module, site: Site, plan: Mapping[str, Any]) -> Change:
        """Changes the model at the site as planned."""

    def plan(self, model: nn.Module, site: Site, probe: Probe) -> dict[str, Any]:
        """Settles what `apply` needs to know; declines with `NotApplicable`. Reads the model, never changes it."""
        return {}

    def sites(self, model: nn.Module, probe: Probe) -> list[str]:
        """Returns the submodules with parameters at which `plan` does not decline; any other place can be named.

        Submodules that the probe batch never runs are left out (attention layers use the weights of their output
        projection without calling it): a block there would never run.
        """
        found = []
        for name in parametrised(model):
            site = resolve(model, name)
            if probe.inputs is not None and not probe.reached(site):
                continue
            try:
                self.plan(model, site, probe)
            except NotApplicable:
                continue
            found.append(name)
        return found

    def default_site(self, sites: list[str]) -> str:
        """Chooses among `sites` where the user named none: the first."""
        return sites[0]


operators: Registry[type[MutationOperator]] = Registry("operator", "evolve.operators", MutationOperator)
