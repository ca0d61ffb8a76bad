"""Records that were saved, replayed on a base model: whatever is wrong with them ends in one clear error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from evolve.care.ema import EMA
from evolve.errors import CheckpointError, EvolveError
from evolve.lineage import Lineage, Record
from evolve.mutation.bounded import BoundedBuild
from evolve.mutation.replaying import replay
from evolve.structure.probe import count_parameters
from evolve.surgery.optimizer import Optimizers
from evolve.training.folder import DamagedError


def read_records(path: Path) -> list[Record]:
    """Returns the records of a checkpoint.

    Raises:
        DamagedError: If one is no record.
    """
    try:
        return Lineage.read(path)
    except (EvolveError, OSError) as error:
        raise DamagedError(str(error)) from error


def replay_bounded(
    model: nn.Module,
    records: list[Record],
    tensors: Mapping[str, Tensor],
    optimizer: Optimizers | None = None,
    ema: EMA | AveragedModel | None = None,
) -> None:
    """Replays records, without building more than the models that they lead through can need.

    Args:
        model: The base model.
        records: As they were saved.
        tensors: Of the model, as they were saved after the records.
        optimizer: That follows; likewise `ema`.

    Raises:
        EvolveError: If they do not fit the model or the tensors that were saved after them.
    """
    size = largest = count_parameters(model)
    for record in records:
        if record.status == "applied":
            size += record.params_after - record.params_before
            largest = max(largest, size)
    held = sum(tensor.numel() for tensor in tensors.values())
    if size > held:
        raise CheckpointError(f"After its records the model should have {size:,} parameters; {held:,} were saved.")
    with BoundedBuild(64 * (largest + held) * (1 + len(records)) + 2**22):
        replay(model, records, optimizer, ema)


@contextmanager
def fitting(source: Path) -> Iterator[None]:
    """Tells of whatever goes wrong inside as of something saved that does not fit what it is put into."""
    try:
        yield
    except EvolveError:
        raise
    except Exception as error:  # a plan, or an optimizer's state, that was damaged may make anything fail
        raise CheckpointError(
            f"What was saved in '{source}' does not fit: {type(error).__name__}: {error}. Build model and optimizer as "
            "they were built for it."
        ) from error
