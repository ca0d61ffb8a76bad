"""Memory that analysing big models takes, and what a thousand mutations leave behind. Linux only.

Each model is built on the device `meta`, without memory for its weights, in a process of its own. What counts is the
highest resident memory while it is analysed, over what was resident before.
"""

from __future__ import annotations

import copy
import gc
import multiprocessing
from collections.abc import Callable
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch
from timing import Timer, arguments, machine, write_json
from torch import nn
from torch.nn import functional as F

from evolve import build_model, mutate
from evolve.structure.analysis import Analysis
from evolve.structure.inputs import as_inputs

CYCLES = 1000
WARM_UP = 20  # cycles before the first reading
SHOWN = (0, 100, 500, 1000)


def vit_huge() -> tuple[nn.Module, Any]:
    """Returns ViT-H/14 and an image."""
    from torchvision.models import vit_h_14

    return vit_h_14(weights=None), torch.empty(1, 3, 224, 224)


def llama() -> tuple[nn.Module, Any]:
    """Returns a Llama of 7 billion parameters (the defaults of its configuration) and 128 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokens = {"input_ids": torch.empty(1, 128, dtype=torch.long), "use_cache": False}
    return LlamaForCausalLM(LlamaConfig()), tokens


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {"ViT-H/14": vit_huge, "Llama 7B": llama}


def resident(what: str) -> float:
    """Returns this process's resident memory in MiB: `VmRSS` now, `VmHWM` at its highest."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:")) / 1024


def forget_the_highest() -> None:
    """Lets `VmHWM` start anew from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def analyse_in_this_process(name: str, threads: int, answers: Queue[dict[str, Any]]) -> None:
    """Builds a model, analyses it and says what that took."""
    torch.set_num_threads(threads)
    small = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    Analysis(small, as_inputs(small, torch.empty(1, 3, 8, 8)))  # what torch imports when it is first needed
    with torch.device("meta"):
        model, example = MODELS[name]()
    gc.collect()
    inputs = as_inputs(model, example)
    before = resident("VmRSS")
    forget_the_highest()
    timer = Timer()
    analysis = Analysis(model, inputs)
    answers.put(
        {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "groups": len(analysis.changeable),
            "seconds": timer.read().wall,
            "before_mib": before,
            "added_mib": resident("VmHWM") - before,
        }
    )


def analysis(name: str) -> dict[str, Any]:
    """Runs one case in a process of its own, prints and returns its figures."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=analyse_in_this_process, args=(name, torch.get_num_threads(), answers))
    process.start()
    figures: dict[str, Any] = answers.get(timeout=600)
    process.join()
    print(
        f"analysis, {name}: {figures['parameters']:,} parameters on meta, {figures['groups']} groups that can change, "
        f"{figures['seconds']:.1f} s; resident before {figures['before_mib']:.0f} MiB, at most "
        f"{figures['added_mib']:.0f} MiB more",
        flush=True,
    )
    return figures


def cycles() -> dict[str, Any]:
    """Widens and narrows again a thousand times, a group after the other; prints and returns what is left of it."""
    torch.manual_seed(0)
    model = build_model("simple_cnn").eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images = torch.randn(8, 3, 32, 32)
    F.cross_entropy(model(images), torch.arange(8)).backward()
    optimizer.step()
    optimizer.zero_grad()
    sites = [group.name for group in Analysis(model, as_inputs(model, images)).changeable]

    def cycle(number: int) -> None:
        site = sites[number % len(sites)]
        common: dict[str, Any] = {"site": site, "optimizer": optimizer, "example_inputs": images, "strict": True}
        mutate(model, "widen", add=8, seed=number, **common)
        mutate(model, "narrow", criterion="redundant", remove=8, seed=number, **common)

    start = copy.deepcopy(model)
    for number in range(WARM_UP):  # what torch imports when it is first needed, and what the allocator keeps at hand
        cycle(number)
    before = state_of(model, optimizer)
    series: dict[int, float] = {}
    for number in range(CYCLES + 1):
        if number in SHOWN:
            gc.collect()
            series[number] = resident("VmRSS")
            print(f"  after {number:4} cycles: {series[number]:.1f} MiB, {count(model):,} parameters", flush=True)
        if number < CYCLES:
            cycle(number)
    with torch.no_grad():
        scale = float(start(images).abs().max())
        change = float((model(images) - start(images)).abs().max()) / scale
    same = state_of(model, optimizer) == before
    print(f"  same shapes, parameters and optimizer entries: {same}; outputs differ by {change:.1e} of the largest")
    return {"resident_mib": series, "parameters": [count(start), count(model)], "same": same, "difference": change}


def count(model: nn.Module) -> int:
    """Returns the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    """Returns names, identities and shapes of the parameters and of what the optimizer keeps for them."""
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    shapes = [(name, id(parameter), parameter.shape) for name, parameter in model.named_parameters()]
    kept = [(id(p), key, value.shape) for p, state in optimizer.state.items() for key, value in state.items()]
    return [held, shapes, sorted(kept)]


def main() -> None:
    """Measures every case and prints it."""
    options = arguments(__doc__.splitlines()[0], repetitions=1).parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(f"machine: {machine()}")
    found = [{"case": name, **analysis(name)} for name in MODELS if options.only in f"analysis, {name}"]
    if options.only in "cycles":
        print(f"cycles: {CYCLES:,} times widen and narrow on simple_cnn, after {WARM_UP} more")
        found.append({"case": "cycles", **cycles()})
    write_json(options.json, "memory", found)


if __name__ == "__main__":
    main()
