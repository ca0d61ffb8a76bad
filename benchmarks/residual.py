"""A shortcut that is inserted in mid-training: none, one that keeps the function, one that starts at random.

The arms go on from one and the same state, with the same batches and the same dropout. `simple_cnn` gets a shortcut
over `features` (a 1x1 convolution with stride 4 and a BatchNorm: 768 parameters). Printed is by how much the validation
loss jumps, how it stands beside that of the arm without insertion 50 steps later, after how many steps it is back at
the loss before, and the accuracy on the test images at the end.
"""

from __future__ import annotations

import copy
import statistics
from typing import Any

import torch
from cifar import Data, add_data, endless, load, make_optimizer, one_cycle, step
from timing import arguments, spread, told, write_json
from torch import Tensor, nn
from torch.nn import functional as F

from evolve import build_model, mutate

ARMS = {"none": None, "preserving": "zero", "random": "random"}
LATER = 50


def losses(model: nn.Module, images: Tensor, targets: Tensor) -> tuple[float, float]:
    """Returns the loss in eval mode and, in train mode, on a copy that is thrown away."""
    found = []
    for mode in (False, True):
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)  # of the dropout
            found.append(float(F.cross_entropy(copy.deepcopy(model).train(mode)(images), targets)))
    return found[0], found[1]


def insert(model: nn.Module, optimizer: torch.optim.Optimizer, init: str, images: Tensor) -> None:
    """Inserts the shortcut, as a user would."""
    mutate(model, "residual", site="features", init=init, optimizer=optimizer, example_inputs=images[:8], strict=True)


def course(data: Data, seed: int, before: int, after: int) -> dict[str, dict[str, Any]]:
    """Trains `before` steps, inserts, and trains each arm `after` steps; returns what is measured of each arm."""
    torch.manual_seed(seed)
    model = build_model("simple_cnn").to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model)
    batches = endless(data.batches(seed))
    ahead = [next(batches) for _ in range(before + after)]
    images, targets = next(iter(data.held_out("val").epoch(0)))

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = one_cycle(number / len(ahead), 0.05)
        step(model.train(), optimizer, *ahead[number])

    for number in range(before):
        train(model, optimizer, number)
    start = losses(model, images, targets)
    found = {}
    for arm, init in ARMS.items():
        grown, carried = copy.deepcopy((model, optimizer))  # together, so that one holds the parameters of the other
        if init:
            insert(grown, carried, init, images)
        jumped = losses(grown, images, targets)
        curve = {0: jumped[0]}
        torch.manual_seed(seed)
        for number in range(before, before + after):
            train(grown, carried, number)
            done = number - before + 1
            if done <= 2 * LATER and done % 5 == 0:
                curve[done] = losses(grown, images, targets)[0]
        found[arm] = {
            "jump": jumped[0] - start[0],
            "jump_train_mode": jumped[1] - start[1],
            # One loss alone is noise: five of them around the moment.
            "later": statistics.fmean(curve[LATER + k] for k in (-10, -5, 0, 5, 10)),
            "back_after": next((done for done, loss in curve.items() if loss <= start[0]), None),
            "curve": curve,
            "test": accuracy_fp32(grown, data),
        }
    return found


@torch.no_grad()
def accuracy_fp32(model: nn.Module, data: Data) -> float:
    """Returns the accuracy on the test images in percent."""
    model.eval()
    return 100 * statistics.fmean(
        float((model(inputs).argmax(1) == targets).float().mean()) for inputs, targets in data.held_out("test").epoch(0)
    )


def main() -> None:
    parser = add_data(arguments(__doc__, repetitions=3))
    parser.add_argument("--images", type=int, default=10_000, help="training images (%(default)s)")
    parser.add_argument("--steps", type=int, nargs=2, default=[300, 300], help="before and after (%(default)s)")
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    data = load(chosen.data, chosen.images)
    runs = [course(data, seed, *chosen.steps) for seed in range(chosen.repetitions)]
    cases = []
    for arm in ARMS:
        of_arm = [run[arm] for run in runs]
        later = spread([run[arm]["later"] - run["none"]["later"] for run in runs])
        case = {
            "name": arm,
            "jump": spread([one["jump"] for one in of_arm]),
            "largest_jump": max(max(abs(one["jump"]), abs(one["jump_train_mode"])) for one in of_arm),
            "later_over_none": later,
            "back_after": [one["back_after"] for one in of_arm],
            "test": spread([one["test"] for one in of_arm]),
            "runs": of_arm,
        }
        cases.append(case)
        print(
            f"{arm:11} jump {told(case['jump'])} (largest, either mode: {case['largest_jump']:.3g}), "
            f"{LATER} steps later {told(later)} above none, back after {case['back_after']} steps, "
            f"test {told(case['test'])} %"
        )
    write_json(chosen.json, "residual", cases)


if __name__ == "__main__":
    main()
