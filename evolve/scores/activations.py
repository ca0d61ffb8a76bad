"""One forward and one backward pass over a batch: what every module took and gave, and the slope of the loss there.

All candidates are valued by the same passes. The backward pass stops at the modules' outputs: it computes no gradient
of a weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from evolve.errors import NotApplicable
from evolve.structure.analysis import Analysis, analyse
from evolve.structure.inputs import as_inputs
from evolve.structure.isolation import undisturbed
from evolve.structure.probe import OutputLoss, Probe, probe


@dataclass
class Seen:
    """One call of a module.

    Attributes:
        taken: Its first argument.
        given: What it returned.
        slope: Gradient of the loss with respect to what it returned; None where the loss does not depend on it.
        calls: How often it was called.
    """

    taken: Tensor
    given: Tensor
    slope: Tensor | None = None
    calls: int = 1


@dataclass
class Evidence:
    """What scores are computed from.

    Attributes:
        model: The model, as it stands.
        probe: What operators are told when they plan.
        samples: Samples in the batch.
        seen: Calls of modules that map one tensor to one tensor, by name.
    """

    model: nn.Module
    probe: Probe
    samples: int
    seen: dict[str, Seen] = field(default_factory=dict)

    @cached_property
    def analysis(self) -> Analysis:
        """The model's structure, on the probe batch."""
        return analyse(self.model, self.probe.inputs)

    def at(self, name: str) -> Seen:
        """Returns the call of the module called `name`.

        Raises:
            NotApplicable: If there was none, or more than one, or the loss does not depend on it.
        """
        seen = self.seen.get(name)
        if seen is None or seen.slope is None:
            raise NotApplicable(f"The loss on the batch does not depend on one tensor that '{name}' returns.")
        if seen.calls > 1:
            raise NotApplicable(f"'{name}' is called {seen.calls} times in one run; a score looks at one call.")
        return seen


def collect(model: nn.Module, inputs: Any, loss: OutputLoss, example: Any) -> Evidence:
    """Runs the model forward and backward once, in eval mode: no sample counts for another. It is left as it was.

    Args:
        model: The model.
        inputs: The batch.
        loss: Makes a scalar of the model's outputs on the batch.
        example: The probe batch that operators plan with.
    """
    batch = as_inputs(model, inputs)
    evidence = Evidence(model, probe(model, as_inputs(model, example)), batch.batch_size)
    with undisturbed(model, seed=0), torch.inference_mode(False), torch.enable_grad():
        model.eval()
        with _watched(model, evidence.seen):
            value = loss(model(*batch.args, **batch.kwargs))
        _take_slopes(value, list(evidence.seen.values()))
    return evidence


def _take_slopes(value: Tensor, calls: list[Seen]) -> None:
    calls = [call for call in calls if call.given.requires_grad]
    slopes = torch.autograd.grad(value, [call.given for call in calls], allow_unused=True) if calls else ()
    for call, slope in zip(calls, slopes, strict=True):
        call.given = call.given.detach()
        call.slope = slope


@contextmanager
def _watched(model: nn.Module, found: dict[str, Seen]) -> Iterator[None]:
    """Notes the calls of every module. What follows works on a copy: it may write in place."""
    known: dict[int, tuple[Tensor, Tensor]] = {}  # copies that were handed on, with what they are copies of

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], given: Any) -> Any:
            taken = args[0] if args else next(iter(kwargs.values()), None)
            if not isinstance(taken, Tensor) or not isinstance(given, Tensor) or not given.is_floating_point():
                return None
            if name in found:
                found[name].calls += 1
                return None
            if id(given) in known:  # a container that returns what its last child returned
                found[name] = Seen(taken.detach(), known[id(given)][1])
                return None
            copy = given.clone()
            known[id(copy)] = copy, given
            found[name] = Seen(taken.detach(), given)
            return copy

        return hook

    handles = [module.register_forward_hook(watch(name), with_kwargs=True) for name, module in model.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
