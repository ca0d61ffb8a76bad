"""Optuna proposes, evolve mutates and trains: which operators, in which part of a network, at which learning rate.

    pip install ".[optuna]"
    python examples/optuna_search.py

Each trial takes a copy of a trained network, grows it as Optuna says and trains it on for a few epochs. Optuna is told
of every epoch, and prunes what falls behind. It sees numbers alone: `evolve.search` also breeds from children.
"""

import copy

import optuna
from torch import Tensor, nn

import evolve
from evolve.data import Data, build_data
from evolve.training.events import EpochEnded, Event

OPERATORS = ["widen", "deepen", "residual"]
REGIONS = 3  # of the network: its beginning, middle and end


def train(model: nn.Module, data: Data, epochs: int, rate: float, callbacks=()) -> evolve.RunResult:
    """Trains a network; the learning rate falls to zero."""
    evolver = evolve.Evolver(
        model,
        data.train,
        data.val,
        optimizer=evolve.OptimizerConfig(name="SGD", options={"lr": rate, "momentum": 0.9}),
        lr_schedule=evolve.LrScheduleConfig(name="CosineAnnealingLR"),
        training=evolve.TrainingConfig(epochs=epochs, seed=0, device="cpu"),
        callbacks=callbacks,
        progress=False,
    )
    return evolver.run()


def grow(model: nn.Module, trial: optuna.Trial, inputs: Tensor) -> None:
    """Makes the mutations that a trial proposes; one that is refused ends the trial."""
    for number in range(trial.suggest_int("mutations", 0, 2)):
        operator = trial.suggest_categorical(f"operator_{number}", OPERATORS)
        region = trial.suggest_int(f"region_{number}", 0, REGIONS - 1)
        sites = evolve.sites(model, operator, example_inputs=inputs)
        site = sites[(2 * region + 1) * len(sites) // (2 * REGIONS)]
        ok, message = evolve.mutate(model, operator, site=site, example_inputs=inputs)
        if not ok:
            raise optuna.TrialPruned(message)


class Reporter:
    """Tells a trial of every epoch, and stops the run where the trial is to be pruned."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial
        self.pruned = False

    def __call__(self, event: Event) -> None:
        if isinstance(event, EpochEnded):
            self.trial.report(event.metrics["val_accuracy"], event.metrics["epoch"])
            self.pruned = self.trial.should_prune()
            if self.pruned:
                event.run.stop()


def main(trials: int = 12, epochs: int = 3) -> optuna.Study:
    """Searches, and returns the study."""
    data = build_data("digits", batch_size=64)
    inputs = data.train.examples(8)[0]
    first = evolve.build_model("small_resnet", in_channels=1, width=8)
    train(first, data, epochs, rate=0.05)

    def objective(trial: optuna.Trial) -> float:
        model, reporter = copy.deepcopy(first), Reporter(trial)
        grow(model, trial, inputs)
        result = train(model, data, epochs, trial.suggest_float("rate", 0.005, 0.1, log=True), [reporter])
        trial.set_user_attr("params", result.params_to)
        if reporter.pruned:
            raise optuna.TrialPruned
        return result.metrics["val_accuracy"]

    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3),
    )
    study.optimize(objective, n_trials=trials)
    return study


if __name__ == "__main__":
    best = main().best_trial
    print(f"{best.value:.2%} with {best.user_attrs['params']:,} parameters: {best.params}")
