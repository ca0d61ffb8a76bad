"""Measured latency: how long a model and each of its modules take, on the device where the model lives."""

from __future__ import annotations

import time
from collections import defaultdict
from statistics import median
from typing import Any

import torch
from torch import nn

from evolve.errors import NotApplicable, described
from evolve.runtime.device import devices_of
from evolve.runtime.exclusive import exclusive
from evolve.structure.gradients import without_gradients
from evolve.structure.inputs import Inputs, as_inputs, infer_inputs
from evolve.structure.isolation import undisturbed
from evolve.structure.tracing.calls import watched_calls

_WARM_UP = 2  # runs that are not counted: they allocate, choose kernels, fill caches


@exclusive
def latency(
    model: nn.Module, example_inputs: Any = None, *, repetitions: int = 7, modules: bool = True
) -> dict[str, float]:
    """Measures the forward pass in eval mode, without gradients; the model is left as it was.

    The whole model is timed on its own. The modules are timed in further runs by a watch that waits for an accelerator
    before it reads the clock: work that overlaps otherwise is added up then, so that there the modules of a model may
    take longer together than the model.

    Args:
        model: A module with values, not on `meta`.
        example_inputs: As for `analyse`.
        repetitions: Runs of which the median is taken.
        modules: Whether to time the modules too.

    Returns:
        Seconds of one forward pass of the whole batch: "" for the model, and by name for each module that it calls, all
        calls of the module and of what is inside it added up.

    Raises:
        NotApplicable: If the model has no values, no inputs are known, or it does not run on them.
    """
    inner = getattr(model, "_orig_mod", None)  # a compiled model is measured underneath: its modules run one by one
    model = inner if isinstance(inner, nn.Module) else model
    devices = devices_of(model)
    if any(device.type == "meta" for device in devices):
        raise NotApplicable("A model on the meta device computes nothing. Measure it where it has values.")
    inputs = example_inputs if isinstance(example_inputs, Inputs) else None
    if inputs is None:
        inputs = infer_inputs(model) if example_inputs is None else as_inputs(model, example_inputs)
    if inputs is None:
        raise NotApplicable(f"No inputs are known that a {type(model).__name__} runs on: pass example_inputs.")
    clock = _Clock(devices)

    def run() -> tuple[list[float], list[dict[str, float]]]:
        with undisturbed(model):
            model.eval()
            whole = [_timed(model, inputs, clock) for _ in range(_WARM_UP + repetitions)]
            return whole, [_timed_parts(model, inputs, clock) for _ in range(repetitions if modules else 0)]

    try:
        whole, parts = without_gradients(model, run)
    except Exception as error:  # whatever a user's forward raises
        raise NotApplicable(f"The model fails where its latency is measured: {described(error)}") from error
    called = dict.fromkeys(name for run in parts for name in run)
    by_module = {name: median(run[name] for run in parts if name in run) for name in called}
    return {**by_module, "": median(whole[_WARM_UP:])}


class _Clock:
    """A clock that waits for accelerators to finish what they were given."""

    def __init__(self, devices: list[torch.device]) -> None:
        self._accelerators = [device for device in devices if device.type != "cpu"]

    def read(self) -> float:
        """Returns seconds."""
        for device in self._accelerators:
            torch.accelerator.synchronize(device)
        return time.perf_counter()


def _timed(model: nn.Module, inputs: Inputs, clock: _Clock) -> float:
    started = clock.read()
    inputs.run(model)
    return clock.read() - started


def _timed_parts(model: nn.Module, inputs: Inputs, clock: _Clock) -> dict[str, float]:
    """Returns the time of each module's calls, added up."""
    names = {id(module): name for name, module in model.named_modules()}
    seconds: dict[str, float] = defaultdict(float)

    def timed(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        started = clock.read()
        try:
            return module._call_impl(*args, **kwargs)
        finally:  # a forward may catch what is raised and go on
            seconds[names[id(module)]] += clock.read() - started

    with watched_calls(model, timed):
        inputs.run(model)
    return seconds
