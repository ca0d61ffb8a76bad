"""Whether a loop can do what a configuration asks of it."""

from __future__ import annotations

from evolve.errors import EvolveError
from evolve.evolver.config import EvolutionConfig
from evolve.evolver.loop import Loop
from evolve.policies import policies
from evolve.schedules import Schedule


def check_loop(config: EvolutionConfig, loop: Loop, schedule: Schedule | None) -> None:
    """Refuses what a loop cannot do before a step is made.

    Raises:
        EvolveError: With what to give the loop.
    """
    if config.care.batchnorm and type(loop).batches is Loop.batches:
        raise EvolveError("care.batchnorm reads training batches. Subclass evolve.Loop and write its method `batches`.")
    if config.repay and type(loop).limit_flops is Loop.limit_flops:
        raise EvolveError(
            "evolution.repay needs a budget. Subclass evolve.Loop and write its method `limit_flops`, or leave it out."
        )
    if policies.get(config.policy.name).needs_losses and type(loop).race is Loop.race:
        raise EvolveError(
            f"The policy '{config.policy.name}' races copies of the model. Subclass evolve.Loop and write its method "
            "`race`."
        )
    if policies.get(config.policy.name).needs_losses and not loop.knows_progress:
        raise EvolveError(
            f"The policy '{config.policy.name}' looks ahead to the end of the training. Tell the Loop how long it is: "
            "steps=..."
        )
    if config.probation and not loop.evaluates:
        raise EvolveError("evolution.probation judges by held-out data. Give the Loop `evaluate=`.")
    batches = max((entry.options.get("batches", 1) for entry in config.operators if entry.name == "narrow"), default=1)
    if batches > 1 and type(loop).loss_batches is Loop.loss_batches:
        raise EvolveError(
            f"narrow with batches: {batches} reads training batches. Subclass evolve.Loop and write its method "
            "`loss_batches`."
        )
    if schedule is not None and not loop.knows_progress and schedule.needs_progress:
        raise EvolveError(
            f"The schedule '{schedule.name}' counts parts of the training. Tell the Loop how long it is: steps=..."
        )
