"""What is checked once model and data exist, before the first step: sites, metrics, FLOPs."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from typing import Any

from evolve.config import KeyPath
from evolve.config.faults import key_text
from evolve.config.options import Monitor
from evolve.data import Batches
from evolve.data.trees import Batch
from evolve.errors import MisfitError, NotApplicable, NotYetApplicable
from evolve.evolver.config import EvolutionConfig
from evolve.evolver.watched import metric_faults, not_measured
from evolve.mutation.api import create_operator
from evolve.mutation.verify import first_look
from evolve.policies import Fixed
from evolve.runtime.generators import preserved_rng
from evolve.structure.inputs import as_inputs
from evolve.structure.probe import Probe, count_parameters
from evolve.structure.sites import STORE, resolve
from evolve.training import TrainState, check_data, place

logger = logging.getLogger(__name__)

Faults = Iterator[tuple[KeyPath, str]]


def check_run(config: EvolutionConfig, state: TrainState, train: Batches, val: Batches, monitor: Monitor) -> None:
    """Checks that configuration, model and data fit each other; nothing is changed.

    Raises:
        MisfitError: With the cause.
    """
    measured = check_data(state, train, val)
    if fault := not_measured(monitor.metric, measured):
        raise MisfitError(f"training.monitor.metric: {fault}")
    check_evolution(config, state, train.examples(config.probe), measured, monitor)


def check_evolution(
    config: EvolutionConfig, state: TrainState, probe: Batch, metrics: Collection[str], monitor: Monitor
) -> None:
    """Checks the configured evolution against the model and against what the run measures.

    Args:
        config: When, what and how far to mutate.
        state: A run that is about to begin.
        probe: The batch that mutations are verified on.
        metrics: What an evaluation on the run's data gives, such as "loss" and "accuracy".
        monitor: The metric that decisions look at.

    Raises:
        MisfitError: With everything that could never work.
    """
    if config.schedule is None:
        return
    faults = [
        *metric_faults(config, metrics, monitor),
        *_figure_faults(config, state),
        *site_faults(config, state, probe),
    ]
    if faults:
        lines = [f"  evolution.{key_text(path)}: {message}" for path, message in faults]
        raise MisfitError("\n".join(["The configuration does not fit the model and its data:", *lines]))


def _figure_faults(config: EvolutionConfig, state: TrainState) -> Faults:
    if not state.flops_per_sample:
        why = "the FLOPs of this model cannot be counted"
        if config.schedule is not None and config.schedule.build().needs_flops:
            yield ("schedule",), f"'{config.schedule.name}' compares FLOPs, and {why}. Use per: seconds, or 'plateau'."
        if config.limits.flops is not None:
            yield ("limits", "flops"), f"{why}. Limit params or latency_ms instead."
    for name, value in (("params", count_parameters(state.model)), ("flops", state.flops_per_sample)):
        limit = getattr(config.limits, name)
        if limit is not None and value > limit:
            logger.warning(
                "The model has %s %s before any mutation, more than evolution.limits.%s (%s): no mutation will be "
                "applied that leaves more.",
                f"{value:,}", name, name, f"{limit:,}",
            )  # fmt: skip


def site_faults(config: EvolutionConfig, state: TrainState, probe: Batch) -> Faults:
    """Yields what speaks against the sites that a configuration names: where, and why they can never be used.

    Args:
        config: Names operators and their sites.
        state: A run that is about to begin.
        probe: The batch that mutations are verified on.
    """
    named = list(_named_sites(config))
    if not named:
        return
    inputs, loss = state.task.arguments(state.model, probe), state.task.loss_of(state.model, place(state, probe))
    try:
        with preserved_rng(0):
            seen = first_look(state.model, as_inputs(state.model, inputs), 0, loss)
    except NotApplicable as error:
        yield ("operators",), f"no mutation can be verified. {error}"
        return
    for path, operator, options, site in named:
        if site.partition(".")[0] != STORE and (fault := _objection(operator, options, site, state, seen)):
            yield path, fault


def _named_sites(config: EvolutionConfig) -> Iterator[tuple[KeyPath, str, dict[str, Any], str]]:
    """Yields the sites that the configuration names: where, for which operator with which options."""
    for index, entry in enumerate(config.operators):
        for position, site in enumerate(entry.sites or ()):
            yield ("operators", index, "sites", position), entry.name, entry.options, site
    policy = config.policy.build()
    if isinstance(policy, Fixed):
        options = {entry.name: entry.options for entry in reversed(config.operators)}
        for index, step in enumerate(policy.options.steps):
            if step.site is not None:
                yield ("policy", "options", "steps", index, "site"), step.operator, options[step.operator], step.site


def _objection(operator: str, options: dict[str, Any], site: str, state: TrainState, seen: Probe) -> str | None:
    """Returns why an operator can never work at a site of the model; None where it can, or may later."""
    acting = create_operator(operator, options)
    try:
        with preserved_rng(0):
            acting.plan(state.model, resolve(state.model, site, groups=acting.on_groups), seen)
    except NotYetApplicable as error:
        logger.info("%s at '%s' does not apply yet: %s", operator, site, error)
    except NotApplicable as error:
        return f"'{operator}' does not apply at '{site}': {error}"
    except Exception as error:  # a plugin may raise anything; the attempt itself will record it
        logger.warning("%s at '%s' fails as it plans: %s: %s", operator, site, type(error).__name__, error)
    return None
