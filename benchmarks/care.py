"""What care after a growth is worth: the evidence behind the defaults of `evolution.care` and of `widen`'s `init`.

One growth, to one and a half times the width after 15 % of the budget, in the recipe of `growth_cycle.py`; arms differ
in the care alone, and share the initial weights, the batches and the augmentation up to the growth. Printed is the
accuracy on the held-out images at the end, over that of the arm with the defaults, seed by seed: it decides about
defaults, so no test image is looked at.
"""

from __future__ import annotations

from typing import Any

import torch
from cifar import accuracy, add_data, load, network, sample_flops
from growth_cycle import FAMILY, FINAL, evolve, settings
from timing import arguments, spread, told, write_json

STEPS = 200
ARMS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "shrink: {keep: 0.4}": {"care": {"shrink": {"keep": 0.4}}},
    "rewarm, new": {"care": {"rewarm": {"steps": STEPS}}},
    "rewarm, all": {"care": {"rewarm": {"steps": STEPS, "scope": "all"}}},
    "moments: reset": {"care": {"moments": "reset"}},
    "decay_grace": {"care": {"decay_grace": STEPS}},
    "batchnorm: 20": {"care": {"batchnorm": 20}},
    "init: twins": {"options": {"init": "twins"}},
    "init: zero_out": {"options": {"init": "zero_out"}},
    "no growth": {"schedule": None},
}


def configuration(care: dict[str, Any] | None = None, options: dict[str, Any] | None = None, **more: Any) -> Any:
    """Returns the configuration of an arm."""
    found = settings()
    found["evolution"] = {
        "schedule": {"name": "at", "options": {"progress": [0.15]}},
        "operators": [{"name": "widen", "sites": ["*"], "options": {"factor": 1.5, **(options or {})}}],
        "care": care or {},
        **more,
    }
    return found


def main() -> None:
    parser = add_data(arguments(__doc__, repetitions=3))
    parser.add_argument("--images", type=int, default=10_000, help="training images (%(default)s)")
    parser.add_argument("--budget", type=float, default=16, help="in epochs' worth of the final network (%(default)s)")
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    torch.set_flush_denormal(True)
    data = load(chosen.data, chosen.images)
    flops = chosen.budget * chosen.images * sample_flops(network(*FAMILY[FINAL]))
    found: dict[str, list[float]] = {name: [] for name in ARMS if chosen.only in name or name == "defaults"}
    for seed in range(chosen.repetitions):
        for name, values in found.items():
            model, _, more = evolve(data, flops, seed, configuration(**ARMS[name]))
            values.append(accuracy(model, data.held_out("val")))
            print(f"    seed {seed}, {name}: {values[-1]:.2f} %, grown at {more['grown_at']}", flush=True)
    cases = []
    for name, values in found.items():
        over = spread([value - default for value, default in zip(values, found["defaults"], strict=True)])
        cases.append({"name": name, "val": spread(values), "over_defaults": over, "values": values})
        print(f"{name:20} {told(cases[-1]['val'])} %, over the defaults {told(over)} points")
    write_json(chosen.json, "care", cases)


if __name__ == "__main__":
    main()
