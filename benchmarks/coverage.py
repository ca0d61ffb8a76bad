"""Tries every mutation operator on models that nobody here wrote.

For each model and operator: at how many sites it applies, whether it was applied at a random few of them, whether the
outputs stayed the same in eval and train mode, whether a backward pass reaches every parameter that it reached before
and every new one, whether an optimizer steps on with its old state, and whether replaying the record on a fresh model
takes the weights. All of it is measured here; nothing is taken from the record. Weights that start at zero or next to
it are made random first: a model whose last layer is zero agrees with anything.

`widen` and `narrow` are tried on all groups of a model at once as well (site "*"), `widen` also in float64.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import gc
import json
import random
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from coverage_models import Subject, subjects
from coverage_report import report
from timing import machine
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import evolve
from evolve.mutation.runs import WithoutDropout
from evolve.operators import operators

GROUPS = ("widen", "narrow")  # they take all groups at once with the site "*"
HUGE = 300_000_000  # beyond that not even a copy is kept
LARGE = 60_000_000  # parameters; beyond that memory allows no optimizer, and float64 for one group at a time


def awaken(model: nn.Module) -> nn.Module:
    """Makes random what starts at zero or next to it, and BatchNorm statistics that say nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and parameter.is_floating_point() and float(parameter.abs().max()) < 1e-3:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)
            if name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model


OPTIONS: dict[str, dict[str, Any]] = {
    "widen": {"factor": 1.25},
    "narrow": {"factor": 0.5},
    "remove": {"preserves": "no"},
}


@functools.lru_cache(maxsize=1)
def built(subject: Subject) -> nn.Module:
    """Returns the model with its first weights; drawing them anew for every copy takes longer than all the rest."""
    torch.manual_seed(0)
    return awaken(subject.build())


class Trial:
    """One model with its optimizer, and what it gave before any change."""

    def __init__(self, subject: Subject, dtype: torch.dtype) -> None:
        self.subject, self.dtype = subject, dtype
        torch.manual_seed(0)
        self.inputs = tree_map(self._cast, subject.inputs())
        self.model = self.fresh()
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.optimizer = None
        if self.parameters <= LARGE:
            trainable = [p for p in self.model.parameters() if p.requires_grad]
            self.optimizer = torch.optim.SGD(trainable, lr=1e-4, momentum=0.9)
        self.backward()
        if self.optimizer is not None:
            self.optimizer.step()
        self.reached = {name for name, p in self.model.named_parameters() if p.grad is not None}
        self.outputs = self.run_both()
        self.model.zero_grad()

    def fresh(self) -> nn.Module:
        """Returns the model as it is built."""
        model = copy.deepcopy(built(self.subject))
        if sum(parameter.numel() for parameter in model.parameters()) > HUGE:
            built.cache_clear()
        return model.to(self.dtype).train()

    def _cast(self, leaf: Any) -> Any:
        return leaf.to(self.dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    def forward(self, model: nn.Module) -> list[Tensor]:
        """Returns the floating-point tensors in the model's outputs."""
        out = model(**self.inputs) if isinstance(self.inputs, dict) else model(self.inputs)
        return [t for t in tree_leaves(_plain(out)) if isinstance(t, Tensor) and t.is_floating_point()]

    def run_both(self, model: nn.Module | None = None) -> list[list[Tensor]]:
        """Returns the outputs in eval and in train mode, dropout left out; buffers are put back."""
        model = self.model if model is None else model
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        found = []
        for training in (False, True):
            model.train(training)
            torch.manual_seed(5)
            with torch.no_grad(), WithoutDropout():
                found.append(self.forward(model))
        model.train()
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        return found

    def backward(self) -> None:
        """Runs a backward pass from a random combination of the outputs."""
        torch.manual_seed(6)
        self.model.zero_grad()
        sum((t * torch.randn_like(t)).sum() for t in self.forward(self.model)).backward()

    def attempt(
        self, operator: str, site: str, options: dict[str, Any], *, replay: bool = False, keep: bool = False
    ) -> dict[str, Any]:
        """Tries one mutation, measures it and takes it back, unless it is to be kept."""
        started = time.perf_counter()
        with contextlib.nullcontext() if keep else evolve.transaction(self.model, self.optimizer) as change:
            old = set(dict(self.model.named_parameters()))
            result = evolve.mutate(
                self.model, operator, site=site, optimizer=self.optimizer, example_inputs=self.inputs, seed=3, **options
            )
            found: dict[str, Any] = {"site": site, "ok": bool(result), "seconds": time.perf_counter() - started}
            if not result:
                found |= {"status": result.status, "why": result.message[:300]}
            else:
                found |= self._measure(old)
                if replay:
                    found["replay"] = self._replay(result.record)
            if change is not None:
                change.rollback()
        self.model.zero_grad()
        return found

    def _measure(self, old: set[str]) -> dict[str, Any]:
        after = self.run_both()
        found: dict[str, Any] = {}
        for mode, one, other in zip(("eval", "train"), self.outputs, after, strict=True):
            scale = max((float(t.abs().max()) for t in one), default=0.0)
            same_shape = [a.shape for a in one] == [b.shape for b in other]
            worst = (
                max((float((a - b).abs().max()) for a, b in zip(one, other, strict=True)), default=0.0)
                if same_shape
                else None
            )
            found[mode] = None if worst is None else worst / max(scale, 1e-30)
            found[f"{mode}_bitwise"] = same_shape and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        self.backward()
        living = dict(self.model.named_parameters())
        if self.optimizer is None:
            found["optimizer"] = None
        wanted = {name for name in living if name in self.reached or name not in old}
        found["backward"] = all(
            living[name].grad is not None and bool(torch.isfinite(living[name].grad).all()) for name in wanted
        )
        if self.optimizer is None:
            return found
        held = Counter(id(p) for group in self.optimizer.param_groups for p in group["params"])
        once = all(held[id(p)] == 1 for p in living.values() if p.requires_grad)
        fits = all(
            s.get("momentum_buffer") is None or s["momentum_buffer"].shape == p.shape
            for p, s in self.optimizer.state.items()
        )
        self.optimizer.step()
        found["optimizer"] = once and fits and len(held) == sum(p.requires_grad for p in living.values())
        return found

    def _replay(self, record: Any) -> bool:
        rebuilt = self.fresh()
        evolve.replay(rebuilt, [record])
        rebuilt.load_state_dict(self.model.state_dict())
        return all(torch.equal(a, b) for a, b in zip(self.run_both()[0], self.run_both(rebuilt)[0], strict=True))


def _plain(out: Any) -> Any:
    return dict(out) if hasattr(out, "keys") else out


def cover(subject: Subject, names: list[str], sites: int, seconds: float, quick: bool) -> dict[str, Any]:
    """Tries the operators on one model."""
    started = time.perf_counter()
    found: dict[str, Any] = {"source": subject.source, "name": subject.name, "operators": {}}
    trial = Trial(subject, torch.float32)
    found["parameters"] = trial.parameters
    large = trial.parameters > LARGE
    inputs = trial.inputs
    analysis = evolve.analyse(trial.model, inputs)
    found["analysis_seconds"] = time.perf_counter() - started
    found["groups"] = len(analysis.changeable)
    found["fixed"] = Counter(group.fixed for group in analysis.groups if group.fixed)
    found["inexact"] = Counter(group.mixed for group in analysis.changeable if group.mixed)
    for name in names:
        begun = time.perf_counter()
        eligible = evolve.sites(trial.model, name, example_inputs=inputs, **OPTIONS.get(name, {}))
        tries: list[dict[str, Any]] = []
        if name in GROUPS and eligible:
            tries.append(trial.attempt(name, "*", OPTIONS[name], replay=not (large or quick), keep=large))
            if large:  # the model is spent
                del trial, analysis
                gc.collect()
                trial = Trial(subject, torch.float32)
                analysis = evolve.analyse(trial.model, inputs)
        chosen = random.Random(0).sample(eligible, len(eligible))[: sites or None]
        for index, site in enumerate(chosen):
            if tries and time.perf_counter() - begun > seconds:
                break
            tries.append(trial.attempt(name, site, OPTIONS.get(name, {}), replay=index == 0 and not (large or quick)))
        found["operators"][name] = {"eligible": len(eligible), "tries": tries}
    del trial
    gc.collect()
    if "widen" in names and not quick:
        found["widen_float64"] = _in_float64(subject, large)
    found["seconds"] = time.perf_counter() - started
    return found


def _in_float64(subject: Subject, large: bool) -> dict[str, Any]:
    try:
        exact = Trial(subject, torch.float64)
    except RuntimeError as error:  # an operation that knows no float64
        return {"ok": False, "site": "*", "why": str(error)}
    site = "*" if not large else evolve.sites(exact.model, "widen", example_inputs=exact.inputs)[-1]
    return exact.attempt("widen", site, OPTIONS["widen"], keep=True)


def main() -> None:
    """Goes over the models, a line of JSON each, and prints the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["torchvision"], choices=["torchvision", "timm", "hf"])
    parser.add_argument("--only", default="", help="only models whose name contains this")
    parser.add_argument("--part", default="1/1", help="only every n-th model: 1/2 and 2/2 for two processes")
    parser.add_argument("--operators", nargs="+", default=operators.names())
    parser.add_argument("--sites", type=int, default=0, help="at most this many sites of each model; 0: all")
    parser.add_argument("--seconds", type=float, default=1e9, help="no further site of an operator after this time")
    parser.add_argument("--quick", action="store_true", help="without float64 and without replay")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("coverage.jsonl"), help="lines already there are kept")
    parser.add_argument("--markdown", type=Path, help="write the tables here")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.threads:
        torch.set_num_threads(options.threads)
    print(f"machine: {machine()}")
    results = [json.loads(line) for line in options.json.read_text().splitlines()] if options.json.exists() else []
    done = {(result["source"], result["name"]) for result in results}
    part, parts = map(int, options.part.split("/"))
    for subject in [s for source in options.models for s in subjects(source)][part - 1 :: parts]:
        if options.only not in subject.name or (subject.source, subject.name) in done:
            continue
        try:
            result = cover(subject, options.operators, options.sites, options.seconds, options.quick)
        except Exception as error:  # one model that fails must not end the survey; it is counted as failed
            result = {"source": subject.source, "name": subject.name, "error": f"{type(error).__name__}: {error}"}
        results.append(result)
        with options.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        told = result.get("error") or ", ".join(
            f"{name} {sum(t['ok'] for t in entry['tries'])}/{len(entry['tries'])}"
            for name, entry in result["operators"].items()
        )
        print(f"{subject.name}: {told} ({result.get('seconds', 0):.0f} s)", flush=True)
    text = report(results)
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
