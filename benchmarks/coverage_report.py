"""The tables of `coverage.py`, in Markdown."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

Result = dict[str, Any]

EXACT = 1e-5  # largest difference relative to the largest output that is rounding, in float32
EXACT64 = 1e-10
TITLES = {
    "torchvision": "torchvision: its classification models",
    "timm": "timm: one small member of each family",
    "hf": "Hugging Face: tiny configurations",
}


def report(results: list[Result]) -> str:
    """Returns the whole page."""
    lines = ["# What works on models that nobody here wrote", "", *_INTRODUCTION]
    for source in dict.fromkeys(result["source"] for result in results):
        own = [result for result in results if result["source"] == source]
        lines += ["", f"## {TITLES[source]}", "", *_source(own)]
    lines += ["", "## What cannot change, and why", "", *_reasons(results)]
    lines += ["", "## Refused at a site that was listed", "", *_refusals(results)]
    return "\n".join(lines) + "\n"


_INTRODUCTION = """
Made by `python benchmarks/coverage.py` (see [benchmarks/README.md](../benchmarks/README.md)); weights are random,
nothing is downloaded. An operator *has a site* where `evolve.sites` lists one. Of these, a random few were *tried*
on each model. *Exact*: the largest difference of the outputs in eval mode is at most 1e-5 of the largest output, in
float32; *bitwise*: they are equal bit for bit, in eval and in train mode. *Backward*: a backward pass reaches every
parameter that it reached before, and every new one. *Optimizer*: every trainable parameter is in it once, with
momentum of its shape, and it steps; not tried on models of more than 60 million parameters. *Replay*: the record
rebuilds the structure on a fresh model, which takes the weights and gives the same outputs. `narrow` takes half of
a group and `remove` a layer, so that these are not to be exact; `dropout` is compared with dropout left out.
""".strip().splitlines()


def _source(results: list[Result]) -> Iterator[str]:
    good = [result for result in results if "error" not in result]
    yield f"{len(results)} models, {len(good)} analysed (eval and train mode)."
    yield ""
    yield (
        "| operator | models with a site | applied on | sites | tried | applied | exact | bitwise | backward "
        "| optimizer | replay | median s |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    entries: dict[str, list[Result]] = defaultdict(list)
    for result in good:
        for name, entry in result["operators"].items():
            entries[name].append(entry)
    for name, found in entries.items():
        yield _row(name, found)
    yield ""
    yield from _jointly(good)


def _row(name: str, entries: list[Result]) -> str:
    tries = [one for entry in entries for one in _single(entry)]
    done = [one for one in tries if one["ok"]]
    stepped = [one["optimizer"] for one in done if one["optimizer"] is not None]
    replays = [one["replay"] for one in done if "replay" in one]
    cells = [
        f"`{name}`",
        sum(entry["eligible"] > 0 for entry in entries),
        sum(any(one["ok"] for one in entry["tries"]) for entry in entries),
        f"{sum(entry['eligible'] for entry in entries):,}",
        len(tries),
        len(done),
        "-" if name in {"narrow", "remove"} else sum(one["eval"] is not None and one["eval"] <= EXACT for one in done),
        "-" if name in {"narrow", "remove"} else sum(one["eval_bitwise"] and one["train_bitwise"] for one in done),
        sum(one["backward"] for one in done),
        f"{sum(stepped)} of {len(stepped)}",
        f"{sum(replays)} of {len(replays)}",
        f"{statistics.median(one['seconds'] for one in done):.2f}" if done else "-",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def _single(entry: Result) -> list[Result]:
    return [one for one in entry["tries"] if one["site"] != "*"]


def _joint(result: Result, name: str) -> Result | None:
    tries = result["operators"].get(name, {}).get("tries", [])
    return next((one for one in tries if one["site"] == "*"), None)


def _jointly(results: list[Result]) -> Iterator[str]:
    widened = [(result, joint) for result in results if (joint := _joint(result, "widen")) is not None]
    if widened:
        done = [(result, joint) for result, joint in widened if joint["ok"] and joint["eval"] <= EXACT]
        exactly = sum(result["operators"]["widen"]["eligible"] for result, _ in done)
        for result, joint in widened:
            if not (joint["ok"] and joint["eval"] <= EXACT):
                exactly += sum(one["ok"] and one["eval"] <= EXACT for one in _single(result["operators"]["widen"]))
        eligible = sum(result["operators"]["widen"]["eligible"] for result, _ in widened)
        trained = [joint["train"] for _, joint in done if joint["train"] is not None]
        yield (
            f"- All groups of a model widened at once: {len(done)} of {len(results)} models, exact in eval mode "
            f"(largest relative difference {max(joint['eval'] for _, joint in done):.1e}; in train mode "
            f"{max(trained):.1e}). "
            f"So {exactly:,} of {eligible:,} eligible groups ({exactly / eligible:.1%}) were widened exactly, together "
            "or one by one."
        )
    double = [result["widen_float64"] for result in results if result.get("widen_float64", {}).get("ok")]
    if double:
        whole = sum(one["site"] == "*" for one in double)
        within = sum(one["eval"] <= EXACT64 for one in double)
        yield (
            f"- In float64: {len(double)} models (all groups of {whole}, one group of the largest "
            f"{len(double) - whole}), {within} of them within 1e-10 in eval mode (largest "
            f"{max(one['eval'] for one in double):.1e})."
        )
    narrowed = [joint for result in results if (joint := _joint(result, "narrow")) is not None and joint["ok"]]
    if narrowed:
        right = sum(joint["backward"] and joint["optimizer"] is not False for joint in narrowed)
        yield (
            f"- All groups of a model halved at once: {len(narrowed)} of {len(results)} models; backward pass and "
            f"optimizer step right on {right}."
        )


def _reasons(results: list[Result]) -> Iterator[str]:
    total: Counter[str] = Counter()
    changeable = groups = 0
    for result in results:
        total.update(result.get("fixed", {}))
        total.update({f"changes, but not exactly: {why}": count for why, count in result.get("inexact", {}).items()})
        changeable += result.get("groups", 0)
        groups += result.get("groups", 0) + sum(result.get("fixed", {}).values())
    yield f"Of {groups:,} groups of all models {changeable:,} can change. The others, and those that grow inexactly:"
    yield ""
    yield "| groups | reason |"
    yield "|---|---|"
    for reason, count in total.most_common(40):
        yield f"| {count:,} | {_cell(reason)} |"
    if len(total) > 40:
        yield f"| {sum(count for _, count in total.most_common()[40:]):,} | {len(total) - 40} rarer reasons |"


def _refusals(results: list[Result]) -> Iterator[str]:
    yield "| model | operator | site | why |"
    yield "|---|---|---|---|"
    for result in results:
        if "error" in result:
            yield f"| {result['name']} | - | - | {_cell(result['error'])} |"
        for name, entry in result.get("operators", {}).items():
            for one in entry["tries"]:
                if not one["ok"]:
                    yield f"| {result['name']} | `{name}` | `{one['site']}` | {_cell(one['why'])} |"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", " ").split())[:200]
