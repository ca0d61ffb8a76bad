"""Watching the calls of a model's modules in one thread, without a hook.

PyTorch's hooks for all modules run in every thread of the process, and a hook on a module keeps its layers from running
fused. Every module looks for `_compiled_call_impl` first when it is called (`Module.compile()` sets it). What is put
there for a while sees the calls of this model alone, and passes on those of other threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_ENTRY = "_compiled_call_impl"

# Takes the module and the arguments it is called with; calls `module._call_impl` with them and returns what that gives.
Around = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]


@contextmanager
def watched_calls(model: nn.Module, around: Around) -> Iterator[None]:
    """Lets `around` make the calls of the model's modules that come from this thread while the context is open.

    Compiled modules run uncompiled meanwhile.
    """
    thread = threading.get_ident()
    modules = list(model.modules())
    before = [vars(module).get(_ENTRY) for module in modules]
    for module, compiled in zip(modules, before, strict=True):
        vars(module)[_ENTRY] = _entry(module, compiled or module._call_impl, around, thread)
    try:
        yield
    finally:
        for module, compiled in zip(modules, before, strict=True):
            if compiled is None:
                vars(module).pop(_ENTRY, None)
            else:
                vars(module)[_ENTRY] = compiled


def _entry(module: nn.Module, plain: Callable[..., Any], around: Around, thread: int) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return around(module, args, kwargs) if threading.get_ident() == thread else plain(*args, **kwargs)

    return call
