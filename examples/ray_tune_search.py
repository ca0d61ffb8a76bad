"""Ray Tune proposes, evolve mutates and trains: which operator, where in a network, at which learning rate.

    pip install ".[tune]"
    python examples/ray_tune_search.py

Each trial takes a trained network, grows it as Tune says and trains it on for a few epochs. Tune is told of each epoch,
and its scheduler ends trials that fall behind. The operators come with `import evolve`, so that any worker has them.
"""

from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from torch import Tensor, nn

import evolve
from evolve.data import build_data
from evolve.training.events import EpochEnded, Event

OPTIONS = {"in_channels": 1, "width": 8}


def train(model: nn.Module, epochs: int, rate: float, callbacks=()) -> evolve.RunResult:
    """Trains a network on the bundled digits; the learning rate falls to zero."""
    data = build_data("digits", batch_size=64)
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


def child(config: dict[str, Any], weights: dict[str, Tensor], epochs: int) -> None:
    """Grows the trained network by one mutation and trains it on: a trial."""
    model = evolve.build_model("small_resnet", **OPTIONS)
    model.load_state_dict(weights)
    inputs = build_data("digits", batch_size=64).train.examples(8)[0]
    sites = evolve.sites(model, config["operator"], example_inputs=inputs)
    site = sites[int(config["depth"] * len(sites))]
    evolve.mutate(model, config["operator"], site=site, example_inputs=inputs)  # one that is refused changes nothing
    params = sum(parameter.numel() for parameter in model.parameters())

    def report(event: Event) -> None:
        if isinstance(event, EpochEnded):
            tune.report({"val_accuracy": event.metrics["val_accuracy"], "params": params, "site": site})

    train(model, epochs, config["rate"], [report])


def main(trials: int = 6, epochs: int = 3, folder: str = "runs/ray_tune") -> tune.ResultGrid:
    """Searches, and returns Tune's results, which also lie in a folder."""
    first = evolve.build_model("small_resnet", **OPTIONS)
    train(first, epochs, rate=0.05)
    own = not ray.is_initialized()
    if own:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        tuner = tune.Tuner(
            tune.with_parameters(child, weights=first.state_dict(), epochs=epochs),
            param_space={
                "operator": tune.choice(["widen", "deepen", "residual"]),
                "depth": tune.uniform(0, 1),
                "rate": tune.loguniform(0.005, 0.1),
            },
            tune_config=tune.TuneConfig(
                metric="val_accuracy",
                mode="max",
                num_samples=trials,
                scheduler=ASHAScheduler(max_t=epochs),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(storage_path=str(Path(folder).resolve()), verbose=0),
        )
        return tuner.fit()
    finally:
        if own:
            ray.shutdown()


if __name__ == "__main__":
    best = main().get_best_result()
    print(f"{best.metrics['val_accuracy']:.2%} with {best.metrics['params']:,} parameters: {best.config}")
