"""Whether the code of a model asks how it is being run, beyond its mode and whether gradients are on."""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from torch import nn

# By these, code of torch or of a user notices that a `TorchFunctionMode` is open.
_QUESTIONS = {
    *("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic", "get_fastpath_enabled"),
    *("_is_torch_function_mode_enabled", "_is_torch_function_enabled", "_is_torch_function_all_disabled"),
    *("_len_torch_function_stack", "_get_current_function_mode", "_get_current_function_mode_stack"),
}


def asks_how_it_runs(model: nn.Module) -> bool:
    """Whether a model may do something else while a mode of torch watches it, as PyTorch's transformer layers do."""
    return any(map(_asks, {type(module) for module in model.modules()}))


def _asks(cls: type[nn.Module]) -> bool:
    """Whether the methods of a class, or the functions of its author's that they call, ask such a question."""
    bases = cls.__mro__[: cls.__mro__.index(nn.Module)]
    waiting: list[Any] = [value for base in bases for value in vars(base).values()]
    seen: set[FunctionType] = set()
    while waiting:
        function = waiting.pop()
        if not isinstance(function, FunctionType) or function in seen:
            continue
        seen.add(function)
        names = set(_names(function.__code__))
        if names & _QUESTIONS:
            return True
        called = [function.__globals__.get(name) for name in names]
        waiting += [f for f in called if not str(getattr(f, "__module__", "")).startswith("torch.")]
        waiting.append(getattr(function, "__wrapped__", None))  # what a decorator stands around
    return False


def _names(code: CodeType) -> Iterator[str]:
    """Yields the names that code mentions, those of functions defined inside it included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
