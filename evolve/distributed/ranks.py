"""Processes that train one model together, and what they tell each other."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from evolve import errors
from evolve.distributed.world import World
from evolve.errors import EvolveError, LostRankError, text_of

T = TypeVar("T")

PATIENCE = timedelta(seconds=20)
"""How long a rank waits for the others where all do the same thing at the same time."""

_LONG = timedelta(days=1)

# What torch's backends say where another process is gone; they have no class of error for all of it.
_LOST = (
    "connection closed",
    "connection reset",
    "broken pipe",
    "timed out",
    "timeout",
    "gloo",
    "nccl",
    "barrier",
)
_FIRST_BYTES = 256


class Ranks(World):
    """Processes of one `torch.distributed` group. Making one is something that all of them do.

    Values go through the hosts (gloo), gradients and weights through the group's own backend.
    """

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._words: Any = dist.new_group(backend="gloo")
        self._patient: Any = dist.new_group(backend="gloo", timeout=_LONG)
        self._brief: Any = dist.new_group(backend="gloo", timeout=PATIENCE)
        self._stop = False

    def tell(self, value: Any, long: bool = False) -> Any:
        """Returns rank 0's value, of what JSON knows."""
        if self.solo:
            return value
        group = self._patient if long else self._words
        text = json.dumps(value).encode() if self.first else b""
        head = torch.zeros(8 + _FIRST_BYTES, dtype=torch.uint8)
        if self.first:
            head[:8] = torch.tensor(list(len(text).to_bytes(8, "big")), dtype=torch.uint8)
            head[8 : 8 + len(text)] = _bytes(text[:_FIRST_BYTES])
        with self.watched("waiting for what rank 0 decides"):
            dist.broadcast(head, 0, group=group)
            length = int.from_bytes(bytes(head[:8].tolist()), "big")
            rest = torch.empty(max(0, length - _FIRST_BYTES), dtype=torch.uint8)
            if self.first:
                rest[:] = _bytes(text[_FIRST_BYTES:])
            if len(rest):
                dist.broadcast(rest, 0, group=group)
        return json.loads(_text(torch.cat([head[8:], rest]), length))

    def sum(self, values: Sequence[float]) -> list[float]:
        """Returns the sums over all ranks."""
        if self.solo:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        with self.watched("summing up the step"):
            dist.all_reduce(total, group=self._words)
        return [float(value) for value in total]

    def gather(self, value: Any, patience: timedelta | None = None) -> list[Any]:
        """Returns the values of all ranks, in their order."""
        if self.solo:
            return [value]
        group = self._words if patience is None else self._brief
        text = json.dumps(value).encode()
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with self.watched("comparing what the ranks hold"):
            if patience is not None:
                dist.monitored_barrier(group, timeout=patience)  # says which rank is missing
            dist.all_gather(lengths, torch.tensor([len(text)]), group=group)
            longest = int(max(lengths))
            own = torch.zeros(longest, dtype=torch.uint8)
            own[: len(text)] = _bytes(text)
            found = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(found, own, group=group)
        return [json.loads(_text(one, int(length))) for one, length in zip(found, lengths, strict=True)]

    @torch.no_grad()
    def hand_over(self, tensors: Sequence[Tensor]) -> None:
        """Gives tensors the values that they have on rank 0, in place; those of a kind go together."""
        if self.solo:
            return
        kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for tensor in tensors:
            if tensor.numel():
                kinds.setdefault((tensor.device, tensor.dtype), []).append(tensor)
        with self.watched("taking over what rank 0 holds"):
            for group in kinds.values():
                flat = torch.cat([tensor.detach().reshape(-1) for tensor in group])
                sent = flat.view(torch.uint8) if flat.dtype == torch.bool else flat
                dist.broadcast(sent, 0, group=self._words if sent.device.type == "cpu" else None)
                if not self.first:
                    parts = flat.split([tensor.numel() for tensor in group])
                    for tensor, part in zip(group, parts, strict=True):
                        tensor.detach().copy_(part.view(tensor.shape))

    def first_does(self, work: Callable[[], Any]) -> Any:
        """Lets rank 0 do something; what came of it, or its error, is everybody's."""
        if self.solo:
            return work()
        outcome: dict[str, Any] = {}
        fault: Exception | None = None
        if self.first:
            try:
                with self.alone():
                    outcome = {"value": work()}
            except Exception as error:  # the others must not wait for what never comes
                fault, outcome = error, {"error": type(error).__name__, "text": text_of(error)}
        outcome = self.tell(outcome)
        if fault is not None:
            raise fault
        if "error" in outcome:
            raise told_error(outcome["error"], outcome["text"])
        return outcome["value"]

    def in_turns(self, work: Callable[[], T]) -> T:
        """Does something on the first rank of each machine, then on the others, unless it failed there."""
        leads = int(os.environ.get("LOCAL_RANK", str(self.rank))) == 0
        done: list[T] = []
        fault: Exception | None = None
        if leads:
            try:
                done.append(work())
            except Exception as error:  # the others must not go on without
                fault = error
        failed = [told for told in self.gather(fault and [type(fault).__name__, text_of(fault)]) if told]
        if fault is not None:
            raise fault
        if failed:
            raise told_error(*failed[0])
        return done[0] if leads else work()

    def stopping(self, asked: bool) -> bool:
        """Whether the run is to stop: what was agreed on last or, where this rank acts alone, what it was asked."""
        if self.solo and asked:
            self._stop = True  # the others hear of it with what came of the work
        return self._stop

    def agree_to_stop(self, asked: bool) -> None:
        """Lets all ranks stop where one was asked to."""
        self._stop = self.sum([float(asked)])[0] > 0

    def take_stop(self, asked: bool) -> None:
        """Takes note of whether rank 0 was asked to stop."""
        self._stop = asked

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lets this rank do something that the others wait for."""
        before, self.solo = self.solo, True
        try:
            yield
        finally:
            self.solo = before

    @contextmanager
    def watched(self, doing: str) -> Iterator[None]:
        """Tells of a lost connection to the others as of that."""
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and not any(words in text_of(error).lower() for words in _LOST):
                raise
            cause = text_of(error).partition(". This is typically")[0].strip().splitlines()  # gloo goes on and on
            raise LostRankError(
                f"Rank {self.rank} of {self.size} has lost another rank while {doing}: it ended or does not answer "
                f"({cause[0] if cause else type(error).__name__}). This run ends here, and nothing was left half "
                "written: go on from its last checkpoint with `evolve resume`, with any number of ranks."
            ) from error


def told_error(name: str, text: str) -> EvolveError:
    """Returns the error that rank 0 raised, for the other ranks: of the same class where evolve has it."""
    cls = getattr(errors, name, None)
    known = isinstance(cls, type) and issubclass(cls, EvolveError)
    return cls(text) if known and cls is not None else EvolveError(f"Rank 0 failed with {name}: {text}")


def _bytes(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else torch.empty(0, dtype=torch.uint8)


def _text(tensor: Tensor, length: int) -> str:
    return tensor[:length].numpy().tobytes().decode()
