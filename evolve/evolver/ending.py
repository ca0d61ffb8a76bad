"""What is said of a run at its beginning and at its end, in plain text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from evolve.evolver.config import EvolutionConfig
from evolve.evolver.evolver import Evolver
from evolve.evolver.going_on import Start
from evolve.evolver.output import RunResult
from evolve.lineage import Record
from evolve.training.lines import wrapped
from evolve.training.monitor import best_value


def opening_lines(start: Start) -> list[str]:
    """Returns what is trained on what, and where a run goes on, from where and with what changed."""
    evolver, lines = start.evolver, []
    if start.goes_on:
        stands = f"step {evolver.state.step:,}, {evolver.state.progress:.1%} of {evolver.training.budget}"
        lines.append(f"Going on with {evolver.output.dir} at {stands}.")
        lines += [line for change in start.changed for line in wrapped(f"- {change}", then="  ")]
        if evolver.state.progress >= 1:
            unit = evolver.training.budget.unit
            more = f"evolve resume {evolver.output.dir} training.{unit}=..."
            lines += wrapped(f"Its budget is spent, so nothing is trained. For longer, with a larger number: {more}")
    names = (evolver.train_data, evolver.val_data)
    several = f" x {evolver.world.size}" if evolver.world.size > 1 else ""
    lines += wrapped(
        f"{type(evolver.model).__name__} on {evolver.state.device}{several}: {names[0].samples:,} training and "
        f"{names[1].samples:,} held-out samples, {evolver.training.budget}."
    )
    return lines


def closing_lines(evolver: Evolver, result: RunResult) -> list[str]:
    """Returns how a run ended and what came of it."""
    monitor, budget, metrics = evolver.monitor, evolver.training.budget, result.metrics
    best = best_value(evolver.history, monitor)
    lines = [""]
    if not result.finished:
        lines.append(f"Stopped by {'a signal' if result.signal else 'request'} at {result.progress:.1%} of {budget}.")
    elif result.stopped_early:
        since = len(evolver.history) - (best[0] + 1 if best else 0)
        epochs = f"{since} epoch{'s' if since > 1 else ''}"
        told = f"not better than {best[1]:.4g}" if best else "never a finite number"
        lines.append(f"Stopped early: {monitor.metric} {told} for {epochs}.")
    best_line = evolver.history[best[0]] if best is not None else {}
    if best is not None:
        size = best_line["params"]
        smaller = f", {size:,} parameters" if size != result.params_to else ""
        lines.append(_row(f"Best {monitor.metric}", f"{best[1]:.4g} (epoch {best_line['epoch']}{smaller})"))
    if "val_accuracy" in metrics:
        lines.append(_row("Held-out accuracy", _then_and_now(best_line, metrics, "val_accuracy")))
    elif "val_loss" in metrics:
        lines.append(_row("Held-out loss", f"{metrics['val_loss']:.4g}"))
    kept = evolver.state.best.line if result.finished and evolver.state.best else None
    if kept is not None:
        lines.append(_row("Weights", f"of epoch {kept['epoch']}"))
    elif monitor.metric in metrics and monitor.metric not in ("val_accuracy", "val_loss"):
        lines.append(_row(f"Last {monitor.metric}", f"{metrics[monitor.metric]:.4g}"))
    lines.append(_row("Mutations", f"{result.applied} applied, {result.refused} refused"))
    lines.append(_row("Parameters", f"{result.params_from:,} → {result.params_to:,}"))
    if result.folder is not None:
        lines.append(_row("Run folder", str(result.folder)))
        lines.append(_row("Next", f"evolve {'report' if result.finished else 'resume'} {result.folder}"))
    schedule = evolver.evolution.schedule
    if schedule is not None and result.finished and not result.applied:
        lines += _without_mutation(evolver.evolution, list(evolver.lineage))
    return lines


def _then_and_now(best: Mapping[str, Any], last: Mapping[str, Any], key: str) -> str:
    """Gives a share at the best epoch, whose model is the one that is loaded, and at the last, where they differ."""
    now = f"{last[key]:.2%}"
    if key not in best or best["epoch"] == last.get("epoch"):
        return now
    return f"{best[key]:.2%} (epoch {best['epoch']}), {now} (epoch {last['epoch']})"


def _row(name: str, value: str) -> str:
    return f"{name:<19} {value}"


def _without_mutation(evolution: EvolutionConfig, refused: Sequence[Record]) -> list[str]:
    """Says that a run that was to mutate its model never did, and why."""
    schedule = evolution.schedule.name if evolution.schedule else ""
    if not refused and evolution.policy.name == "forecast":
        return ["", "The model was not changed: no larger one was forecast to end better (forecasts.jsonl)."]
    if not refused:
        return ["", f"No mutation was tried: the schedule '{schedule}' was never due, or no operator had a site."]
    reasons = Counter(f"{record.operator} at '{record.site}': {record.message}" for record in refused)
    count = f"{len(refused)} were" if len(refused) > 1 else "1 was"
    lines = ["", f"No mutation was applied: {count} tried and refused."]
    for reason, times in reasons.most_common(5):
        lines += wrapped(f"- {reason} ({times} times)" if times > 1 else f"- {reason}", 78, then="  ")
    return lines
