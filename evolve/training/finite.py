"""Nothing that is NaN or infinite is saved or reported as a result, unless it was made so on purpose."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from evolve.errors import NonFiniteModelError

_WITH_MINMAX = {torch.float64, torch.float32, torch.float16, torch.bfloat16}


class FiniteWatch:
    """Tells what a model was built with from what training did to it.

    A tensor that is NaN or infinite when it is first seen may stay so: a mask of minus infinity, a smallest value that
    starts at infinity.

    Args:
        model: As training begins.
    """

    def __init__(self, model: nn.Module) -> None:
        self._known: set[str] = set()
        self._allowed: set[str] = set()
        self.look(model)

    def look(self, model: nn.Module) -> None:
        """Takes in what is new in a model, after a mutation."""
        tensors = _saved(model)
        self._allowed |= set(nonfinite((name, tensor) for name, tensor in tensors.items() if name not in self._known))
        self._known = set(tensors)

    def check(self, model: nn.Module, averages: Mapping[str, Tensor]) -> None:
        """Holds parameters, buffers and averaged weights (by the name of their parameter) against NaN and infinity.

        Raises:
            NonFiniteModelError: If a tensor is so that was not from the beginning.
        """
        _refuse(_saved(model), averages, self._allowed)

    def state(self) -> dict[str, Any]:
        """Returns what a resumed run needs, as JSON values."""
        return {"known": sorted(self._known), "allowed": sorted(self._allowed)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` returned."""
        self._known, self._allowed = set(state["known"]), set(state["allowed"])


def check_finite(model: nn.Module, averages: Mapping[str, Tensor]) -> None:
    """As `FiniteWatch.check`, for a model whose beginning is not known: its buffers may be infinite, but not NaN.

    Raises:
        NonFiniteModelError: If another tensor is NaN or infinite.
    """
    buffers = {name: tensor for name, tensor in model.named_buffers() if tensor.is_floating_point()}
    infinite = [name for name in nonfinite(buffers.items()) if not buffers[name].isnan().any()]
    _refuse(_saved(model), averages, infinite)


def check_finite_optimizer(saved: Mapping[str, Any]) -> None:
    """Holds the state of optimizers against NaN and infinity; no optimizer of torch keeps an infinity on purpose.

    Args:
        saved: As `optimizer_by_name` returned it.

    Raises:
        NonFiniteModelError: If a tensor of the state is NaN or infinite.
    """
    tensors: list[tuple[str, Tensor]] = []
    for one in saved.get("optimizers", [saved]):
        for layer in (one, *one["inside"]):
            for name, values in layer["state"].items():
                for key, value in values.items():
                    tensors += [(f"'{key}' of '{name}'", leaf) for leaf in _leaves(value)]
            for key, value in (*layer["other"].items(), *layer["kept"].items()):
                tensors += [(f"'{key}'", leaf) for leaf in _leaves(value)]
    found = list(dict.fromkeys(nonfinite(tensors)))
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise NonFiniteModelError(
            f"The optimizer's state has become NaN or infinite: {', '.join(found[:3])}{more}. It was not saved. Clip "
            "gradients (training.grad_clip), or clear the optimizer's state of these parameters."
        )


def _leaves(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def nonfinite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Returns the names of the tensors that hold a NaN or an infinity. Waits for their device once."""
    names, flags = [], []
    for name, tensor in tensors:
        if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex()) and tensor.device.type != "meta":
            names.append(name)
            flags.append(_is_finite(tensor.detach()))
    if not flags:
        return []
    finite = torch.stack([flag.to(flags[0].device, non_blocking=True) for flag in flags]).tolist()
    return [name for name, fine in zip(names, finite, strict=True) if not fine]


def _saved(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}


def _refuse(tensors: Mapping[str, Tensor], averages: Mapping[str, Tensor], allowed: Collection[str]) -> None:
    found = [f"'{name}'" for name in nonfinite(tensors.items()) if name not in allowed]
    found += [f"the averaged '{name}'" for name in nonfinite(averages.items()) if name not in allowed]
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise NonFiniteModelError(
            f"The model has become NaN or infinite: {', '.join(found[:3])}{more}. It was not saved. Lower the learning "
            "rate, clip gradients (training.grad_clip) or use precision: fp32."
        )


def _is_finite(tensor: Tensor) -> Tensor:
    """Whether all values are finite, as a tensor; takes no memory for the usual types."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    elif tensor.layout != torch.strided:
        tensor = tensor.coalesce().values() if tensor.layout == torch.sparse_coo else tensor.values()
        if not tensor.numel():
            return torch.ones((), dtype=torch.bool, device=tensor.device)
    low, high = torch.aminmax(tensor if tensor.dtype in _WITH_MINMAX else tensor.float())
    return low.isfinite() & high.isfinite()
