"""With what a run was trained: hardware and versions, as plain values. No name of a machine or a user is among them."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field

from evolve import __version__
from evolve.runtime.device import devices_of
from evolve.training.folder import read_file, replace_text

ENVIRONMENT = "environment.json"
_MOST = 100  # sessions that are kept


class Session(BaseModel):
    """One process that trained a run, from its start or from a checkpoint on.

    Attributes:
        begun: When, ISO 8601, UTC.
        step: Optimizer steps made before.
        versions: Of evolve and what it stands on, by name.
        system: Operating system.
        processor: Name of the CPU.
        cores: Logical cores; likewise `threads`, those that torch computes with.
        memory: Bytes of main memory; None where that is not known.
        devices: What the model was on, each with the name of the accelerator.
        processes: How many trained together.
    """

    model_config = ConfigDict(frozen=True)

    begun: str = ""
    step: int = 0
    versions: dict[str, str] = Field(default_factory=dict)
    system: str = ""
    processor: str = ""
    cores: int | None = None
    threads: int | None = None
    memory: int | None = None
    devices: list[str] = Field(default_factory=list)
    processes: int = 1


class Environment(BaseModel):
    """What `environment.json` holds: every session of a run, the first one first."""

    model_config = ConfigDict(frozen=True)

    version: int = 1
    sessions: list[Session] = Field(default_factory=list)

    def with_session(self, session: Session) -> Environment:
        """Returns it with one more."""
        return self.model_copy(update={"sessions": [*self.sessions, session][-_MOST:]})


def note_session(folder: Path, devices: Sequence[str], step: int = 0) -> None:
    """Adds what this process trains with to the folder of a run or a search.

    Args:
        folder: It is there.
        devices: What the model is on.
        step: Optimizer steps made before.

    Raises:
        CheckpointError: If it cannot be written.
    """
    known = read_file(folder / ENVIRONMENT, Environment) or Environment()
    replace_text(folder / ENVIRONMENT, known.with_session(session(devices, step)).model_dump_json())


def session(devices: Sequence[str], step: int = 0) -> Session:
    """Returns what this process trains with; arguments as for `note_session`."""
    versions = {"evolve": __version__, "python": platform.python_version(), "torch": torch.__version__}
    versions["torchvision"] = version("torchvision")
    if torch.version.cuda:
        versions["cuda"] = torch.version.cuda
    return Session(
        begun=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        step=step,
        versions=versions,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=_processor(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        memory=_memory(),
        devices=list(devices) or ["cpu"],
        processes=torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1,
    )


def named_devices(model: torch.nn.Module) -> list[str]:
    """Returns the devices that a model is on, each with the name of the accelerator."""
    return [_named(device) for device in devices_of(model)]


def _named(device: torch.device) -> str:
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        return f"{device}: {found.name}, {found.total_memory / 2**30:.0f} GiB"
    return str(device)


def _processor() -> str:
    """The name of the CPU; Linux keeps it in a file of its own."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8", errors="replace").splitlines() if told.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor()


def _memory() -> int | None:
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):  # as on Windows
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
