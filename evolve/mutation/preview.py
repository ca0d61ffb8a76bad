"""What a mutation would do, without making it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from evolve.errors import NotApplicable
from evolve.mutation.api import create_operator, underneath
from evolve.mutation.recording import no_exit
from evolve.mutation.verify import first_look
from evolve.runtime.exclusive import exclusive
from evolve.runtime.generators import preserved_rng
from evolve.structure.inputs import as_inputs
from evolve.structure.isolation import ModuleState
from evolve.structure.probe import OutputLoss
from evolve.structure.sites import resolve


@exclusive
def preview(
    model: nn.Module,
    operator: str,
    site: str,
    *,
    example_inputs: Any,
    seed: int = 0,
    loss: OutputLoss | None = None,
    loss_batches: Iterable[tuple[Any, OutputLoss]] | None = None,
    **options: Any,
) -> dict[str, Any] | None:
    """Returns the plan of a mutation that is not made; None where the operator declines.

    The model is left as it was, and so are the random number generators.

    Args:
        model: As for `mutate`, and so on.
        operator: Registered name.
        site: Dotted name of the place.
        example_inputs: The probe batch.
        seed: Of everything the operator draws.
        loss: Of the model's outputs on `example_inputs`.
        loss_batches: More batches to look at gradients on.
        **options: The operator's options.
    """
    acting, model = create_operator(operator, options), underneath(model)
    with preserved_rng(seed), torch.inference_mode(False), no_exit(operator):
        state = ModuleState(model, parameters=False)
        try:
            seen = first_look(model, as_inputs(model, example_inputs), seed, loss, acting)
            seen = replace(seen, loss_batches=loss_batches)
            return acting.plan(model, resolve(model, site, groups=acting.on_groups), seen)
        except NotApplicable:
            return None
        finally:
            state.restore()
