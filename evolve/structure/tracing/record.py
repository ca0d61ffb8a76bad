"""Recording one run of a model, on fake tensors where it can be, and leaving the model as it was."""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Set
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from evolve.structure.containers import empty_caches
from evolve.structure.gradients import without_gradients
from evolve.structure.inputs import Inputs
from evolve.structure.isolation import undisturbed
from evolve.structure.outputs import output_tensors
from evolve.structure.tracing.hooks import leave_out
from evolve.structure.tracing.reader import Reader
from evolve.structure.tracing.recorder import Recorder, plain_operations
from evolve.structure.tracing.tape import Tape

logger = logging.getLogger(__name__)


def record(model: nn.Module, inputs: Inputs, *, training: bool, observers: Set[int] = frozenset()) -> Tape:
    """Records one run of the model; it is left as it was.

    Args:
        model: Any module, on any device, `meta` too.
        inputs: Arguments of the run.
        training: The mode to run it in.
        observers: Hooks to leave out, from `observing_hooks`.
    """
    return without_gradients(model, lambda: _record_somehow(model, inputs, training, observers))


def _record_somehow(model: nn.Module, inputs: Inputs, training: bool, observers: Set[int]) -> Tape:
    """Records on fake tensors where it can be, with as much watched as the forward lets through."""
    ways = ((True, True, True), (True, True, False), (True, False, False), (False, True, False))
    fakes: list[weakref.ref[Tensor]] = []
    for faked, told, modes in ways:
        try:
            return _record(model, inputs, training, observers, fakes, faked=faked, told=told, modes=modes)
        except Exception as error:  # it looks at values, sets its mode, wants plain integers, or does not run at all
            logger.debug("%s cannot be recorded (fake tensors: %s): %s", type(model).__name__, faked, error)
        finally:
            empty_caches(fakes)
    return _record(model, inputs, training, observers, fakes, faked=False, told=False, modes=False)


def _record(
    model: nn.Module,
    inputs: Inputs,
    training: bool,
    observers: Set[int],
    fakes: list[weakref.ref[Tensor]],
    *,
    faked: bool,
    told: bool,
    modes: bool,
) -> Tape:
    """Records a run, on fake tensors or not, with integers that tell where they come from, with modes watched.

    The fake tensors that it made are added to `fakes`.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True) if faked else None
    tape = Tape(training, real=fake is None, gradients=torch.is_grad_enabled())
    recorder = Recorder(model, tape, fake)

    def ready(leaf: Any) -> Any:
        return recorder.stand_in(leaf) if isinstance(leaf, Tensor) else leaf

    try:
        with undisturbed(model, seed=0), plain_operations(model):
            model.train(training)
            leave_out(model, observers)
            reader = Reader(recorder)
            if told:
                reader.watch(model, modes=modes)
            args, kwargs = tree_map(ready, inputs.args), tree_map(ready, dict(inputs.kwargs))
            listening = reader if told else contextlib.nullcontext()
            with fake or contextlib.nullcontext(), recorder, recorder.modules(), listening:
                outputs = model(*args, **kwargs)
        tape.inputs = recorder._tensors((args, kwargs))
        tape.outputs = [recorder.value(tensor) for tensor in output_tensors(outputs)]
    finally:
        fakes += recorder.let_go()
    tape.asks_mode |= tape.real  # a forward that looks at values may take another way in train mode
    return tape
