"""What a forward reads beside the values of its tensors: their sizes, integers that modules keep, the mode it runs in.

Where it reads none of them, nothing in it can go against other sizes, and training differs from evaluation in nothing
but what BatchNorm and dropout do: one recorded run tells all there is to know.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import activation, batchnorm, conv, dropout, linear, normalization, pooling
from torch.overrides import TorchFunctionMode

from evolve.structure.configs import rewrite_configs
from evolve.structure.tracing.recorder import Recorder
from evolve.structure.tracing.tape import Tape, Tie, Value


class _Told(int):
    """An integer that knows where it comes from; who compares it with another one asks for a size."""

    tape: Tape

    def _ask(self) -> int:
        self.tape.asks_size = True
        return int(self)

    def __reduce__(self) -> tuple[Any, ...]:  # a forward may keep it where nobody looks, and be saved or copied
        return int, (self._ask(),)

    def __eq__(self, other: object) -> bool:
        return self._ask() == other

    def __ne__(self, other: object) -> bool:
        return self._ask() != other

    def __lt__(self, other: int) -> bool:
        return self._ask() < other

    def __le__(self, other: int) -> bool:
        return self._ask() <= other

    def __gt__(self, other: int) -> bool:
        return self._ask() > other

    def __ge__(self, other: int) -> bool:
        return self._ask() >= other

    __hash__ = int.__hash__


class _SizeOf(_Told):
    """A size that knows which axis it was read from."""

    value: Value
    axis: int


class _SettingOf(_Told):
    """An integer that knows which attribute of which module it is, and at which position in it."""

    name: tuple[str, str, int | None]


class _Buffers(dict[str, Any]):
    """The buffers of a module, and its mode: an attribute of a module that is nowhere else is looked for among them.

    So who reads `training` is given a plain bool, and it is known.
    """

    def __init__(self, reader: Reader, buffers: dict[str, Any], training: bool) -> None:
        super().__init__(buffers)
        self._reader, self._training = reader, training

    def __contains__(self, name: object) -> bool:
        return name == "training" or super().__contains__(name)

    def __getitem__(self, name: str) -> Any:
        if name != "training":
            return super().__getitem__(name)
        if self._reader.layer not in _MODAL:
            self._reader.tape.asks_mode = True
        return self._training

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("A module cannot be copied while its mode is watched.")


class Reader(TorchFunctionMode):
    """Notes on the recorder's tape what a forward reads, and where the sizes come from that it gives to a view.

    `x.reshape(batch, length, width)` with the width of the block's input says that the two are one, and two views by
    `self.heads` that they are; nothing else does.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.tape = recorder.tape
        self._recorder = recorder

    @property
    def layer(self) -> type | None:
        """The class of the module whose forward is running, None where a hook or another forward runs in its name."""
        module = self._recorder.innermost
        if module is None or module._forward_pre_hooks or module._forward_hooks or "forward" in vars(module):
            return None
        return type(module)

    def watch(self, model: nn.Module, *, modes: bool) -> None:
        """Lets every integer of a module know its name; `undisturbed` puts plain ones back.

        Args:
            model: The model.
            modes: Watch who reads a mode too: no forward can set one then.
        """
        self.tape.asks_size, self.tape.asks_mode = False, not modes
        rewrite_configs(model, lambda config, *place: self._named(*place))
        for name, module in model.named_modules():
            for attribute, value in vars(module).items():
                if type(value) is int and value > 1:
                    vars(module)[attribute] = self._named(name, attribute, None, value)
            if modes:
                self._watch_mode(module)

    def _watch_mode(self, module: nn.Module) -> None:
        own = vars(module)
        # Code that is not Python reads it unseen, and who sets more than the mode reads that.
        unseen = isinstance(module, torch.jit.ScriptModule) or "training" not in own
        if unseen or "train" in own or type(module).train is not nn.Module.train:
            self.tape.asks_mode = True
        else:
            own["_buffers"] = _Buffers(self, module._buffers, own.pop("training"))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one function of torch."""
        kwargs = kwargs or {}
        if func not in _SIZELESS and self.layer not in _SETTLED:
            self.tape.asks_size = True
        out = func(*args, **kwargs)
        if func in _READS:
            value = self._recorder.value(args[0])
            if isinstance(out, torch.Size):
                return torch.Size([self._told(value, axis, size) for axis, size in enumerate(out)])
            return self._told(value, args[1] if len(args) > 1 else kwargs["dim"], out) if type(out) is int else out
        if func in _VIEWS and isinstance(out, Tensor):
            told = args[1:] if not isinstance(args[-1], (tuple, list)) else args[-1]
            if len(told) == out.dim():
                self._note(self._recorder.value(out), told)
        return out

    def _note(self, out: Value, told: Any) -> None:
        for axis, size in enumerate(told):
            if isinstance(size, _SizeOf):
                self.tape.ties.setdefault(len(self.tape.ops), []).append(Tie(out, axis, size.value, size.axis))
            elif isinstance(size, _SettingOf):
                first = self.tape.settings.setdefault(size.name, (out, axis))
                self.tape.ties.setdefault(len(self.tape.ops), []).append(Tie(out, axis, *first))

    def _named(self, module: str, attribute: str, position: int | None, value: int) -> int:
        named = _SettingOf(value)
        named.name, named.tape = (module, attribute, position), self.tape
        return named

    def _told(self, value: Value, axis: int, size: int) -> int:
        told = _SizeOf(size)
        told.value, told.axis, told.tape = value, axis, self.tape
        return told


_READS = {Tensor.shape.__get__, Tensor.size}  # type: ignore[attr-defined]
_VIEWS = {Tensor.view, Tensor.reshape, torch.reshape}

# Functions that take no size of channels or units from their caller, whoever calls them.
_POINTWISE = ("relu", "relu_", "sigmoid", "tanh", "add", "add_", "mul", "mul_", "sub", "sub_", "neg", "exp", "abs")
_OPERATORS = ("__add__", "__iadd__", "__radd__", "__mul__", "__imul__", "__rmul__", "__sub__", "__isub__", "__rsub__")
_FUNCTIONAL = (
    *("relu", "relu6", "gelu", "silu", "mish", "elu", "leaky_relu", "hardswish", "hardsigmoid", "hardtanh", "sigmoid"),
    *("tanh", "softplus", "dropout", "dropout2d", "linear", "batch_norm", "max_pool2d", "avg_pool2d"),
    *("adaptive_avg_pool2d", "adaptive_max_pool2d", "cross_entropy"),
)
_SIZELESS = {
    *(getattr(Tensor, name) for name in (*_POINTWISE, *_OPERATORS, "flatten", "dim", "contiguous", "detach", "clone")),
    *(getattr(torch, name) for name in _POINTWISE if hasattr(torch, name)),
    *(getattr(F, name) for name in _FUNCTIONAL),
    *(torch.cat, torch.concat, torch.flatten, torch.dropout, torch.is_floating_point),
    *(Tensor.device.__get__, Tensor.dtype.__get__, Tensor.is_cuda.__get__, Tensor.requires_grad.__get__),  # type: ignore[attr-defined]
    *(Tensor.ndim.__get__, Tensor.is_floating_point, Tensor.is_contiguous),  # type: ignore[attr-defined]
}
# PyTorch's own layers whose sizes are known to follow their tensors (`settings.py`), and those that keep none.
_SETTLED = {
    *(conv.Conv1d, conv.Conv2d, conv.Conv3d, conv.ConvTranspose1d, conv.ConvTranspose2d, conv.ConvTranspose3d),
    *(linear.Linear, linear.Identity, nn.Embedding, nn.Flatten, normalization.LayerNorm, normalization.GroupNorm),
    *(getattr(module, name) for module in (batchnorm, dropout, pooling) for name in module.__all__),
    *(getattr(activation, name) for name in activation.__all__ if name not in {"MultiheadAttention", "GLU"}),
}
# Layers that read their mode and differ in it by what BatchNorm and dropout do. Attention drops some of its weights;
# transformer layers run fused or not.
_MODAL = {
    *(getattr(module, name) for module in (batchnorm, dropout) for name in module.__all__),
    *(nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder),
}
