"""What a loop of one's own hands to the controller, held against what it has to be before anything is done with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from torch import Tensor, nn

from evolve.errors import CheckpointError, EvolveError
from evolve.evolver.config import EvolutionConfig
from evolve.evolver.loop import Loop
from evolve.lineage import Record
from evolve.structure.probe import count_parameters

_STATE = ("schedule", "policy", "due", "loop", "history", "records", "new_parameters", "callbacks")


def check_arguments(config: Any, loop: Any) -> None:
    """Refuses what is no configuration and no loop.

    Raises:
        EvolveError: With what was found and what to pass.
    """
    if not isinstance(config, EvolutionConfig):
        raise EvolveError(
            f"A MutationController takes an EvolutionConfig; found '{type(config).__name__}'. Make one of a mapping "
            "with EvolutionConfig(**mapping)."
        )
    if not isinstance(loop, Loop):
        raise EvolveError(
            f"A MutationController takes an evolve.Loop; found '{type(loop).__name__}'. Wrap what you train: "
            "evolve.Loop(model, optimizer, example_inputs=...)."
        )


def one_value(loss: Any) -> float | Tensor:
    """Returns the loss of a step, detached; its value is not waited for.

    Raises:
        EvolveError: If it is no single number.
    """
    if type(loss) is float:
        return loss
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss.detach()
    if isinstance(loss, int | float) and not isinstance(loss, bool):
        return float(loss)
    found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"'{type(loss).__name__}'"
    raise EvolveError(
        f"after_step takes the loss of the step, a single number, or the error it ended in; found {found}."
    )


def numbers(metrics: Any) -> dict[str, float]:
    """Returns metrics as plain numbers.

    Raises:
        EvolveError: If they are no mapping, or one is no number.
    """
    if not isinstance(metrics, Mapping):
        raise EvolveError(f"metrics are a mapping such as {{\"val_loss\": 0.3}}; found '{type(metrics).__name__}'.")
    found = {}
    for name, value in metrics.items():
        single = isinstance(value, Tensor) and value.numel() == 1
        if not single and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise EvolveError(f"The metric '{name}' has to be a number; found '{type(value).__name__}'.")
        found[str(name)] = value.item() if isinstance(value, Tensor) else value
    return found


def saved_records(state: Any, model: nn.Module) -> list[Record]:
    """Returns the records in what `MutationController.state` returned.

    Raises:
        CheckpointError: If it is not such a state, or the model is not the one that the records lead to.
    """
    missing = [key for key in _STATE if not isinstance(state, Mapping) or key not in state]
    if missing:
        raise CheckpointError(f"This is no state of a MutationController: it has no '{missing[0]}'.")
    try:
        records = [Record.model_validate_json(record) for record in state["records"]]
    except (ValidationError, TypeError) as error:
        raise CheckpointError(f"The state of the MutationController has a damaged record: {error}") from error
    applied = [record for record in records if record.status == "applied"]
    if applied and applied[-1].params_after != count_parameters(model):
        raise CheckpointError(
            f"The records lead to a model of {applied[-1].params_after:,} parameters; this one has "
            f"{count_parameters(model):,}. Restore the model first: evolve.restore(path, model, optimizer)."
        )
    return records
