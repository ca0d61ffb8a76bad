"""One configuration, several seeds: a run each in a folder of its own, and a summary of them all."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from evolve.config import COMMAND_LINE, ConfigError, Fault, Place
from evolve.errors import EvolveError
from evolve.evolver.run_config import RunConfig
from evolve.evolver.run_folder import any_checkpoint
from evolve.evolver.saved_config import check_changes
from evolve.training.folder import replace_text
from evolve.training.monitor import best_value, find_monitor, out_of_patience
from evolve.training.new_budget import budget_of
from evolve.training.opening import Checkpoint, open_newest

SUMMARY = "summary.json"
_RANGE = re.compile(r"(\d{1,10})(?:\.\.(\d{1,10}))?")
_MOST = 1000
# What is averaged: the key in the summary, its heading, and how a number is written.
_COLUMNS = (("best", "best", ".4g"), ("val_loss", "val_loss", ".4g"), ("params", "parameters", ",.0f"),
            ("mutations", "mutations", ".3g"))  # fmt: skip


def parse_seeds(text: str) -> list[int]:
    """Reads "0..4" (both included), "0,3,7", or both together.

    Raises:
        ConfigError: If it is neither, or names a seed twice.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        first = int(match[1]) if match else 0
        last = int(match[2] or first) if match else -1
        if last < first or last >= 2**31 or last - first >= _MOST:
            message = f"--seeds {text}: '{part}' is no seed and no range of them. Write 0..4, or 0,3,7."
            raise ConfigError([Fault((), Place(COMMAND_LINE), message)])
        seeds += range(first, last + 1)
    if len(set(seeds)) < len(seeds):
        raise ConfigError([Fault((), Place(COMMAND_LINE), f"--seeds {text} names a seed twice.")])
    return seeds


def check_seeds(config: RunConfig, seeds: Sequence[int], overrides: Sequence[str], *, go_on: bool) -> Path:
    """Returns the folder of all runs, if they can begin.

    Args:
        config: That of all of them.
        seeds: Of the runs.
        overrides: What the command line said.
        go_on: Whether runs that are there already are gone on with.

    Raises:
        ConfigError: If there is no folder, or the command line sets one seed too.
        EvolveError: If there are runs in it already, and they are not to be gone on with.
    """
    faults = []
    if config.output.dir is None:
        faults.append(Fault(("output", "dir"), Place(COMMAND_LINE), "is null; --seeds needs a folder for its runs."))
    if any(override.partition("=")[0].strip() == "training.seed" for override in overrides):
        faults.append(Fault(("training", "seed"), Place(COMMAND_LINE), "--seeds sets it; leave one of them out."))
    if faults:
        raise ConfigError(faults)
    folder = config.output.folder
    if any_checkpoint(folder):
        raise EvolveError(f"'{folder}' holds a run of its own. Choose another folder for those of --seeds: output.dir.")
    there = [str(path) for seed in seeds if any_checkpoint(path := of_seed(config, seed).output.folder)]
    if there and not go_on and not config.output.overwrite:
        raise EvolveError(
            f"There are runs already: {', '.join(there)}. Go on with them (--resume auto), or write elsewhere "
            "(output.dir=...), or over them (output.overwrite=true)."
        )
    return folder


def of_seed(config: RunConfig, seed: int) -> RunConfig:
    """Returns the configuration of one of the runs, in `seed-N` of the folder."""
    training = config.training.model_copy(update={"seed": seed})
    output = config.output.model_copy(update={"dir": str(config.output.folder / f"seed-{seed}")})
    return config.model_copy(update={"training": training, "output": output})


def is_over(config: RunConfig, file: str | Path, overrides: Sequence[str] = ()) -> bool:
    """Whether the run of a configuration lies in its folder and is finished, by its present budget and patience.

    Args:
        config: Of the run.
        file: Where it comes from.
        overrides: What the command line said.

    Raises:
        ConfigError: If the run in the folder is another one.
    """
    folder = config.output.folder
    if not any_checkpoint(folder):
        return False
    checkpoint = open_newest(folder)
    check_changes(checkpoint, config, file, overrides)
    return _is_over(checkpoint, config)


def _is_over(checkpoint: Checkpoint, config: RunConfig) -> bool:
    progress = checkpoint.content.progress
    history = progress["history"]
    spent = bool(history) and history[-1]["progress"] >= 1 and budget_of(progress) == config.training.budget
    monitor = find_monitor(config.training.monitor, config.task.measured())
    return spent or out_of_patience(history, monitor, config.training.patience)


def summarize(config: RunConfig, seeds: Sequence[int], failed: Mapping[int, str]) -> dict[str, Any]:
    """Returns what came of the runs and writes it to `summary.json` beside them.

    Args:
        config: That of all of them.
        seeds: Of the runs.
        failed: What ended those that did not come to their end, by seed.

    Returns:
        JSON values: the monitor, a row for each run, and mean and standard deviation (of a sample, n - 1) of the best
        value of the monitor, the last loss, the parameters and the mutations that were applied.
    """
    monitor = find_monitor(config.training.monitor, config.task.measured())
    rows = [_row(of_seed(config, seed)) for seed in seeds if seed not in failed]
    numbers = {key: [row[key] for row in rows if row[key] is not None] for key, _, _ in _COLUMNS}
    summary = {
        "metric": monitor.metric,
        "mode": monitor.mode,
        "runs": rows,
        "failed": {str(seed): message for seed, message in failed.items()},
        "mean": {key: fmean(values) if values else None for key, values in numbers.items()},
        "std": {key: stdev(values) if len(values) > 1 else None for key, values in numbers.items()},
    }
    replace_text(config.output.folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary


def _row(config: RunConfig) -> dict[str, Any]:
    checkpoint = open_newest(config.output.folder)
    history = checkpoint.content.progress["history"]
    monitor = find_monitor(config.training.monitor, config.task.measured())
    best = best_value(history, monitor)
    applied = sum(record.status == "applied" for record in checkpoint.records)
    last = history[-1] if history else {}
    return {
        "seed": config.training.seed,
        "folder": config.output.dir,
        "finished": _is_over(checkpoint, config),
        "epochs": last.get("epoch"),
        "best": best[1] if best else None,
        "best_epoch": history[best[0]]["epoch"] if best else None,
        "last": last.get(monitor.metric),
        "val_loss": last.get("val_loss"),
        "params": last.get("params"),
        "mutations": applied,
        "refused": len(checkpoint.records) - applied,
    }


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """Returns the summary as a table."""
    headings = "".join(f"{heading:>14}" for _, heading, _ in _COLUMNS)
    lines = ["", f"Best {summary['metric']} of each run; loss, parameters and mutations at its end."]
    lines.append(f"{'seed':>6}{headings}")
    for name, values in [
        *((str(row["seed"]), row) for row in summary["runs"]),
        ("mean", summary["mean"]),
        ("± std", summary["std"]),
    ]:
        cells = ("-" if values[key] is None else f"{values[key]:{form}}" for key, _, form in _COLUMNS)
        lines.append(f"{name:>6}" + "".join(f"{cell:>14}" for cell in cells))
    lines += [f"Seed {seed} failed: {message}" for seed, message in summary["failed"].items()]
    return lines
