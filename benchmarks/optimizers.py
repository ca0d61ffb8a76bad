"""What a mutation does to every optimizer there is: nothing silent, no crash, carried or refused with the reason.

    python benchmarks/optimizers.py [--only REGEX] [--out results.json]

For each optimizer and each of widen, narrow, deepen and residual: 30 steps, the mutation, 8 steps at learning rate
zero, 20 at the usual one; beside it a control that is not mutated. A silent fault is a model that moves at learning
rate zero where the control does not, an average of the weights that computes another function though the model computes
the same one, a parameter that is not held once or does not move, or a refusal that left a trace. "behind" is what
learns on, with a loss behind the control's and that of an optimizer made anew; "anew" where the state of some
parameters could not be cut, which the message says.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import logging
import math
import re
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from optimizers_made import Subject, subjects
from torch import Tensor, nn
from torch.nn import functional as F

import evolve
from evolve.surgery.optimizer.layers import all_layers, as_optimizers, groups_of, reachable
from evolve.surgery.optimizer.places import as_float

STEPS, STILL, AFTER = 30, 8, 20
MUTATIONS: dict[str, dict[str, Any]] = {
    "widen": {"site": "4"},
    "narrow": {"site": "4", "criterion": "indices", "indices": [0, 1, 2, 3]},
    "deepen": {"site": "6"},
    "residual": {"site": "6"},
}
X = torch.randn(64, 1, 6, 6, generator=torch.Generator().manual_seed(0))
Y = (X.mean((1, 2, 3)) * 12).round().long().clamp(-1, 1) + 1


def net() -> nn.Sequential:
    """A convolution and three linear layers, one of them square; four units never act, which `narrow` takes out."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()),
        *(nn.Linear(36, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)),
    )
    with torch.no_grad():
        model[4].bias[:4] = -10.0  # units that are never active
    return model


class Training:
    """A model with its optimizer, and how one steps it.

    Args:
        subject: The optimizer.
        model: A new one if None.
    """

    def __init__(self, subject: Subject, model: nn.Module | None = None) -> None:
        self.model = model or net()
        self.subject = subject
        self.optimizer = subject.make(self.model)
        self.each = as_optimizers(self.optimizer)
        self.touched: set[int] = set()
        self.mode("train")
        torch.manual_seed(1)

    def mode(self, name: str) -> None:
        """Calls `train()` or `eval()` of optimizers that have them."""
        for one in self.each:
            if callable(getattr(one, name, None)):
                getattr(one, name)()

    def loss(self) -> float:
        """Loss of the model on all data."""
        with torch.no_grad():
            return float(F.cross_entropy(self.model(X), Y))

    def steps(self, count: int) -> None:
        """Trains."""

        def closure() -> Tensor:
            for one in self.each:
                one.zero_grad()
            with torch.enable_grad():
                loss = F.cross_entropy(self.model(X), Y)
                loss.backward(create_graph=self.subject.graph)
            self.touched |= {id(p) for p in self.model.parameters() if p.grad is not None and _noticeable(p)}
            return loss

        for _ in range(count):
            closure()
            for one in self.each:
                one.step(closure) if self.subject.closure else one.step()

    def still(self, count: int) -> float:
        """Makes steps at learning rate zero; returns how far the outputs have moved."""
        if not self.subject.still:
            return 0.0
        before, rates = self.outputs(), []
        for group in groups_of(self.each):
            if "lr" not in group:
                continue
            rates.append((group, group["lr"], float(group["lr"])))
            self._rate(group, 0.0)
        self.steps(count)
        for group, rate, value in rates:
            group["lr"] = rate
            self._rate(group, value)
        return float((self.outputs() - before).abs().max())

    @staticmethod
    def _rate(group: dict[str, Any], value: float) -> None:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(value)
        else:
            group["lr"] = value

    def outputs(self) -> Tensor:
        """Outputs of the model as it stands."""
        with torch.no_grad():
            return self.model(X).clone()

    def averaged(self) -> dict[str, Tensor]:
        """Outputs of the model with each set of values that the optimizer keeps of the weights."""
        found = {}
        for key, values in self._kept().items():
            now = {id(p): p.detach().clone() for p in self.model.parameters()}
            with torch.no_grad():
                for p in self.model.parameters():
                    if id(p) in values and values[id(p)].shape == p.shape:
                        p.copy_(values[id(p)])
                found[key] = self.outputs()
                for p in self.model.parameters():
                    p.copy_(now[id(p)])
        if any(callable(getattr(one, "eval", None)) for one in self.each):
            self.mode("eval")
            found["eval()"] = self.outputs()
            self.mode("train")
        return found

    def _kept(self) -> dict[str, dict[int, Tensor]]:
        """Entries of the state that are like the weights, by name and parameter."""
        found: dict[str, dict[int, Tensor]] = {}
        for layer in all_layers(self.each):
            for p, state in layer.state.items():
                if isinstance(p, nn.Parameter) and isinstance(state, dict):
                    for key, value in state.items():
                        if isinstance(value, Tensor) and value.shape == p.shape and value.is_floating_point():
                            found.setdefault(str(key), {})[id(p)] = as_float(value)
        return {key: values for key, values in found.items() if key in _OF_WEIGHTS or self._alike(values)}

    def _alike(self, values: dict[int, Tensor]) -> bool:
        pairs = [(values[id(p)], p.detach()) for p in self.model.parameters() if id(p) in values and p.dim() > 1]
        if not pairs:
            return False
        a, b = (torch.cat([pair[side].flatten() for pair in pairs]) for side in (0, 1))
        return float(F.cosine_similarity(a, b, dim=0)) > 0.8 and 0.5 < float(a.norm() / b.norm()) < 2

    def hash(self) -> str:
        """Of the model and of everything the optimizer holds."""
        digest = hashlib.sha256()
        for p in [*self.model.parameters(), *(p.grad for p in self.model.parameters() if p.grad is not None)]:
            digest.update(p.detach().numpy().tobytes())
        for one in self.each:
            for thing in reachable(one):
                if isinstance(thing, Tensor):
                    digest.update(f"{tuple(thing.shape)}{thing.dtype}".encode())
                    if type(thing) in (Tensor, nn.Parameter):
                        digest.update(thing.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
                elif isinstance(thing, (dict, list, tuple)):
                    plain = thing.items() if isinstance(thing, dict) else enumerate(thing)
                    kept = [f"{k}={v}" for k, v in plain if isinstance(v, (int, float, str, bool, type(None)))]
                    digest.update(" ".join(kept).encode())
        return digest.hexdigest()


def _noticeable(parameter: nn.Parameter) -> bool:
    """Whether a gradient is large enough for a plain step to show in the digits of a parameter."""
    return float(parameter.grad.abs().max()) > 1e-3 * max(float(parameter.detach().abs().max()), 1e-2)  # type: ignore


# Known to hold weights, however far those have gone from where they began.
_OF_WEIGHTS = {"ax", "z", "slow_params", "lookahead_slow_buff", "slow_buffer", "p0", "x0", "x_k", "prev_param", "old_p"}
_OF_WEIGHTS |= {"mov_avg_param", "ema"}


def judged(subject: Subject, operator: str, control: dict[str, float]) -> tuple[str, str]:
    """Returns "carried", "anew", "behind" (in its loss), "refused", "fault" or "crash", and what there is to say."""
    run = Training(subject)
    run.steps(STEPS)
    before, hashed = (run.outputs(), run.averaged(), run.loss()), run.hash()
    result = evolve.mutate(
        run.model, operator, optimizer=run.optimizer, example_inputs=X[:8], seed=3, **MUTATIONS[operator]
    )
    if not result:
        if result.status == "failed":
            return "crash", result.message
        return ("refused", result.message) if run.hash() == hashed else ("fault", f"a trace is left: {result.message}")
    try:
        faults = list(_faults(run, before, result, control))
    except Exception as error:  # whatever a step after the mutation raises is what is looked for
        return "crash", f"{type(error).__name__}: {error} ({result.message})"
    if faults:
        behind = all(fault.startswith("the loss is") for fault in faults)
        return "behind" if behind else "fault", "; ".join(faults)
    return ("anew" if "begins anew" in result.message else "carried"), result.message


def _faults(
    run: Training, before: tuple[Tensor, dict[str, Tensor], float], result: Any, control: dict[str, float]
) -> Iterator[str]:
    outputs, averaged, begun = before
    scale = float(outputs.abs().max())
    same = float((run.outputs() - outputs).abs().max()) < 1e-4 * scale
    if same and "begins anew" not in result.message:
        now = run.averaged()
        for key, value in averaged.items():
            if key not in now:
                yield f"'{key}' is lost"
            elif (apart := float((now[key] - value).abs().max())) > 1e-3 * max(scale, float(value.abs().max())):
                yield f"'{key}' computes another function (by {apart:.3g})"
    held = Counter(id(p) for one in run.each for group in one.param_groups for p in group["params"])
    wrong = [name for name, p in run.model.named_parameters() if held[id(p)] != 1]
    if wrong:
        yield f"not held once: {wrong[:3]}"
    if set(held) - {id(p) for p in run.model.parameters()}:
        yield "parameters are held that the model does not have"
    fresh = Training(run.subject, copy.deepcopy(run.model))
    moved = run.still(STILL)
    if moved > 1e-4 * scale and moved > 20 * control["still"]:
        yield f"the outputs move by {moved:.3g} at learning rate 0, those of the control by {control['still']:.3g}"
    values = [p.detach().clone() for p in run.model.parameters()]
    run.touched.clear()
    run.steps(AFTER)
    names = [
        name
        for (name, p), value in zip(run.model.named_parameters(), values, strict=True)
        if id(p) in run.touched and torch.equal(p.detach(), value)
    ]
    if names and not control["stuck"]:
        yield f"do not move: {names[:3]}"
    loss = run.loss()
    if not loss < max(1.05 * begun, 1.25 * control["loss"], control["loss"] + 0.1):
        fresh.steps(AFTER)
        if loss > 1.1 * fresh.loss() + 0.05 or math.isnan(loss) > math.isnan(fresh.loss()):
            told = f"that of the control {control['loss']:.3g}, of an optimizer made anew {fresh.loss():.3g}"
            yield f"the loss is {loss:.3g}, {told}"


def controlled(subject: Subject) -> dict[str, float]:
    """Trains without a mutation."""
    run = Training(subject)
    run.steps(STEPS)
    still = run.still(STILL)
    values = [p.detach().clone() for p in run.model.parameters()]
    run.steps(AFTER)
    stuck = sum(torch.equal(p.detach(), v) for p, v in zip(run.model.parameters(), values, strict=True))
    return {"still": still, "stuck": stuck, "loss": run.loss()}


def main() -> None:
    """Runs all and prints a line each, and totals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="regular expression for names")
    parser.add_argument("--out", default=None, help="where to write all answers as JSON")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    totals: Counter[str] = Counter()
    answers: dict[str, Any] = {}
    for subject in subjects():
        if not re.search(arguments.only, subject.name):
            continue
        started = time.perf_counter()
        try:
            control = controlled(subject)
        except Exception as error:  # it does not run by itself: told, and not counted
            print(f"{subject.name:42s} cannot be run without a mutation: {type(error).__name__}: {str(error)[:120]}")
            totals["cannot be run"] += 1
            continue
        if not math.isfinite(control["loss"]):
            print(f"{subject.name:42s} diverges without a mutation")
            totals["cannot be run"] += 1
            continue
        found = {operator: judged(subject, operator, control) for operator in MUTATIONS}
        answers[subject.name] = found
        totals["optimizers"] += 1
        totals.update(what for what, _ in found.values())
        print(
            f"{subject.name:42s} "
            + "  ".join(f"{operator} {what:8s}" for operator, (what, _) in found.items())
            + f" {time.perf_counter() - started:5.1f} s",
            flush=True,
        )
        for operator, (what, message) in found.items():
            if what in ("fault", "crash", "behind", "refused"):
                print(f"    {operator}: {message[:400]}")
    tried = sum(totals[what] for what in ("carried", "anew", "behind", "refused", "fault", "crash"))
    print(f"\n{totals['optimizers']} optimizers, {tried} mutations; {totals['cannot be run']} cannot be run here")
    for what in ("carried", "anew", "behind", "refused", "fault", "crash"):
        print(f"{what:8s} {totals[what]:5d}  {100 * totals[what] / max(tried, 1):5.1f} %")
    if arguments.out:
        with open(arguments.out, "w", encoding="utf-8") as file:
            json.dump(answers, file, indent=1)


if __name__ == "__main__":
    main()
