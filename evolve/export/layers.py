"""PyTorch's own layers as the calls that make them, read off the layers."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from evolve.export.source import Call, call, literal

_ABSENT = object()
# Where a layer keeps what its constructor took under another name; the rest has the name of the argument.
_READ: dict[str, Any] = {
    "add_bias_kv": lambda module: module.bias_k is not None,
    "_freeze": lambda module: not module.weight.requires_grad,
}
_NOT_READ = {"device", "dtype", "_weight", "_freeze", "inplace_"}
_RECURRENT = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional", "proj_size")
_SQUARE = {"kernel_size", "stride", "padding", "dilation", "output_padding", "output_size"}


def layer_call(module: nn.Module) -> Call | None:  # noqa: PLR0911 - one for each reason why not
    """Returns the call that makes a layer of `torch.nn` like this one; None where none is found that does."""
    cls = base_class(module)
    if getattr(nn, cls.__name__, None) is not cls or is_parametrized(module):
        return None
    if module._modules and cls is not nn.MultiheadAttention:
        return None
    if cls is nn.Identity:
        return call("nn.Identity", origins={"": module})
    padded = _padded(module)
    if padded is not None:
        return padded
    arguments = _arguments(module, cls)
    if arguments is None:
        return None
    required, optional, given = arguments
    try:
        with torch.device("meta"):
            twin = cls(*required, **given)
    except Exception:  # a layer whose arguments cannot be read off it may raise anything
        return None
    if not alike(twin, module):
        return None
    origins = {"": module}
    for name, part in module.named_modules():
        origins[name] = part
    return call(
        f"nn.{cls.__name__}",
        *(str(_short(name, value)) for name, value in zip(optional[: len(required)], required, strict=True)),
        origins=origins,
        keywords={name: str(_short(name, value)) for name, value in given.items()},
    )


def base_class(module: nn.Module) -> type[nn.Module]:
    """Returns the class of a module as it was before any block was set to work at it."""
    base: type[nn.Module] = getattr(type(module), "_evolve_base", type(module))
    return base


def kind(module: nn.Module) -> type[nn.Module]:
    """Returns the class of a module before blocks and parametrizations: each of these makes a class of its own."""
    cls = base_class(module)
    return cls.__bases__[0] if is_parametrized(module) else cls


def alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two layers have the same tensors by shape and type, and the same plain settings."""
    tensors = [_tensors(module) for module in (one, other)]
    return tensors[0] == tensors[1] and not differing(one, other)


def _tensors(module: nn.Module) -> dict[str, tuple[Any, ...]]:
    own = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in own}


def differing(one: nn.Module, other: nn.Module) -> dict[str, Any]:
    """Returns plain settings of the second module that the first has otherwise, or lacks, by name."""
    found = {}
    for name, value in vars(other).items():
        if name in module_internals() or name.startswith("_evolve") or literal(value) is None:
            continue
        before = vars(one).get(name, _ABSENT)
        if before is _ABSENT or not _equal(before, value):
            found[name] = value
    return found


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return list(one) == list(other)
    return type(one) is type(other) and bool(one == other)


@cache
def module_internals() -> frozenset[str]:
    """The attributes that every module has."""
    return frozenset(vars(nn.Module())) | {"training", "_is_hf_initialized"}  # a note that transformers leaves


def _arguments(module: nn.Module, cls: type) -> tuple[list[Any], list[str], dict[str, Any]] | None:
    """Returns the values of required arguments, all names in order, and what differs from its default."""
    if isinstance(module, nn.RNNBase):
        return _recurrent(module)
    signature = inspect.signature(cls)
    required: list[Any] = []
    names: list[str] = []
    given: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            return None if parameter.kind is parameter.VAR_POSITIONAL else (required, names, given)
        if name in _NOT_READ:
            continue
        value = _value(module, name)
        if value is _ABSENT:
            if parameter.default is parameter.empty:
                return None
            continue
        names.append(name)
        if parameter.default is parameter.empty:
            required.append(value)
        elif not _same_as_default(name, value, parameter.default) and not _follows(module, name, value):
            given[name] = value
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    if dtype != torch.float32 and "dtype" in signature.parameters:
        given["dtype"] = dtype
    return required, names, given


def _recurrent(module: nn.RNNBase) -> tuple[list[Any], list[str], dict[str, Any]]:
    defaults = (None, None, 1, True, False, 0.0, False, 0)
    values = {name: getattr(module, name) for name in _RECURRENT}
    given = {n: v for (n, v), default in zip(values.items(), defaults, strict=True) if default is not None}
    given = {n: v for n, v in given.items() if v != defaults[_RECURRENT.index(n)]}
    if isinstance(module, nn.RNN) and module.nonlinearity != "tanh":
        given["nonlinearity"] = module.nonlinearity
    return [module.input_size, module.hidden_size], list(_RECURRENT), given


def _value(module: nn.Module, name: str) -> Any:
    if name in _READ:
        return _READ[name](module)
    if name == "bias":
        key = "in_proj_bias" if isinstance(module, nn.MultiheadAttention) else "bias"
        return getattr(module, key, None) is not None
    value = getattr(module, name, _ABSENT)
    return value if value is _ABSENT or literal(value) is not None or value is None else _ABSENT


def _same_as_default(name: str, value: Any, default: Any) -> bool:
    short = value
    if isinstance(value, tuple) and name in _SQUARE and len(set(value)) == 1:
        short = value[0]
    return bool(short == default) or bool(value == default)


def _follows(module: Any, name: str, value: Any) -> bool:
    """Whether a setting takes this value from another one where it is not given."""
    if name == "stride" and isinstance(module, _POOLS):
        return bool(value == module.kernel_size)
    return name in ("kdim", "vdim") and bool(value == module.embed_dim)


_POOLS = (nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd)


def _short(name: str, value: Any) -> str:
    """Returns a value as source, a size that is the same along all axes as one number."""
    if (
        isinstance(value, tuple)
        and len(set(value)) == 1
        and (name in _SQUARE or (name == "normalized_shape" and len(value) == 1))
    ):
        return str(literal(value[0]))
    if isinstance(value, torch.Size):
        value = tuple(value)
    return str(literal(value))


def _padded(module: nn.Module) -> Call | None:
    """Returns padding and convolution for one that pads before and behind by different amounts."""
    kinds = {nn.Conv1d: "1d", nn.Conv2d: "2d", nn.Conv3d: "3d"}
    cls = base_class(module)
    if cls not in kinds or getattr(module, "padding_mode", None) != "constant":
        return None
    conv: Any = module
    pads = tuple(conv._reversed_padding_repeated_twice)
    with torch.device("meta"):
        plain = cls(
            *(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride),
            dilation=conv.dilation,
            groups=conv.groups,
            bias=conv.bias is not None,
            dtype=conv.weight.dtype,
        )
    inner = layer_call(plain)
    assert inner is not None  # it was made by these arguments a moment ago
    inner = Call(inner.function, inner.arguments, {"": module})
    padding = call(f"nn.ZeroPad{kinds[cls]}", str(literal(pads)))
    return call("nn.Sequential", padding, inner, origins={"1": module})
