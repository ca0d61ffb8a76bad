"""A folder of transformers: config, weights and evolve's records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from evolve.errors import MisfitError
from evolve.export.comparing import largest_difference
from evolve.export.python import LARGEST
from evolve.integrations.pretrained import from_pretrained, save_pretrained
from evolve.lineage import Record
from evolve.structure.inputs import Inputs


def write_huggingface(
    model: nn.Module, folder: Path, records: Sequence[Record], base_config: Any, inputs: Inputs | None
) -> float | None:
    """Writes what `evolve.integrations.huggingface.from_pretrained` loads, and loads it once.

    Returns:
        max|Δ| of the outputs; None where there was nothing to compare them on.

    Raises:
        MisfitError: If it is no model of transformers, or what is loaded computes something else.
    """
    if not isinstance(model, PreTrainedModel):
        raise MisfitError(
            f"A {type(model).__name__} is no model of transformers. Export it with --to python, or --to safetensors."
        )
    save_pretrained(model, folder, records, base_config=base_config)
    loaded = from_pretrained(folder, None if type(model).__module__.startswith("transformers.") else type(model))
    if inputs is None:
        return None
    difference, scale = largest_difference(model, loaded, inputs)
    if not difference <= LARGEST * max(1.0, scale):
        raise MisfitError(f"What from_pretrained loads computes something else: max|Δ| = {difference:.3g}.")
    return difference
