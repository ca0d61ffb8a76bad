"""Graphs of an evolved model: `torch.export` and ONNX."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from evolve.errors import MisfitError, described, missing_package
from evolve.export.comparing import apart, largest_difference
from evolve.runtime.generators import preserved_rng
from evolve.structure.inputs import Inputs
from evolve.structure.isolation import undisturbed
from evolve.structure.outputs import output_tensors

logger = logging.getLogger(__name__)

LARGEST = 1e-4  # of an ONNX runtime's difference, relative to the largest output where that is above 1


def write_torch_export(model: nn.Module, path: Path, inputs: Inputs) -> float:
    """Writes a `.pt2` of the model in eval mode, the batch being of any size where the model lets it.

    Returns:
        max|Δ| of what it gives.

    Raises:
        MisfitError: If the model cannot be exported.
    """
    program = _program(model, inputs)
    torch.export.save(program, path)
    with _without_cache(model):
        difference, _ = largest_difference(model, torch.export.load(path).module(), inputs)
    return difference


def write_onnx(model: nn.Module, path: Path, inputs: Inputs) -> float | None:
    """Writes an ONNX file of the model in eval mode.

    Returns:
        max|Δ| of what onnxruntime makes of it; None where that is not installed.

    Raises:
        MisfitError: If the model cannot be exported, or onnxruntime computes something else.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MisfitError(missing_package("An export to ONNX", "onnxscript", error)) from error
    try:
        with warnings.catch_warnings(), torch.no_grad(), preserved_rng():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _program(model, inputs), (), str(path), dynamo=True, verbose=False, external_data=False, optimize=True
            )
    except MisfitError:
        raise
    except Exception as error:  # of many kinds
        raise MisfitError(f"This model cannot be exported to ONNX: {described(error)[:500]}") from error
    return _checked(model, path, inputs)


def _program(model: nn.Module, inputs: Inputs) -> torch.export.ExportedProgram:
    """Traces the model in eval mode, for batches of any size where that goes."""
    arguments = inputs.args or dict(inputs.kwargs)
    dynamic = None if inputs.args and inputs.kwargs else tree_map(partial(_any_batch, inputs.batch_size), arguments)
    faults = []
    with torch.no_grad(), undisturbed(model), warnings.catch_warnings(), _without_cache(model):
        warnings.simplefilter("ignore")
        model.eval()
        for shapes in (dynamic, None):
            try:
                return torch.export.export(model, inputs.args, dict(inputs.kwargs), dynamic_shapes=shapes, strict=False)
            except Exception as error:  # of many kinds
                faults.append(error)
    raise MisfitError(
        f"torch.export cannot take this model: {described(faults[-1])[:500]} --to python needs no tracing."
    ) from faults[-1]


def _any_batch(size: int, leaf: Any) -> dict[int, Any] | None:
    batched = isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == size
    return {0: torch.export.Dim.AUTO} if batched else None


@contextmanager
def _without_cache(model: nn.Module) -> Iterator[None]:
    """Models of transformers return what they remember, in an object that no graph can hold, unless told not to."""
    config: Any = getattr(model, "config", None)
    told = getattr(config, "use_cache", None)
    if told is not True:
        yield
        return
    config.use_cache = False
    try:
        yield
    finally:
        config.use_cache = told


def _checked(model: nn.Module, path: Path, inputs: Inputs) -> float | None:
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError:
        logger.warning("onnxruntime is not installed: what %s computes was not compared.", path.name)
        return None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = {
        wanted.name: tensor.detach().cpu().numpy()
        for wanted, tensor in zip(session.get_inputs(), inputs.tensors, strict=False)
    }
    after = [torch.from_numpy(array) for array in session.run(None, feed)]
    with torch.no_grad(), undisturbed(model), _without_cache(model):
        before = output_tensors(inputs.run(model.eval()))
    difference, scale = apart(before, after)
    if not difference <= LARGEST * max(1.0, scale):
        raise MisfitError(
            f"onnxruntime computes something else: max|Δ| = {difference:.3g} of {scale:.3g}, allowed is {LARGEST:g}."
        )
    return difference
