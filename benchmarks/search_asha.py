"""Ray Tune's ASHA over widths and depths of the family, within CPU seconds: the rival that people have installed.

Asynchronous successive halving (Li et al. 2020) with its reduction factor of 4 as by default, and with CPU seconds as
what a trial is given, which the scheduler takes in place of epochs. Trials are drawn until their CPU time together is
the budget. What Ray itself takes is not counted.
"""

from __future__ import annotations

import logging
import tempfile
from typing import Any

import torch
from cifar import Data, accuracy, network
from search_arms import PEAK, Clock, Outcome, held_out, train_for

from evolve.structure.probe import count_parameters

WIDTHS, DEPTHS = (8, 12, 16), (1, 2)
FACTOR = 4  # the default of ASHAScheduler: of a rung the best quarter goes on, to four times the seconds
RUNGS = 2  # promotions that a trial can get


def asha(data: Data, budget: float, seed: int, share: float, peak: float = PEAK) -> Outcome:
    """Returns the best trial, by the held-out images, of those that the budget pays for.

    Args:
        data: The images.
        budget: CPU seconds of all trials together.
        seed: Of the widths and depths that are drawn, and of the trainings.
        share: Of the budget, that a trial gets which is stopped nowhere.
        peak: Highest learning rate; its cycle is over a trial's longest training.
    """
    import ray
    from ray import tune

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a trial that was never begun is an error to it
    most = share * budget
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        with tempfile.TemporaryDirectory() as folder:
            scheduler = tune.schedulers.ASHAScheduler(
                time_attr="cpu", max_t=most, grace_period=most / FACTOR**RUNGS, reduction_factor=FACTOR
            )
            tuner = tune.Tuner(
                tune.with_parameters(trial, data=data, most=most, seed=seed, peak=peak),
                param_space={"width": tune.choice(WIDTHS), "depth": tune.choice(DEPTHS)},
                tune_config=tune.TuneConfig(
                    metric="val",
                    mode="max",
                    scheduler=scheduler,
                    num_samples=-1,
                    reuse_actors=True,  # the next trial needs no process of its own
                    search_alg=tune.search.BasicVariantGenerator(max_concurrent=1, random_state=seed),
                ),
                run_config=tune.RunConfig(storage_path=folder, stop=stopper(budget), verbose=0),
            )
            results = tuner.fit()
    finally:
        ray.shutdown()
    return best_of([result.metrics for result in results if "val" in (result.metrics or {})])


def best_of(trials: list[dict[str, Any]]) -> Outcome:
    """Returns the best trial with the CPU seconds of all."""
    best = max(trials, key=lambda trial: trial["val"])
    what = f"w{best['config']['width']}d{best['config']['depth']}"
    spent = sum(trial["cpu"] for trial in trials)
    return Outcome(best["val"], best["test"], best["params"], spent, len(trials), what)


def stopper(budget: float) -> Any:
    """Returns what ends a search when the CPU time of all trials is the budget."""
    from ray import tune

    class Spent(tune.Stopper):  # type: ignore[misc]  # Ray has no types here
        def __init__(self) -> None:
            self.seconds: dict[str, float] = {}

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            self.seconds[trial_id] = result["cpu"]
            return self.stop_all()

        def stop_all(self) -> bool:
            return sum(self.seconds.values()) >= budget

    return Spent()


def trial(config: dict[str, Any], data: Data, most: float, seed: int, peak: float) -> None:
    """Trains one network, and reports at each rung how good it is, and often how much it has spent.

    The test images are looked at by the way, while the clock stands, so that no weights need be kept; no decision
    is told of it but in the table.
    """
    from ray import tune

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(seed)
    model = network(config["width"], config["depth"])
    rungs = [most / FACTOR**rung for rung in range(RUNGS, 0, -1)]
    every = rungs[0] / 2
    report: dict[str, float] = {"val": 0.0, "test": 0.0, "params": count_parameters(model), "cpu": 0.0}

    def judge(clock: Clock) -> None:
        report["val"] = held_out(model, data)
        report["test"] = clock.uncounted(lambda: accuracy(model, data.held_out("test")))

    def look(clock: Clock) -> None:
        spent = clock.read()
        if rungs and spent >= rungs[0]:
            rungs.pop(0)
            judge(clock)
            spent = clock.read()
        elif spent < report["cpu"] + every:
            return
        report["cpu"] = spent
        tune.report(dict(report))

    clock = train_for(model, data, most, peak, seed, look)
    judge(clock)
    tune.report({**report, "cpu": clock.read()})
