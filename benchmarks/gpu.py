"""Ten minutes on one GPU: from a seed network of less than 50,000 parameters, beside fixed networks of its family.

All arms have the same seconds, data and recipe (one cycle of the learning rate, bfloat16, channels last, batches of
512, random crops and mirrored images, on the device). The evolved arm widens everything and inserts a residual block
behind each stage while the learning rate still rises. Told are the accuracy on the test images at the end and over
time, and of each mutation the seconds, the memory that torch has allocated, and the time of a step before and after.
Without a GPU it runs on the CPU, with `--seconds 20` or so, which shows that it works and nothing else.
"""

from __future__ import annotations

from typing import Any

import torch
from cifar import PLAIN, Data, add_data, load
from timing import arguments, seconds, spread, told, write_json
from torch.nn import functional as F

from evolve import EvolutionConfig, Evolver, TrainingConfig, build_model, mutate
from evolve.data import CropFlip, TensorBatches
from evolve.runtime.device import resolve_device
from evolve.training.lr_schedule import LrScheduleConfig
from evolve.training.optim import OptimizerConfig

SEED = {"width": 8, "blocks": [1, 1, 1]}
FIXED = {
    "seed network": SEED,
    "width 32": {"width": 32, "blocks": [1, 1, 1]},
    "width 64, two blocks": {"width": 64, "blocks": [2, 2, 2]},
}
BATCH = 512
GROWTHS = (  # share of the seconds, operator, site
    *((0.02 + 0.01 * number, "deepen", f"stage{number + 1}") for number in range(3)),
    *((0.05 + 0.05 * number, "widen", "*") for number in range(3)),
)
OPERATORS = [
    {"name": "deepen", "sites": ["stage1", "stage2", "stage3"]},
    {"name": "widen", "sites": ["*"], "options": {"factor": 2}},
]


def train(data: Data, model: torch.nn.Module, evolution: EvolutionConfig, amount: float, seed: int) -> dict[str, Any]:
    """Trains for so many seconds; returns the accuracy over time, the accuracy at the end and the mutations."""
    device = resolve_device("auto")
    images, targets = (t.to(device) for t in data.train)
    batches = TensorBatches(images, targets, BATCH, shuffle=True, seed=seed, augment=CropFlip(), normalise=PLAIN)
    evolver = Evolver(
        model,
        batches,
        data.held_out("val"),
        optimizer=OptimizerConfig(
            name="SGD", options={"lr": 0.4, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
        ),
        lr_schedule=LrScheduleConfig(
            name="OneCycleLR", options={"max_lr": 0.4, "pct_start": 0.25, "cycle_momentum": False}
        ),
        training=TrainingConfig(seconds=amount, precision="bf16", channels_last=True, seed=seed),
        evolution=evolution,
        progress=False,
    )
    result = evolver.run()
    return {
        "curve": [(line["seconds"], line["val_accuracy"]) for line in evolver.history],
        "test": accuracy(evolver, data),
        "params": [result.params_from, result.params_to],
        "steps": evolver.state.step,
        "mutations": [
            {
                key: getattr(record, key)
                for key in ("operator", "site", "step", "seconds", "memory_before", "memory_after", "params_after")
            }
            for record in evolver.lineage.applied
        ],
    }


@torch.no_grad()
def accuracy(evolver: Evolver, data: Data) -> float:
    """Returns the accuracy on the test images in percent."""
    model, device = evolver.model.eval(), evolver.state.device
    hits = [(model(x.to(device)).argmax(1) == y.to(device)).float().mean() for x, y in data.held_out("test").epoch(0)]
    return 100 * float(torch.stack(hits).mean())


def step_times(batch: int) -> list[dict[str, Any]]:
    """Returns, mutation by mutation, the milliseconds of a training step and the bytes that torch has allocated."""
    device = resolve_device("auto")
    model = build_model("small_resnet", **SEED).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    images = torch.randn(batch, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    targets = torch.randint(10, (batch,), device=device)

    def steps() -> None:
        for _ in range(5):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16):
                loss = F.cross_entropy(model(images), targets)
            loss.backward()
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    def look(name: str) -> dict[str, Any]:
        steps()
        optimizer.zero_grad(set_to_none=True)
        allocated = torch.cuda.memory_allocated() if device.type == "cuda" else None
        return {"after": name, "step_ms": spread([200 * seconds(steps).wall for _ in range(3)]), "allocated": allocated}

    found = [look("nothing")]
    for _, operator, site in GROWTHS:
        mutate(model, operator, site=site, optimizer=optimizer, example_inputs=images[:8], strict=True)
        model.to(memory_format=torch.channels_last)
        found.append(look(f"{operator} at {site}"))
    return found


def main() -> None:
    parser = add_data(arguments(__doc__, repetitions=1))
    parser.add_argument("--images", type=int, default=45_000, help="training images (%(default)s)")
    parser.add_argument("--seconds", type=float, default=600, help="of each arm (%(default)s)")
    parser.add_argument("--keep", type=float, help="shrink_perturb after each growth, with this share of the weights")
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    data = load(chosen.data, chosen.images)
    evolution = EvolutionConfig(
        schedule={"name": "at", "options": {"progress": [share for share, _, _ in GROWTHS]}},
        policy={"name": "fixed", "options": {"steps": [{"operator": o, "site": s} for _, o, s in GROWTHS]}},
        operators=OPERATORS,
        care={"shrink": {"keep": chosen.keep}} if chosen.keep is not None else {},
        attempts=1,
    )
    cases = []
    for name, shape in {"evolved": SEED, **FIXED}.items():
        if chosen.only not in name:
            continue
        runs = []
        for seed in range(chosen.repetitions):
            torch.manual_seed(seed)
            model = build_model("small_resnet", **shape)
            arm = evolution if name == "evolved" else EvolutionConfig()
            runs.append(train(data, model, arm, chosen.seconds, seed))
        case = {"name": name, "test": spread([one["test"] for one in runs]), "runs": runs}
        cases.append(case)
        before, after = runs[0]["params"]
        print(f"{name:22} {before:,} -> {after:,} parameters, {runs[0]['steps']} steps, test {told(case['test'])} %")
    times = step_times(BATCH if torch.cuda.is_available() else 32)
    for one in times:
        allocated = "-" if one["allocated"] is None else f"{one['allocated'] / 2**20:.1f} MiB"
        print(f"after {one['after']:18} a step {told(one['step_ms'])} ms, allocated {allocated}")
    write_json(chosen.json, f"gpu ({resolve_device('auto').type})", [*cases, {"name": "steps", "times": times}])


if __name__ == "__main__":
    main()
