"""Caps that no mutation may pass: counted, estimated beforehand, or measured on this device."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt
from torch import nn

from evolve.errors import NotApplicable, RejectedError
from evolve.structure.analysis import analyse
from evolve.structure.inputs import Inputs
from evolve.structure.latency import latency


class Limits(BaseModel):
    """Caps that a mutation may not pass; null for none.

    Attributes:
        params: Most parameters of the model.
        flops: Most FLOPs of one forward pass of one sample (2 per multiply-accumulate).
        activation_bytes: Most bytes of all tensors that a forward pass of one sample makes, which is what training
            keeps at most. Estimated from the structure before the changed model runs.
        latency_ms: Most milliseconds of a forward pass of the probe batch in eval mode, the median of some, measured
            on the device where the model is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    params: PositiveInt | None = None
    flops: PositiveInt | None = None
    activation_bytes: PositiveInt | None = None
    latency_ms: PositiveFloat | None = None

    def check_beforehand(self, model: nn.Module, inputs: Inputs | None, params: int) -> None:
        """Holds a changed model against what is known of it before it runs.

        Raises:
            RejectedError: If a limit is passed, with the figure, or cannot be checked.
        """
        _check("parameters", params, self.params)
        if inputs is None:
            unknown = [name for name in ("flops", "activation_bytes", "latency_ms") if getattr(self, name) is not None]
            if unknown:
                names = " and ".join(unknown)
                raise RejectedError(
                    f"The limit on {names} cannot be checked without a probe batch: pass example_inputs."
                )
        elif self.activation_bytes is not None:
            try:
                estimate = analyse(model, inputs).costs[""].activation_bytes
            except NotApplicable as error:
                raise RejectedError(f"The limit on activation_bytes cannot be checked: {error}") from error
            _check("bytes of activations", estimate, self.activation_bytes)

    def check_running(self, model: nn.Module, inputs: Inputs, flops: int | None) -> None:
        """Holds a changed model against what its run on the probe batch shows.

        Raises:
            RejectedError: If a limit is passed, with the figure.
        """
        _check("FLOPs", flops, self.flops)
        if self.latency_ms is not None:
            _check("milliseconds", 1000 * latency(model, inputs, modules=False)[""], self.latency_ms)


def _check(what: str, value: float | None, limit: float | None) -> None:
    if limit is not None and value is not None and value > limit:
        form = ",d" if isinstance(value, int) else ",.3g"
        raise RejectedError(
            f"The limit of {limit:{form if isinstance(limit, int) else ',g'}} {what} would be passed: "
            f"the mutated model has {value:{form}}."
        )
