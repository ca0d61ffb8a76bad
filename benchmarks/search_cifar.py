"""Does evolution pay? A search with inherited weights beside its rivals on CIFAR-10, at equal CPU time.

9,000 images train, 1,000 decide, and 5,000 others judge what each arm has chosen. The arms:

- `evolution`: `evolve.search` out of the small network of the family of `growth_cycle.py`, then training of its
  best one;
- `random`: random networks of the same space from scratch;
- `asha`: Ray Tune's ASHA over widths and depths of the family;
- `w8d1` and the other members of the family, each trained for the whole budget. Of these, `fixed, by held-out` is the
  best by the images that decide, for whose choice nothing is counted, and `fixed, oracle` the best in hindsight.

Rivals are tuned, separately for each budget: all their variants are run with the first seed, and the best by the
images that decide with the others. Each run is a file of JSON and is not made twice. CPU seconds buy less on a machine
that is shared: `ms a step` is what ten steps of `w8d1` took before each run.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from cifar import Data, add_data, network
from growth_cycle import FAMILY, RATES, SMALL
from search_arms import Outcome, evolution, fixed, load_split, random_search, seconds_a_step, warm
from search_asha import asha
from timing import arguments, write_json

EVOLUTION = "evolution"
BUDGETS = (10.0, 20.0, 40.0)
MEANS = ("params", "cpu", "evaluations", "pace")
Arm = Callable[[Data, float, int], Outcome]

ARMS: dict[str, dict[str, Arm]] = {
    EVOLUTION: {"": evolution},
    "random": {f"of {count}": partial(random_search, candidates=count) for count in (2, 4, 8)},
    "asha": {f"trials of {share:g}": partial(asha, share=share) for share in (0.25, 0.5)},
    **{member: {f"lr {peak:g}": partial(fixed, member=member, peak=peak) for peak in RATES} for member in FAMILY},
}


class Run(NamedTuple):
    """One of the files."""

    arm: str
    variant: str
    budget: float
    seed: int

    @property
    def file(self) -> str:
        """Its name."""
        what = "-".join(filter(None, (self.arm, self.variant.replace(" ", "_"))))
        return f"{what}-{self.budget:g}s-seed{self.seed}.json"


class Store:
    """Runs that are made, a file each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def read(self, run: Run) -> dict[str, Any] | None:
        """Returns what came of a run; None where it was not made."""
        path = self.folder / run.file
        found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        return found

    def write(self, run: Run, outcome: Outcome, pace: float) -> None:
        """Keeps what came of a run, and how fast the machine was: whole, or not at all."""
        path = self.folder / run.file
        part = path.with_suffix(".part")
        part.write_text(json.dumps({**run._asdict(), **asdict(outcome), "pace": pace}) + "\n", encoding="utf-8")
        part.replace(path)

    def best_variant(self, arm: str, budget: float) -> str:
        """Returns the variant with the best held-out accuracy at the first seed, of those that were run."""
        tried = {each: self.read(Run(arm, each, budget, 0)) for each in ARMS[arm]}
        return max(tried, key=lambda each: (tried[each] or {"val": -1.0})["val"])

    def outcomes(self, arm: str, budget: float, seeds: int) -> list[dict[str, Any]]:
        """Returns what came of all seeds, by the best variant."""
        variant = self.best_variant(arm, budget)
        found = [self.read(Run(arm, variant, budget, seed)) for seed in range(seeds)]
        return [each for each in found if each is not None]


def plan(store: Store, arms: list[str], budgets: list[float], seeds: int) -> Iterator[Run]:
    """Yields all runs: seed by seed, small budgets first, arms in turn; a variant is settled by the first seed."""
    for seed in range(seeds):
        for budget in sorted(budgets):
            for arm in arms:
                for variant in ARMS[arm] if seed == 0 else [store.best_variant(arm, budget)]:
                    yield Run(arm, variant, budget, seed)


def rows(store: Store, budget: float, seeds: int) -> dict[str, list[dict[str, Any]]]:
    """Returns what came of each arm at a budget, over the seeds."""
    found = {arm: store.outcomes(arm, budget, seeds) for arm in ARMS}
    family = {arm: found[arm] for arm in FAMILY if found[arm]}
    whole = min(map(len, family.values()), default=0)
    if len(family) == len(FAMILY) and whole:
        chosen = [max((of[seed] for of in family.values()), key=lambda each: each["val"]) for seed in range(whole)]
        oracle = max(family, key=lambda arm: statistics.fmean(each["test"] for each in family[arm]))
        found |= {"fixed, by held-out": chosen, f"fixed, oracle ({oracle})": family[oracle]}
    return {arm: each for arm, each in found.items() if each}


def told(values: list[float], digits: int = 2) -> str:
    """Returns mean ± standard deviation; the mean alone where there is one value."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def ahead(found: dict[str, list[dict[str, Any]]]) -> str:
    """Says how evolution stands to the best of its rivals, and whether that is more than seeds differ by."""
    mine = [each["test"] for each in found[EVOLUTION]]
    rivals = {arm: [each["test"] for each in of] for arm, of in found.items() if arm != EVOLUTION}
    if not rivals:
        return "no rival was run"
    best = max(rivals, key=lambda arm: statistics.fmean(rivals[arm]))
    over = statistics.fmean(mine) - statistics.fmean(rivals[best])
    message = f"evolution is {over:+.2f} points over the best rival, {best}"
    if min(len(mine), len(rivals[best])) < 2:
        return message
    error = (statistics.variance(mine) / len(mine) + statistics.variance(rivals[best]) / len(rivals[best])) ** 0.5
    return (
        f"{message} (standard error of the difference {error:.2f}: {'told' if abs(over) > 2 * error else 'not told'})"
    )


def table(store: Store, budgets: list[float], seeds: int) -> list[dict[str, Any]]:
    """Prints all that is there, and returns it."""
    cases = []
    for budget in sorted(budgets):
        found = rows(store, budget, seeds)
        print(
            f"\n{budget:g} CPU seconds\n\n| arm | test, % | parameters | CPU s | networks | ms a step | variant | n |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for arm, of in found.items():
            means = {key: statistics.fmean(each[key] for each in of) for key in MEANS}
            variant = " / ".join(dict.fromkeys(each["variant"] for each in of))
            print(
                f"| {arm} | {told([each['test'] for each in of])} | {means['params']:,.0f} | {means['cpu']:.1f} | "
                f"{means['evaluations']:.1f} | {means['pace']:.1f} | {variant} | {len(of)} |"
            )
            cases.append({"budget": budget, "arm": arm, "runs": of})
        if found.get(EVOLUTION):
            print(f"\n{ahead(found)}")
    return cases


def options() -> argparse.Namespace:
    """Returns what was asked for."""
    parser = add_data(arguments(__doc__, repetitions=3))
    parser.add_argument("--budgets", type=float, nargs="+", default=list(BUDGETS), help="CPU seconds (%(default)s)")
    parser.add_argument("--results", type=Path, default=Path("search_cifar"), help="folder of the runs (%(default)s)")
    parser.add_argument("--summary", action="store_true", help="make no runs, tell those that are there")
    return parser.parse_args()


def main() -> None:
    chosen = options()
    torch.set_num_threads(max(chosen.threads, 1))  # CPU seconds of several threads buy less than those of one
    torch.set_flush_denormal(True)
    store = Store(chosen.results)
    arms = [arm for arm in ARMS if chosen.only in arm]
    data = load_split(chosen.data)
    if not chosen.summary:
        warm(data)
    for run in () if chosen.summary else plan(store, arms, chosen.budgets, chosen.repetitions):
        if store.read(run) is None:
            pace = 1000 * seconds_a_step(network(*FAMILY[SMALL]), data, 0)
            store.write(run, outcome := ARMS[run.arm][run.variant](data, run.budget, run.seed), pace)
            print(f"{run.file}: {outcome}", flush=True)
    write_json(chosen.json, "search_cifar", table(store, chosen.budgets, chosen.repetitions))


if __name__ == "__main__":
    main()
