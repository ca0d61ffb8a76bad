"""Whether policies find what helps, and what it costs to decide.

Two tasks for the same small convolutional net. In one of them only width helps: eight independent values are to be
told, and the net has two channels to bring them through. In the other only depth helps: what has to be told apart looks
the same through every window that a single layer sees. Both are checked by training: every candidate is made, trained
on, and its held-out loss is put beside that of the net without a mutation. Then each policy decides, from ten seeds.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timing import Timer, arguments, machine, seconds, write_json
from torch import Tensor, nn

from evolve import EvolutionConfig, Evolver, OptimizerConfig, TrainingConfig, build_model, mutate
from evolve.training import train_step

Data = tuple[Tensor, Tensor]
SAMPLES, LENGTH, CHANNELS = 4096, 24, 8
OPERATORS: list[dict[str, Any]] = [
    {"name": "widen", "sites": ["0"], "options": {"add": 2, "init": "twins"}},
    {"name": "deepen", "sites": ["0", "4"]},
]


@dataclass(frozen=True)
class Task:
    """Data and the net to begin with.

    Attributes:
        right: The operator that helps.
        data: Makes samples, from a seed.
        channels: Hidden channels of the net.
        outputs: Values to be told.
        loss: Name of a function of `torch.nn.functional`.
    """

    right: str
    data: Callable[[int, int], Data]
    channels: int
    outputs: int
    loss: str

    def net(self, seed: int) -> nn.Module:
        """Returns a net that sees three positions at a time, all around."""
        torch.manual_seed(seed)
        first = nn.Conv1d(CHANNELS, self.channels, 3, padding=1, padding_mode="circular")
        return nn.Sequential(
            first, nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(self.channels, self.outputs)
        )


def only_width(samples: int, seed: int) -> Data:
    """Eight means, independent of each other, of the eight channels turned; some noise.

    Whatever stands behind two channels that are averaged gives values on a surface of two dimensions.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, CHANNELS, LENGTH, generator=generator)
    turn = torch.linalg.qr(torch.randn(CHANNELS, CHANNELS, generator=torch.Generator().manual_seed(0))).Q
    y = x.mean(2) @ turn * LENGTH**0.5
    return x, y + 0.3 * torch.randn(y.shape, generator=generator)


def only_depth(samples: int, seed: int) -> Data:
    """Two pulses on a ring, three or nine apart, and some noise; one label in ten is wrong.

    No window of three positions holds both of them, so every such window looks the same in either class.
    """
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (samples,), generator=generator)
    first = torch.randint(LENGTH, (samples,), generator=generator)
    x = 0.02 * torch.randn(samples, CHANNELS, LENGTH, generator=generator)
    rows = torch.arange(samples)
    x[rows, 0, first] += 1
    x[rows, 0, (first + torch.where(y == 0, 3, 9)) % LENGTH] += 1
    wrong = torch.rand(samples, generator=generator) < 0.1
    return x, torch.where(wrong, 1 - y, y)


TASKS = {
    "only width helps": Task("widen", only_width, 2, 8, "mse_loss"),
    "only depth helps": Task("deepen", only_depth, 8, 2, "cross_entropy"),
}
POLICIES: dict[str, dict[str, Any]] = {
    "random": {"name": "random"},
    "gradient, gradmax": {"name": "gradient", "options": {"score": "gradmax", "batches": 16}},
    "gradient, sensli": {"name": "gradient", "options": {"score": "sensli", "batches": 16}},
    "gradient, senn": {"name": "gradient", "options": {"score": "senn"}},
    "gradient, tiny": {"name": "gradient", "options": {"score": "tiny"}},
    "bandit": {"name": "bandit"},
    "hill_climb": {"name": "hill_climb", "options": {"children": 3, "steps": 200}},
}
ROUNDS = 8  # mutations after which the bandit is asked what it has found
BEFORE, BETWEEN = 4, 3  # epochs before the first decision, and from one to the next


def evolver(task: Task, seed: int, policy: dict[str, Any] | None, decisions: int = 1) -> Evolver:
    """Returns a run that decides so often."""
    config = dict(policy or {"name": "random"})
    if config["name"] in {"random", "gradient", "bandit", "hill_climb"}:
        config["options"] = {**config.get("options", {}), "seed": seed}
    epochs = [BEFORE + BETWEEN * number for number in range(decisions)]
    evolution = EvolutionConfig(
        schedule={"name": "at", "options": {"epochs": epochs}} if policy else None,
        policy=config,
        operators=OPERATORS,
        attempts=1,
    )
    return Evolver(
        task.net(seed),
        task.data(SAMPLES, 2 * seed + 1),
        task.data(SAMPLES, 2 * seed + 2),
        optimizer=OptimizerConfig(name="Adam", options={"lr": 1e-2}),
        training=TrainingConfig(epochs=epochs[-1] + BETWEEN, seed=seed, loss=task.loss, device="cpu"),
        evolution=evolution,
        batch_size=64,
        progress=False,
    )


def truth(task: Task, seed: int) -> dict[str, float]:
    """Returns the held-out loss with each candidate, and without, after the same training."""
    found = {}
    parent = evolver(task, seed, None)
    parent.run()
    example = parent.train.example(8)
    places = [(one["name"], one.get("options", {}), site) for one in OPERATORS for site in one["sites"]]
    for name, options, site in [("none", {}, ""), *places]:
        model = copy.deepcopy(parent.model)
        if name != "none":
            mutate(model, name, site=site, example_inputs=example, strict=True, seed=seed, **options)
        run = Evolver(
            model,
            task.data(SAMPLES, 2 * seed + 1),
            task.data(SAMPLES, 2 * seed + 2),
            optimizer=OptimizerConfig(name="Adam", options={"lr": 1e-2}),
            training=TrainingConfig(epochs=20, seed=seed, loss=task.loss, device="cpu"),
            batch_size=64,
            progress=False,
        )
        found[f"{name} {site}".strip()] = run.run().metrics["val_loss"]
    return found


def decides(task: Task, name: str, seed: int) -> bool:
    """Returns whether a policy finds the operator that helps.

    One decision after a little training; a bandit, which knows nothing at first, is asked after some rounds which arm
    it has come to play most.
    """
    rounds = ROUNDS if name == "bandit" else 1
    run = evolver(task, seed, POLICIES[name], rounds)
    run.run()
    if name != "bandit":
        return bool(len(run.lineage)) and run.lineage.records[0].operator == task.right
    played = Counter((record.operator, record.choice.chosen.note.partition(",")[0]) for record in run.lineage)
    return played.most_common(1)[0][0][0] == task.right


def cost(
    case: str, model: str, options: dict[str, Any], shape: tuple[int, ...], batch: int, policy: str
) -> dict[str, Any]:
    """Returns the seconds of a decision and of a training step, and what part of a run the decisions are.

    The run is one epoch of 50,000 images between two decisions, as CIFAR-10 has, and one of 10,000.
    """
    torch.manual_seed(0)
    data = torch.randn(8 * batch, *shape), torch.randint(10, (8 * batch,))
    evolution = EvolutionConfig(
        schedule={"name": "every", "options": {"epochs": 1}},
        policy={"name": policy},
        operators=[{"name": "widen"}, {"name": "deepen"}],
    )
    run = Evolver(
        build_model(model, **options),
        data,
        data,
        optimizer=OptimizerConfig(name="SGD", options={"lr": 0.01, "momentum": 0.9}),
        training=TrainingConfig(epochs=1, device="cpu"),
        evolution=evolution,
        batch_size=batch,
        progress=False,
    )
    batches = list(run.train_data.epoch(0))
    train_step(run.state, batches[:1])
    steps, decisions, weighed = [], [], 0
    for _ in range(5):
        steps += [seconds(lambda one=one: train_step(run.state, [one])) for one in batches]
        context, timer = run.controller.proposer.context(run.history), Timer()
        candidates = run.controller.proposer.candidates(run.model)
        choice = run.controller.proposer.policy.choose(candidates, context)
        decisions.append(timer.read())
        weighed = len(choice.others) + 1 if choice else 0
    step, decision = (statistics.median(took.cpu for took in taken) for taken in (steps, decisions))
    shares = {f"{images:,} images": decision / (decision + step * images / batch) for images in (10_000, 50_000)}
    print(
        f"{case}, {policy}: a decision among {weighed} of {len(candidates)} candidates takes "
        f"{decision:.2f} s of CPU time, a step {step * 1e3:.1f} ms; at one decision an epoch of "
        + ", ".join(f"{images} {share:.1%} of the time" for images, share in shares.items()),
        flush=True,
    )
    return {"case": case, "policy": policy, "decision_s": decision, "step_s": step, "shares": shares}


COSTS = [
    ("simple_cnn, 3x32x32", "simple_cnn", {}, (3, 32, 32), 64),
    ("small_resnet, 3x32x32", "small_resnet", {"blocks": [2, 2, 2]}, (3, 32, 32), 64),
    ("small_resnet, digits 1x8x8", "small_resnet", {"in_channels": 1}, (1, 8, 8), 32),
]


def cases(seeds: range, only: str) -> list[dict[str, Any]]:
    """Prints and returns how often each policy finds what helps."""
    found = []
    for title, task in TASKS.items():
        tables = [truth(task, seed) for seed in seeds[:3]]
        told = {key: statistics.mean(table[key] for table in tables) for key in tables[0]}
        print(f"{title}: held-out loss after the same training")
        for key, loss in told.items():
            print(f"    {key:<12} {loss:.3f}")
        for name in POLICIES:
            if only not in name:
                continue
            right = sum(decides(task, name, seed) for seed in seeds)
            print(f"    {name:<20} finds it in {right} of {len(seeds)} seeds", flush=True)
            found.append({"task": title, "policy": name, "right": right, "seeds": list(seeds), "truth": told})
    return found


def main() -> None:
    """Runs the decisions."""
    parser = arguments(__doc__.splitlines()[0], repetitions=10)
    parser.add_argument("--first", type=int, default=0, help="the first seed (%(default)s)")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(machine())
    started = time.perf_counter()
    pairs = [(case, policy) for case in COSTS for policy in ("gradient", "bandit")]
    found = [cost(*case, policy) for case, policy in pairs if options.only in f"cost, {case[0]}, {policy}"]
    found += cases(range(options.first, options.first + options.repetitions), options.only)
    print(f"{time.perf_counter() - started:.0f} s")
    write_json(options.json, "decisions", found)


if __name__ == "__main__":
    main()
