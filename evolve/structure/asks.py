"""What the code of a model mentions: questions about how it is being run, and its submodules."""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import nn

# By these, code of torch or of a user notices that a mode of torch is open, or that its calls are watched.
_QUESTIONS = {
    *("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic", "get_fastpath_enabled"),
    *("_is_torch_function_mode_enabled", "_is_torch_function_enabled", "_is_torch_function_all_disabled"),
    *("_len_torch_function_stack", "_get_current_function_mode", "_get_current_function_mode_stack"),
    *("_len_torch_dispatch_stack", "_get_current_dispatch_mode", "_get_current_dispatch_mode_stack"),
    *("_forward_hooks", "_compiled_call_impl"),
}

# By these, code reaches submodules without mentioning their names.
_LOOK_UPS = {
    *("getattr", "vars", "__dict__", "_modules", "children", "named_children", "modules", "named_modules"),
    *("get_submodule", "parameters", "named_parameters", "get_parameter", "state_dict", "eval", "exec"),
}


def asks_how_it_runs(model: nn.Module) -> bool:
    """Whether a model may do something else while a mode of torch watches it, as PyTorch's transformer layers do."""
    code = [value for cls in {type(module) for module in model.modules()} for value in _methods(cls)]
    return any(not _QUESTIONS.isdisjoint(_names(function.__code__)) for function in _functions(code))


def never_mentioned(model: nn.Module, name: str) -> bool:
    """Whether no code of a model, its constructors aside, mentions a submodule or one that holds it: it is unused.

    What is held by a container, or by a module whose code looks its children up by computed names, may always be used.

    Args:
        model: The model.
        name: Dotted name of the submodule.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    mentioned = None
    while name:
        parent, _, child = name.rpartition(".")
        holder = type(modules[parent])
        if not holder.__module__.startswith("torch.") and not _LOOK_UPS & _mentioned(_written(holder)):
            if mentioned is None:
                mentioned = _mentioned([value for module in modules.values() for value in _code_of(module)])
            if child not in mentioned:
                return True
        name = parent
    return False


def _code_of(module: nn.Module) -> list[Any]:
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return [*_written(type(module)), *vars(module).values(), *hooks]


def _written(cls: type[nn.Module]) -> list[Any]:
    """Returns what a class and its bases define, nn.Module and the constructors excepted."""
    bases = cls.__mro__[: cls.__mro__.index(nn.Module)]
    return [value for base in bases for key, value in vars(base).items() if key != "__init__"]


def _mentioned(code: list[Any]) -> set[str]:
    return {name for function in _functions(code) for name in _names(function.__code__)}


def _methods(cls: type[nn.Module]) -> list[Any]:
    """Returns what a class and its bases define, nn.Module excepted."""
    bases = cls.__mro__[: cls.__mro__.index(nn.Module)]
    return [value for base in bases for value in vars(base).values()]


def _functions(waiting: list[Any]) -> Iterator[FunctionType]:
    """Yields functions and those that they call, PyTorch's own excepted."""
    seen: set[FunctionType] = set()
    while waiting:
        function = waiting.pop()
        if isinstance(function, (staticmethod, classmethod, MethodType)):
            function = function.__func__
        elif isinstance(function, property):
            function = function.fget
        if not isinstance(function, FunctionType) or function in seen:
            continue
        seen.add(function)
        yield function
        called = [function.__globals__.get(name) for name in set(_names(function.__code__))]
        waiting += [f for f in called if not str(getattr(f, "__module__", "")).startswith("torch.")]
        waiting.append(getattr(function, "__wrapped__", None))  # what a decorator stands around


def _names(code: CodeType) -> Iterator[str]:
    """Yields the names and strings that code mentions, those of functions defined inside it included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
        elif isinstance(constant, str):
            yield constant
