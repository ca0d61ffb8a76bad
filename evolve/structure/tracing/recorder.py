"""Records one run of a model as a list of operations, with the module that each of them belongs to.

The record is taken below autograd, at the dispatcher, on fake tensors: every model that runs can be recorded, whatever
its forward is written like, and nothing is computed or allocated. Where a forward looks at values (control flow that
depends on data), the run is recorded on the real tensors instead.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from evolve.structure.isolation import CallsSeen, unfused
from evolve.structure.tracing.calls import watched_calls
from evolve.structure.tracing.fake_kernels import Shortcuts
from evolve.structure.tracing.flops import flops, hidden_parts
from evolve.structure.tracing.tape import ModuleCall, Op, Tape, Value

logger = logging.getLogger(__name__)


_aten = torch.ops.aten
_DEVICE = torch.ops.prim.device.default
_TURNING = {_aten.transpose_, _aten.t_, _aten.swapaxes_, _aten.squeeze_, _aten.unsqueeze_}


class Recorder(TorchDispatchMode):
    """Writes the operations that run while it is open to a tape.

    Args:
        model: Its parameters, buffers and modules get their names on the tape.
        tape: Where to write.
        fake: Stands in for real tensors with fake ones; None records the real ones.
    """

    def __init__(self, model: nn.Module, tape: Tape, fake: FakeTensorMode | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape = tape
        self._model = model
        self._fake = fake
        self._shortcuts = Shortcuts(fake) if fake is not None else None
        self._stand_ins: dict[int, Tensor] = {}
        self._values: dict[int, Value] = {}
        self._alive: list[Any] = []  # ids are unique only among living objects
        self._stack = [-1]
        self._modules: list[nn.Module] = []
        self._names = {id(module): name for name, module in reversed(list(model.named_modules(remove_duplicate=False)))}
        self._sources = {id(tensor): name for name, tensor in (*model.named_buffers(), *model.named_parameters())}

    @property
    def innermost(self) -> nn.Module | None:
        """The module whose forward is running."""
        return self._modules[-1] if self._modules else None

    def value(self, tensor: Tensor, made_by: int | None = None) -> Value:
        """Returns the value that stands for a tensor."""
        known = self._values.get(id(tensor))
        if known is None:
            source = self._sources.get(id(tensor), "")
            known = Value(tuple(tensor.shape), tensor.dtype, source, made_by)
            self._values[id(tensor)] = known
            self._alive.append(tensor)
            if source:
                self.tape.parameters[source] = known
        return known

    def stand_in(self, tensor: Tensor) -> Tensor:
        """Returns the fake tensor that takes a real one's place."""
        if self._fake is None or isinstance(tensor, FakeTensor):
            return tensor
        known = self._stand_ins.get(id(tensor))
        if known is None:
            with no_dispatch():
                meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
            device = tensor.device if tensor.device.type != "meta" else torch.device("cpu")
            known = FakeTensor(self._fake, meta, device)
            self._stand_ins[id(tensor)] = known
            self._values[id(known)] = self.value(tensor)
            self._alive.append(known)
        return known

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one operation and writes it down."""
        kwargs = kwargs or {}
        if func is _DEVICE:  # fake tensors ask for it at every step
            return args[0].fake_device
        parts = hidden_parts(self, func, args, kwargs)
        if parts is not NotImplemented:
            return parts
        noted = tuple(self._note(arg) for arg in args)
        noted_kwargs = {key: self._note(value) for key, value in kwargs.items()}
        out = self._shortcuts.take(func, args, kwargs) if self._shortcuts is not None else None
        if out is None and self._fake is not None:
            args = tuple(self._replace(arg) for arg in args)
            kwargs = {key: self._replace(value) for key, value in kwargs.items()}
        out = func(*args, **kwargs) if out is None else out
        if func._overloadpacket in _TURNING:
            self._values.pop(id(out), None)  # the same tensor, but its axes are others from here on
        position = len(self.tape.ops)
        flat = (out,) if isinstance(out, Tensor) else tree_leaves(out)
        outputs = [self.value(leaf, position) if isinstance(leaf, Tensor) else None for leaf in flat]
        self.tape.ops.append(Op(func, noted, noted_kwargs, outputs, self._stack[-1], flops(func, args, kwargs, out)))
        return out

    def _note(self, arg: Any) -> Any:
        if isinstance(arg, Tensor):
            return self.value(arg)
        if isinstance(arg, (list, tuple)):
            return [self._note(item) for item in arg]
        return arg

    def _replace(self, arg: Any) -> Any:
        if isinstance(arg, Tensor):
            return self.stand_in(arg)
        if isinstance(arg, (list, tuple)):
            return [self._replace(item) for item in arg]
        return arg

    def let_go(self) -> list[weakref.ref[Tensor]]:
        """Holds no tensor any more; returns the fake ones that there were."""
        fakes: list[weakref.ref[Tensor]] = [weakref.ref(t) for t in self._alive if isinstance(t, FakeTensor)]
        self._alive.clear()
        self._stand_ins.clear()
        self._shortcuts = None
        return fakes

    def modules(self) -> AbstractContextManager[None]:
        """Notes the calls of modules while it is open."""
        return watched_calls(self._model, self._call)

    def _call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        depth, name = len(self._stack), self._names.get(id(module), "")
        call = ModuleCall(name, self._stack[-1], self._tensors(args), ops=(len(self.tape.ops), 0))
        self.tape.calls.append(call)
        self._stack.append(len(self.tape.calls) - 1)
        self._modules.append(module)
        try:
            output = module._call_impl(*args, **kwargs)
        finally:
            self._modules.pop()
        del self._stack[
            depth:
        ]  # with what raised further in and was caught; where it is not, the stack tells the place
        call.outputs = self._tensors(output)
        call.ops = (call.ops[0], len(self.tape.ops))
        return output

    def _tensors(self, values: Any) -> list[Value]:
        if type(values) is tuple and len(values) == 1:  # as most modules are called: taking a tree apart takes longer
            values = values[0]
        leaves = (values,) if isinstance(values, Tensor) else tree_leaves(values)
        return [self.value(leaf) for leaf in leaves if isinstance(leaf, Tensor)]


@contextlib.contextmanager
def plain_operations(model: nn.Module) -> Iterator[None]:
    """Lets attention run as the plain operations it consists of, instead of one fused kernel.

    Two logs are held back: torch's own of operations that fail on fake tensors, as the failure is an answer here, and
    that of blocks that add nothing to what does not fit, as sizes may be tried that never come to be. All this concerns
    this thread alone.
    """
    logs = [logging.getLogger(name) for name in ("torch._subclasses.fake_tensor", "evolve.blocks.shortcuts")]
    thread = threading.get_ident()

    def from_elsewhere(record: logging.LogRecord) -> bool:
        return record.thread != thread

    for log in logs:
        log.addFilter(from_elsewhere)
    try:
        with unfused(model), _PlainOperations():
            yield
    finally:
        for log in logs:
            log.removeFilter(from_elsewhere)


class _PlainOperations(CallsSeen):
    """Takes the fused kernel out of attention. `sdpa_kernel` would do so for every thread."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one function of torch, or what stands for it."""
        return _PLAIN.get(func, func)(*args, **(kwargs or {}))


def _plain_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.where(attn_mask, 0.0, torch.scalar_tensor(-torch.inf, dtype=query.dtype, device=query.device))
    plain: Tensor = torch._scaled_dot_product_attention_math(query, key, value, attn_mask, *args, **kwargs)[0]
    return plain


# The same code, which finds other functions under those names.
_PLAIN_NAMES = {"scaled_dot_product_attention": _plain_attention, "has_torch_function": lambda tensors: False}
_PLAIN: dict[Any, Callable[..., Any]] = {
    F.scaled_dot_product_attention: _plain_attention,
    F.multi_head_attention_forward: FunctionType(
        F.multi_head_attention_forward.__code__,
        {**vars(F), **_PLAIN_NAMES},
        argdefs=F.multi_head_attention_forward.__defaults__,
    ),
}
