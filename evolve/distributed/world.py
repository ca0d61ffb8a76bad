"""The processes that train one model together, and what they tell each other."""

from __future__ import annotations

import atexit
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


class World:
    """One process that trains alone. `Ranks` are several; whoever holds a world need not know which it is.

    Attributes:
        rank: Number of this process.
        size: How many there are.
        solo: Whether this process does something by itself just now: then nothing is told or compared.
    """

    rank = 0
    size = 1
    solo = False

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which decides and writes."""
        return self.rank == 0

    @property
    def together(self) -> bool:
        """Whether what is done now is done by several."""
        return self.size > 1 and not self.solo

    def tell(self, value: Any, long: bool = False) -> Any:
        """Returns rank 0's value, of what JSON knows.

        Args:
            value: That of this rank, which counts if it is the first.
            long: Whether it may be long in coming.
        """
        return value

    def sum(self, values: Sequence[float]) -> list[float]:
        """Returns the sums over all ranks."""
        return list(values)

    def gather(self, value: Any, patience: timedelta | None = None) -> list[Any]:
        """Returns the values of all ranks, of what JSON knows, in their order.

        Args:
            value: This rank's.
            patience: How long to wait for the others; as long as the process group does if None.
        """
        return [value]

    def hand_over(self, tensors: Sequence[Tensor]) -> None:
        """Gives tensors the values that they have on rank 0, in place."""

    def first_does(self, work: Callable[[], Any]) -> Any:
        """Lets rank 0 do something, and returns what came of it, of what JSON knows, on all ranks.

        Raises:
            EvolveError: On all ranks, where it raised one.
        """
        return work()

    def in_turns(self, work: Callable[[], T]) -> T:
        """Does something on the first rank of each machine, then on the others: these find what it has downloaded."""
        return work()

    def stopping(self, asked: bool) -> bool:
        """Whether the run is to stop, as all ranks know it; `asked` is what this one was asked."""
        return asked

    def agree_to_stop(self, asked: bool) -> None:
        """Lets all ranks stop where one was asked to."""

    def take_stop(self, asked: bool) -> None:
        """Takes note of what all ranks were told: whether rank 0 was asked to stop while it did something alone."""

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lets this rank do something that the others wait for."""
        yield

    @contextmanager
    def watched(self, doing: str) -> Iterator[None]:
        """Tells of a lost connection to the others as of that."""
        yield


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


def join_ranks(device: str) -> World:
    """Returns the processes that train together: those of torchrun, or of a process group that is there already.

    Without either it is a world of one. Where torchrun started this process, the group is made (nccl for CUDA, gloo
    otherwise), and each process takes the CUDA device of its local rank.

    Args:
        device: As `training.device` names it.

    Raises:
        EvolveError: If the device is one for all ranks, or there are more ranks than devices.
    """
    started = not dist.is_available() or not dist.is_initialized()
    if not dist.is_available() or (started and int(os.environ.get("WORLD_SIZE", "1")) < 2):
        return World()
    if not started and dist.get_world_size() < 2:
        return World()
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        _take_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    elif device == "mps":
        raise EvolveError("training.device is 'mps', one device for all ranks. Use 'cpu', or start one process.")
    if started:
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
        except (RuntimeError, ValueError) as error:
            raise LostRankError(f"The ranks did not find each other: {text_of(error)}") from error
        atexit.register(_leave)
    return Ranks()


def _take_device(device: str, local_rank: int) -> None:
    if ":" in device:
        raise EvolveError(
            f"training.device is '{device}', one device for all ranks. Write 'cuda': each takes that of its local rank."
        )
    if local_rank >= torch.cuda.device_count():
        raise EvolveError(
            f"Local rank {local_rank} has no CUDA device: there are {torch.cuda.device_count()}. Start as many "
            "processes as devices (torchrun --nproc-per-node)."
        )
    torch.cuda.set_device(local_rank)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _bytes(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else torch.empty(0, dtype=torch.uint8)


def _text(tensor: Tensor, length: int) -> str:
    return tensor[:length].numpy().tobytes().decode()
