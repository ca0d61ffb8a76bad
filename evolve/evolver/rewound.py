"""The model of a run as it was after one of its mutations, from the checkpoints that were kept or by replay alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from evolve.errors import CheckpointError, EvolveError
from evolve.evolver.saved_config import saved_model_config
from evolve.lineage import Record
from evolve.models import build_model
from evolve.mutation.replaying import replay
from evolve.runtime.generators import preserved_rng
from evolve.training.checkpoint import REPLAYED
from evolve.training.folder import replace_text, write_text, written_whole
from evolve.training.opening import (
    BEST,
    CONFIG,
    CONTENT,
    FOLDER,
    RECORDS,
    STATE,
    VERSION,
    WEIGHTS,
    Checkpoint,
    fault_of,
    open_checkpoint,
    open_newest,
    paths_of,
)
from evolve.training.restoring import fitting
from evolve.training.run_files import METRICS
from evolve.training.tensors import extra_state, write_model, write_state


@dataclass(frozen=True)
class Rewound:
    """A run as it stood right after one of its attempts.

    Attributes:
        until: Number of the attempt; None for before the first one.
        records: Up to that attempt and with it.
        newest: The newest checkpoint of the run.
        trained: The newest checkpoint whose model has these mutations and no other; None where none was kept.
        kept: For each checkpoint that was kept the number of the last mutation that its model has; None for none.
    """

    until: int | None
    records: list[Record]
    newest: Checkpoint
    trained: Checkpoint | None
    kept: list[int | None]

    @property
    def applied(self) -> list[Record]:
        """The mutations that the model has."""
        return [record for record in self.records if record.status == "applied"]

    @property
    def parameters(self) -> int | None:
        """Parameters of the model, as recorded; None where nothing was."""
        if self.applied:
            return self.applied[-1].params_after
        return self.newest.records[0].params_before if self.newest.records else None


def rewind(run: Path, until: int | None) -> Rewound:
    """Looks for the model that a run had after one of its attempts.

    Args:
        run: The run folder.
        until: Number of the attempt, as in `Record.index`; None for the base model.

    Raises:
        CheckpointError: If the run has no whole checkpoint.
        EvolveError: If its newest one knows of no such attempt.
    """
    newest = open_newest(run)
    known = len(newest.records)
    if until is not None and not 0 <= until < known:
        told = f"has mutations 0 to {known - 1}" if known else "has none"
        raise EvolveError(
            f"There is no mutation {until}: the newest checkpoint of '{run}' {told}. `evolve report {run}` lists them; "
            "--until base is before all of them."
        )
    records = newest.records[: 0 if until is None else until + 1]
    wanted = _applied(records)
    checkpoints = [
        open_checkpoint(path) for root in (FOLDER, BEST) for path in paths_of(run, root) if not fault_of(path)
    ]
    found = [checkpoint for checkpoint in checkpoints if _applied(checkpoint.records) == wanted]
    kept = sorted({max(_applied(checkpoint.records), default=-1) for checkpoint in checkpoints})
    trained = max(found, key=lambda checkpoint: checkpoint.content.step, default=None)
    return Rewound(until, records, newest, trained, [None if number < 0 else number for number in kept])


def _applied(records: list[Record]) -> list[int]:
    return [record.index for record in records if record.status == "applied"]


def write_rewound(rewound: Rewound, folder: Path, *, trust: bool = False) -> None:
    """Writes a run folder that `evolve.load` takes; one with trained weights can be resumed too.

    Args:
        rewound: What is to be written.
        folder: A folder that is empty, or not there yet.
        trust: Import what the run's configuration names, where the model has to be built.

    Raises:
        EvolveError: If there is something in the folder already.
        CheckpointError: If it cannot be written, or the records do not fit the base model.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise EvolveError(f"'{folder}' is there already, and nothing is written over. Give a new folder.")
    source = rewound.trained or rewound.newest
    if source.config is None:
        raise CheckpointError(
            f"'{source.run}' has no {CONFIG} to build the base model from; it cannot be written anew."
        )
    model = None if rewound.trained else rebuilt(rewound, trust=trust)
    if rewound.trained is not None:
        target = folder / FOLDER / rewound.trained.path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(rewound.trained.path, target)
    if model is not None:
        _write_untrained(model, rewound, folder / FOLDER / "step-00000000", source.config)
    replace_text(folder / CONFIG, source.config)
    replace_text(folder / RECORDS, "".join(record.model_dump_json() + "\n" for record in _told(rewound)))
    history = rewound.trained.content.progress.get("history", []) if rewound.trained else []
    replace_text(folder / METRICS, "".join(json.dumps(line) + "\n" for line in history))


def _told(rewound: Rewound) -> list[Record]:
    return rewound.trained.records if rewound.trained else rewound.records


def rebuilt(rewound: Rewound, *, trust: bool = False) -> nn.Module:
    """Builds the base model and replays the mutations on it; the weights are drawn, not trained.

    Raises:
        CheckpointError: If the records do not fit.
        ConfigError: If the configuration cannot be used, or names code that is not trusted.
    """
    config = saved_model_config(rewound.newest, trust=trust)
    with preserved_rng(0):
        model = build_model(config.name, **config.options)
        with fitting(rewound.newest.path):
            replay(model, rewound.records)
    return model.eval()


def _write_untrained(model: nn.Module, rewound: Rewound, target: Path, config: str) -> None:
    """Writes a checkpoint of a model that nothing has trained: there is no optimizer to go on with."""
    names = ("optimizer", "lr_schedule", "scheduler", "scaler", "ema", "best", "new_parameters", "random")
    counts = dict.fromkeys(("epoch", "step", "batch", "seconds", "flops", "flops_per_sample"), 0)
    content = {"version": VERSION, **counts, "finite": {}, "progress": {REPLAYED: True}}
    with written_whole(target) as folder:
        write_text(folder / RECORDS, "".join(record.model_dump_json() + "\n" for record in rewound.records))
        write_text(folder / CONTENT, json.dumps(content))
        write_text(folder / CONFIG, config)
        write_model(model, folder / WEIGHTS)
        write_state({**dict.fromkeys(names), "extra": extra_state(model)}, folder / STATE)
