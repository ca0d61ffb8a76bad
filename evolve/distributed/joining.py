"""How a process finds those that it trains with."""

from __future__ import annotations

import atexit
import os

import torch
import torch.distributed as dist

from evolve.distributed.ranks import Ranks
from evolve.distributed.world import World
from evolve.errors import EvolveError, LostRankError, text_of


def join_ranks(device: str) -> World:
    """Returns the processes that train together: those of torchrun, or of a process group that is there already.

    Without either it is a world of one. Where torchrun started this process, the group is made (nccl for CUDA, gloo
    otherwise), and each process takes the CUDA device of its local rank.

    Args:
        device: As `training.device` names it.

    Raises:
        EvolveError: If the device is one for all ranks, or there are more ranks than devices.
        LostRankError: If the ranks do not find each other.
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
    try:
        if started:
            dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
            atexit.register(_leave)
        return Ranks()
    except (RuntimeError, ValueError) as error:
        raise LostRankError(
            f"The ranks did not find each other: {text_of(error)} Start all of them with torchrun; on one machine "
            "without a network set GLOO_SOCKET_IFNAME=lo."
        ) from error


def speaks() -> bool:
    """Whether this process is the one that speaks for all that torchrun started, before they have found each other."""
    return os.environ.get("RANK", "0") == "0"


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
