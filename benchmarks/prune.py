"""Pruning while training: one run of evolve beside Torch-Pruning, the small network from the start and the large one.

A residual network for CIFAR-10 (He et al. 2016; `--blocks 3` is their ResNet-20) is to have a half or a quarter of its
FLOPs. All arms make the same optimizer steps on the same batches, with one cycle of the learning rate over all of them:

- `evolve`: one run, narrowed to the target at 30 % of it (`prune.yaml`), at the large network's learning rate.
- `torch-pruning, same moment`: the same loop, pruned by Torch-Pruning at the same step; it knows no optimizer, so a new
  one begins there, as its documentation says.
- `torch-pruning, as usual`: trained for half of the steps with a cycle of its own, pruned, and fine-tuned for the other
  half with another cycle. Its learning rate here is that of fine-tuning; before, it is the large network's.
- `small`: uniformly narrower from the start, with the same FLOPs; `small, longer` trains for as many FLOPs as `evolve`.
- `large`: not pruned.

Both libraries rank all channels by the L2 norm of their weights over the mean of their group. All arms but `evolve` and
`small, longer` are trained at several peak learning rates with the first seed, and at the best of them, by the
validation images, with the others. Runs are kept, a line of JSON each, and not made twice; the arms take turns.
Printed are the accuracy on test images that decide nothing here, and the time of a training step over the large
network's, in these networks and in one that is four times as wide.
"""

from __future__ import annotations

import copy
import json
import statistics
import warnings
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch_pruning
import yaml
from cifar import BATCH, Data, accuracy, add_data, endless, load, make_optimizer, one_cycle, sample_flops, step
from growth_cycle import Run, Store
from timing import Timer, arguments, ratios, seconds, spread, write_json
from torch import nn

from evolve import EvolutionConfig, Evolver, TrainingConfig, build_model, mutate
from evolve.training.lr_schedule import LrScheduleConfig
from evolve.training.optim import OptimizerConfig

RATIOS = {"1/2": 0.5, "1/4": 0.25}
RATES = (0.2, 0.1, 0.4)
FINE = (0.1, 0.05, 0.2)  # of fine-tuning
WIDTH = 16
LARGE, EVOLVED, MOMENT, USUAL, SMALL, LONGER = (
    "large",
    "evolve",
    "torch-pruning, same moment",
    "torch-pruning, as usual",
    "small",
    "small, longer",
)
CONFIG = Path(__file__).with_suffix(".yaml")


def settings() -> dict[str, Any]:
    """Returns the evolved arm's configuration as written."""
    found: dict[str, Any] = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    return found


def network(width: int, blocks: int) -> nn.Module:
    """Returns a residual network of three stages, in channels-last."""
    model: nn.Module = build_model("small_resnet", width=width, blocks=[blocks] * 3)
    return model.to(memory_format=torch.channels_last)


@cache
def narrower(ratio: float, blocks: int) -> int:
    """Returns the width of the uniformly narrower network whose FLOPs are nearest to a part of the large one's."""
    goal = ratio * sample_flops(network(WIDTH, blocks))
    return min(range(1, WIDTH), key=lambda width: abs(sample_flops(network(width, blocks)) - goal))


class Training:
    """A loop as one would write it by hand: one cycle of the learning rate over all steps.

    Args:
        model: Trained in place.
        data: Its training images.
        seed: Of their order and augmentation.
        skip: Steps that another loop has made over the same batches.
    """

    def __init__(self, model: nn.Module, data: Data, seed: int, skip: int = 0) -> None:
        self.model = model.train()
        self.optimizer = make_optimizer(model)
        self._batches = endless(data.batches(seed))
        for _ in range(skip):
            next(self._batches)

    def run(self, peak: float, first: int, last: int, total: int) -> None:
        """Makes the steps from `first` to `last` of a cycle of `total`."""
        self.model.train()
        for number in range(first, last):
            for group in self.optimizer.param_groups:
                group["lr"] = one_cycle(number / total, peak)
            step(self.model, self.optimizer, *next(self._batches))


def prune(model: nn.Module, ratio: float) -> None:
    """Prunes by Torch-Pruning to a part of the FLOPs, in small steps until it is reached, as its own benchmark does."""
    inputs = torch.zeros(1, 3, 32, 32)
    head = next(layer for layer in model.modules() if isinstance(layer, nn.Linear))
    with warnings.catch_warnings(action="ignore"):
        pruner = torch_pruning.pruner.BasePruner(
            model.eval(),
            inputs,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            global_pruning=True,
            pruning_ratio=1.0,
            max_pruning_ratio=0.9,
            iterative_steps=400,
            ignored_layers=[head],
        )
        goal = ratio * sample_flops(model)
        while sample_flops(model) > goal:
            pruner.step()


def evolve(model: nn.Module, data: Data, run: Run, ratio: float) -> dict[str, Any]:
    """Makes one run of evolve that prunes."""
    config = settings()
    config["optimizer"]["options"]["lr"] = config["lr_schedule"]["options"]["max_lr"] = run.lr
    config["training"] |= {"epochs": int(run.budget), "seed": run.seed}
    for operator in config["evolution"]["operators"]:
        operator["options"]["target"]["flops"] = ratio
    evolver = Evolver(
        model,
        data.batches(run.seed),
        data.some_val(500),
        optimizer=OptimizerConfig(**config["optimizer"]),
        lr_schedule=LrScheduleConfig(**config["lr_schedule"]),
        training=TrainingConfig(**config["training"]),
        evolution=EvolutionConfig(**config["evolution"]),
        progress=False,
    )
    evolver.run()
    return {
        "spent": evolver.state.flops,
        "pruned_at": [record.step for record in evolver.lineage.applied],
        "told": [record.message for record in evolver.lineage],
    }


@cache
def trained(blocks: int, data: Data, images: int, steps: int, peak: float, seed: int) -> tuple[nn.Module, float]:
    """Returns the large network after a cycle of its own, for both targets, and the CPU seconds it took."""
    torch.manual_seed(seed)
    training = Training(network(WIDTH, blocks), data, seed)
    timer = Timer()
    training.run(peak, 0, steps, steps)
    return training.model, timer.read().cpu


def make(run: Run, store: Store, data: Data, blocks: int, moment: float) -> dict[str, Any]:
    """Trains one run and returns its figures."""
    kind, ratio = arm_of(run.arm)
    total = int(run.budget) * -(-run.images // BATCH)
    torch.manual_seed(run.seed)
    model = network(narrower(ratio, blocks) if kind in (SMALL, LONGER) else WIDTH, blocks)
    timer, before, more = Timer(), 0.0, dict[str, Any]()
    if kind == EVOLVED:
        more = evolve(model, data, run, ratio)
    elif kind == USUAL:
        half, peak = total // 2, store.best_lr(LARGE, run.images, run.budget) or RATES[0]
        known, before = trained(blocks, data, run.images, half, peak, run.seed)
        model, timer = copy.deepcopy(known), Timer()
        prune(model, ratio)
        Training(model, data, run.seed, skip=half).run(run.lr, 0, total - half, total - half)
    elif kind == MOMENT:
        training, at = Training(model, data, run.seed), -int(-moment * total // 1)
        training.run(run.lr, 0, at, total)
        prune(model, ratio)
        training.optimizer = make_optimizer(model)
        training.run(run.lr, at, total, total)
    else:
        if kind == LONGER:
            spent = store.figures(f"{EVOLVED} {run.arm.rpartition(' ')[2]}", run.images, run.budget, "spent")
            total = round(statistics.fmean(spent) / sample_flops(model) / BATCH)
        Training(model, data, run.seed).run(run.lr, 0, total, total)
    cpu = before + timer.read().cpu
    large = network(WIDTH, blocks)
    return {
        "cpu": cpu,
        "flops": sample_flops(model) // 3,
        "flops_ratio": sample_flops(model) / sample_flops(large),
        "params": sum(p.numel() for p in model.parameters()),
        "step_ratio": step_ratio(model, large),
        **more,
        **{name: accuracy(model, data.held_out(name)) for name in ("val", "test")},
    }


def step_ratio(model: nn.Module, large: nn.Module, pairs: int = 15) -> float:
    """Returns the CPU time of a training step over that of the large network: the median of pairs."""
    inputs, targets = torch.randn(BATCH, 3, 32, 32), torch.randint(0, 10, (BATCH,))
    copies = [copy.deepcopy(each).train() for each in (model, large)]
    acts = [(each, make_optimizer(each)) for each in copies]
    found = []
    for number in range(pairs + 2):
        took = [seconds(partial(step, net, optimizer, inputs, targets)) for net, optimizer in acts]
        if number > 1:
            found.append((took[0], took[1]))
    return ratios(found)["cpu"]["median"]


def wide(ratio: float, blocks: int, multiple_of: int) -> dict[str, Any]:
    """Returns what narrowing does to the step time of an untrained network that is four times as wide."""
    torch.manual_seed(0)
    large = network(4 * WIDTH, blocks)
    narrow = copy.deepcopy(large)
    options = {"target": {"flops": ratio}, "multiple_of": multiple_of}
    mutate(narrow, "narrow", site="*", example_inputs=torch.randn(2, 3, 32, 32), strict=True, seed=0, **options)
    narrow = narrow.to(memory_format=torch.channels_last)
    found = {"flops_ratio": sample_flops(narrow) / sample_flops(large), "step_ratio": step_ratio(narrow, large)}
    name = f"width {4 * WIDTH}, multiples of {multiple_of}, {next(key for key in RATIOS if RATIOS[key] == ratio)}"
    print(f"{name:31} {found['flops_ratio']:.3f} of the FLOPs, step {found['step_ratio']:.3f}", flush=True)
    return {"name": name, **found}


def arm_of(arm: str) -> tuple[str, float]:
    """Returns the kind of an arm and the part of the FLOPs it is to have."""
    kind, _, ratio = arm.rpartition(" ")
    return (kind, RATIOS[ratio]) if ratio in RATIOS else (arm, 1.0)


def plan(store: Store, images: int, epochs: float, seeds: int) -> Iterator[Run]:
    """Yields the runs to make: the learning rates first, then all arms seed by seed."""
    yield from (Run(LARGE, images, epochs, rate, 0) for rate in RATES)
    tuned = [f"{kind} {ratio}" for ratio in RATIOS for kind in (SMALL, MOMENT, USUAL)]
    for number in range(len(RATES)):
        for arm in tuned:
            yield Run(arm, images, epochs, (FINE if arm.startswith(USUAL) else RATES)[number], 0)
    for seed in range(seeds):
        rate = store.best_lr(LARGE, images, epochs) or RATES[0]
        yield Run(LARGE, images, epochs, rate, seed)
        yield from (Run(f"{EVOLVED} {ratio}", images, epochs, rate, seed) for ratio in RATIOS)
        yield from (Run(arm, images, epochs, store.best_lr(arm, images, epochs) or RATES[0], seed) for arm in tuned)
    for seed in range(seeds):
        for ratio in RATIOS:
            rate = store.best_lr(f"{SMALL} {ratio}", images, epochs) or RATES[0]
            yield Run(f"{LONGER} {ratio}", images, epochs, rate, seed)


def summary(store: Store, images: int, epochs: float) -> list[dict[str, Any]]:
    """Returns one case for each arm that has been trained, after telling it."""
    cases = []
    arms = [LARGE, *(f"{kind} {ratio}" for ratio in RATIOS for kind in (EVOLVED, MOMENT, USUAL, SMALL, LONGER))]
    for arm in arms:
        found = {key: store.figures(arm, images, epochs, key) for key in ("test", "val", "cpu", "flops", "params")}
        if not found["test"]:
            continue
        flops, steps = (store.figures(arm, images, epochs, key) for key in ("flops_ratio", "step_ratio"))
        deviation = statistics.stdev(found["test"]) if len(found["test"]) > 1 else 0.0
        cases.append(
            {
                "name": arm,
                "lr": store.best_lr(arm, images, epochs),
                **{key: spread(values) for key, values in found.items()},
                "test_mean": statistics.fmean(found["test"]),
                "test_std": deviation,
                "flops_ratio": statistics.fmean(flops),
                "step_ratio": statistics.fmean(steps),
            }
        )
        print(
            f"{arm:31} test {cases[-1]['test_mean']:.2f} ± {deviation:.2f} % ({len(found['test'])} seeds, lr "
            f"{cases[-1]['lr']:g}), CPU {statistics.fmean(found['cpu']):.0f} s, "
            f"{statistics.fmean(found['flops']) / 1e6:.1f} MFLOPs ({cases[-1]['flops_ratio']:.3f}), "
            f"{statistics.fmean(found['params']):,.0f} parameters, step {cases[-1]['step_ratio']:.3f}"
        )
    return cases


def main() -> None:
    parser = add_data(arguments(__doc__, repetitions=3))
    parser.add_argument("--results", type=Path, default=Path("prune.jsonl"), help="where runs are kept (%(default)s)")
    parser.add_argument("--images", type=int, default=10_000, help="training images (%(default)s)")
    parser.add_argument("--epochs", type=int, default=6, help="of every arm but the longer one (%(default)s)")
    parser.add_argument("--blocks", type=int, default=1, help="residual blocks in each of three stages (%(default)s)")
    parser.add_argument("--summary", action="store_true", help="make no runs, tell those that are kept")
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    torch.set_flush_denormal(True)
    store = Store(chosen.results)
    data = load(chosen.data, chosen.images)
    moment = settings()["evolution"]["schedule"]["options"]["progress"][0]
    for run in () if chosen.summary else plan(store, chosen.images, float(chosen.epochs), chosen.repetitions):
        if run not in store.rows and chosen.only in run.arm:
            store.add(run, make(run, store, data, chosen.blocks, moment))
            print(json.dumps(store.rows[run]), flush=True)
    cases = summary(store, chosen.images, float(chosen.epochs))
    if not chosen.summary:
        cases += [wide(ratio, chosen.blocks, multiple) for ratio in RATIOS.values() for multiple in (1, 16)]
    write_json(chosen.json, "prune", cases)


if __name__ == "__main__":
    main()
