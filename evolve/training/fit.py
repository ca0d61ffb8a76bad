"""Whether model, task and data fit together, checked before the first step."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from evolve.data import Batches, TensorBatches
from evolve.data.trees import Batch, tensors_of
from evolve.errors import MisfitError, described
from evolve.structure.isolation import undisturbed
from evolve.tasks import MetricMeter, Supervised, call_model, loss_and_outputs
from evolve.tasks.losses import ELEMENTWISE
from evolve.training.passes import autocast, place
from evolve.training.state import TrainState
from evolve.training.step import eval_mode

logger = logging.getLogger(__name__)

# Operations that compare outputs with targets position by position, where broadcasting is a mistake.
_COMPARISONS = {"sub", "__sub__", "rsub", "__rsub__", "subtract", "pairwise_distance", *ELEMENTWISE}
_EXAMPLES = 8  # training samples that the model is run on in train mode


def check_data(state: TrainState, train: Batches, val: Batches) -> list[str]:
    """Runs the model on training and validation data, so that a misfit is reported before a run begins.

    Data in memory is checked as a whole, other data by its first batch. Nothing of the model is changed.

    Returns:
        What can be measured on the data: "loss" and the labels of metrics, such as "accuracy".

    Raises:
        MisfitError: If model, task and data do not fit together, with the cause.
        DataError: If the data cannot be read.
    """
    examples = train.examples(_EXAMPLES)
    if fault := _not_finite(_whole(train) or examples, "training"):
        raise MisfitError(f"{fault} Fill in or drop those samples.")
    with undisturbed(state.model):
        state.model.train()
        state.task.check_batch(examples)
        examples = place(state, examples)
        _loss_on(state, state.model, examples, state.task.loss)
        measured = _check_validation(state, val)
        if isinstance(state.task, Supervised):
            with torch.no_grad(), eval_mode(state.model):
                for name, batches in (("training", train), ("validation", val)):
                    if whole := _whole(batches):
                        few = place(state, batches.examples(2))
                        outputs = call_model(state.model, state.task.arguments(state.model, few))
                        state.task.check(outputs, whole, f" of the {name} data")
    return measured


def _check_validation(state: TrainState, val: Batches) -> list[str]:
    """Runs the model on validation data, in eval mode; returns what can be measured."""
    meter, samples = MetricMeter(state.task, state.metrics), 0
    for batch in val.epoch(0):
        state.task.check_batch(batch)
        spoiled = _not_finite(batch, "validation")
        batch = place(state, batch)
        with eval_mode(state.model), torch.enable_grad():
            try:
                loss, outputs = _loss_on(state, state.evaluated, batch, state.task.evaluate)
            except MisfitError as error:
                raise MisfitError(f"On the validation data: {error}") from error
        if spoiled:
            logger.warning("%s Metrics will be NaN or infinite.", spoiled)
        _check_loss(loss, finite=not spoiled)
        with torch.no_grad():
            meter.update(outputs, batch)
        samples += state.task.count(batch)
        if samples > 1:  # a coefficient of determination needs two
            break
    with torch.no_grad():
        return ["loss", *meter.compute()]


def _whole(batches: Batches) -> Batch | None:
    """All inputs and targets, where they lie in memory."""
    if not isinstance(batches, TensorBatches):
        return None
    return batches.inputs if batches.targets is None else (batches.inputs, batches.targets)


class _Watched:
    """Stands for the model: what it raises on its arguments becomes a `MisfitError`, and what it returns is noted."""

    def __init__(self, state: TrainState, forward: Callable[..., Any], batch: Batch) -> None:
        self._state = state
        self._forward = forward
        self._batch = batch
        self.outputs: Any = None
        self.called = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the model."""
        try:
            self.outputs = self._forward(*args, **kwargs)
        except Exception as error:  # a model may fail in any way on data that it was not made for
            raise MisfitError(
                f"Model and data do not fit: on {_shapes(args, kwargs)} {type(self._state.model).__name__} raised "
                f"{described(error).rstrip('.')}. {_advice(self._state, error, args, kwargs)}"
            ) from error
        self.called = True
        if type(self._state.task).loss is Supervised.loss:  # before the loss: on a GPU, a class out of range ends all
            self._state.task.check(self.outputs, self._batch)
        return self.outputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._forward, name)


def _loss_on(
    state: TrainState, forward: Callable[..., Any], batch: Batch, loss: Callable[[Any, Batch], Any]
) -> tuple[Tensor, Any]:
    """Returns the loss on a batch, and outputs if the task gives them; all that goes wrong is told with its cause."""
    watched = _Watched(state, forward, batch)
    pair = state.task.split(batch) if isinstance(state.task, Supervised) else None
    comparisons = _Comparisons(watched, pair[1]) if pair is not None and isinstance(pair[1], Tensor) else None
    try:
        with autocast(state), comparisons or nullcontext():
            found, outputs = loss_and_outputs(loss(watched, batch))
    except MisfitError:
        raise
    except Exception as error:  # a loss, the user's own too, may raise anything
        if watched.called:
            state.task.check(watched.outputs, batch)
        raise MisfitError(
            f"The loss does not take {_given(watched.outputs, batch, pair)}: {type(error).__name__}: {error}. Check "
            "the task, training.loss and the targets."
        ) from error
    if comparisons is not None and comparisons.spread:
        state.task.check(watched.outputs, batch)
        raise MisfitError(
            f"The loss compares {_given(watched.outputs, batch, pair)}, which have different shapes, so that each "
            "output is compared with every target. Give both one shape: targets.unsqueeze(1), or outputs.squeeze(1)."
        )
    state.task.check(watched.outputs if outputs is None else outputs, batch)
    return found, outputs


def _given(outputs: Any, batch: Batch, pair: tuple[Any, Any] | None) -> str:
    """Says what a loss was given."""
    if pair is None:
        return f"a batch of {_shapes((batch,), {})}"
    return f"outputs {_shape(outputs)} and targets {_shape(pair[1])}"


def _shape(value: Any) -> str:
    return f"{tuple(value.shape)} ({_dtype(value)})" if isinstance(value, Tensor) else type(value).__name__


def _shapes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Says what a model was called with."""
    if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
        return f"inputs of shape {tuple(args[0].shape)} ({_dtype(args[0])})"
    parts = [f"{name.lstrip('.')} {_shape(tensor)}" for name, tensor in (*tensors_of(args), *tensors_of(kwargs))]
    return f"inputs {', '.join(parts[:6])}" if parts else "inputs without a tensor"


def _advice(state: TrainState, error: Exception, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    inputs = next((tensor for _, tensor in (*tensors_of(args), *tensors_of(kwargs))), None)
    if inputs is None:
        kinds = ", ".join(type(value).__name__ for value in (*args, *kwargs.values())[:3])
        return f"The model gets no tensor but {kinds}: let the data give (inputs, targets) as tensors."
    if isinstance(error, TypeError) and (unlike := _other_arguments(state.model, args, kwargs)):
        return (
            f"{unlike}. The task '{state.task.name}' calls it with {_call(args, kwargs)}: let the data give what the "
            "model takes, or write a task of your own that calls it as it wants to be called."
        )
    if isinstance(error, IndexError) and (ranges := _ranges(args, kwargs)):
        return (
            f"Whole numbers among them: {ranges}. Counted from 0, they have to be less than the model has entries: "
            "look at the size of its embedding (the vocabulary) or at its number of classes."
        )
    return _advice_on_inputs(state, inputs)


def _advice_on_inputs(state: TrainState, inputs: Tensor) -> str:
    dtype = next((p.dtype for p in state.model.parameters() if p.is_floating_point()), torch.float32)
    if inputs.is_floating_point() and inputs.dtype != dtype and state.config.precision == "fp32":
        return f"The model computes in {str(dtype).removeprefix('torch.')}: convert the inputs to that."
    if not (inputs.is_floating_point() or inputs.is_complex()):
        return "These inputs are whole numbers: convert them with .float() unless the model takes tokens."
    if any(isinstance(module, nn.Embedding) for module in state.model.modules()):
        return "These inputs are floats, and the model has an embedding: convert tokens with .long()."
    return "Check the shape that the model expects: channels, image size, features."


def _other_arguments(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Says what a model takes, where it cannot be called with these arguments at all; "" where it can."""
    signature = inspect.signature(model.forward)
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return f"Its forward takes {signature.replace(return_annotation=signature.empty)}"
    return ""


def _call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    one = [f"{len(args)} argument{'s' * (len(args) != 1)}"] if args else []
    return " and ".join([*one, *([f"the keywords {', '.join(kwargs)}"] if kwargs else [])]) or "nothing"


def _ranges(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Says from where to where whole numbers among the arguments run."""
    found = {
        f"{name.lstrip('.') or 'inputs'} from {int(tensor.min())} to {int(tensor.max())}"
        for name, tensor in (*tensors_of(args[0] if len(args) == 1 else args), *tensors_of(kwargs))
        if tensor.numel() and not tensor.is_floating_point() and not tensor.is_complex()
    }
    return ", ".join(sorted(found)[:6])


def _check_loss(loss: Any, finite: bool) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise MisfitError(f"The loss returned {found}; a run needs one number, such as the mean over the samples.")
    if finite and not loss.isfinite().all():
        raise MisfitError(
            f"The loss is {loss.item()} before any step. Look at the model's initial weights and at the targets' range."
        )
    if not loss.requires_grad:
        raise MisfitError(
            "No gradient reaches the model from the loss: all parameters are frozen, or the forward or the loss works "
            "under no_grad or detaches its result."
        )


class _Comparisons(TorchFunctionMode):
    """Notes whether outputs and targets of different shapes are spread over each other where they are compared."""

    def __init__(self, watched: _Watched, targets: Tensor) -> None:
        super().__init__()
        self.spread = False
        self._watched, self._targets = watched, targets

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Looks at one call of torch."""
        outputs, targets = self._watched.outputs, self._targets
        given = [*args, *(kwargs or {}).values()]
        both = any(value is outputs for value in given) and any(value is targets for value in given)
        compared = both and isinstance(outputs, Tensor) and getattr(func, "__name__", "") in _COMPARISONS
        if compared and outputs.shape != targets.shape:
            self.spread = torch.broadcast_shapes(outputs.shape, targets.shape).numel() > max(
                outputs.numel(), targets.numel()
            )
        with warnings.catch_warnings():
            if compared:  # torch warns of different shapes too, and the error says more
                warnings.simplefilter("ignore")
            return func(*args, **(kwargs or {}))


def _not_finite(batch: Batch, data: str) -> str:
    """Says where values of a batch, or of all the data, are NaN or infinite; "" where all are finite."""
    pair = isinstance(batch, tuple | list) and len(batch) == 2
    for name, values in tensors_of(batch):
        if not values.is_floating_point() or (finite := values.isfinite()).all():
            continue
        what = {"[0]": "inputs", "[1]": "targets"}.get(name, name) if pair else name or "inputs"
        first, count = (~finite).nonzero()[0].tolist(), int((~finite).sum())
        return (
            f"The {what} of the {data} data hold NaN or infinity: {count:,} of {values.numel():,} values, the first at "
            f"{first}."
        )
    return ""


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
