"""A run in Weights & Biases, offline unless told otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from evolve.lineage import Record
from evolve.training.events import RunBegun, RunFinished
from evolve.training.loggers import Logger, loggers, told


@loggers.register("wandb")
class WandbLogger(Logger):
    """Logs metrics by optimizer steps (`step` is their axis), and the text of each mutation at its step.

    A run that is resumed goes on under the same id; `wandb sync` brings what was written offline together.

    Args:
        dir: The folder that W&B writes to.
        project: Of W&B.
        run_name: Name of the run; W&B makes one up where it is null.
        mode: "offline" writes to the folder alone; "online" sends to W&B, too.
        loss_every: Optimizer steps between two losses; 0 for none.
    """

    packages: ClassVar[tuple[str, ...]] = ("wandb",)
    outward: ClassVar[frozenset[str]] = frozenset({"dir", "mode"})

    def __init__(
        self,
        dir: str,
        project: str = "evolve",
        run_name: str | None = None,
        mode: Literal["offline", "online"] = "offline",
        loss_every: int = 10,
    ) -> None:
        super().__init__(loss_every)
        self._dir, self._project, self._run_name, self._mode = dir, project, run_name, mode
        self._run: Any = None
        self._id: str | None = None

    def begin(self, event: RunBegun) -> None:
        """Begins a W&B run, or goes on with the one that is remembered."""
        import wandb

        Path(self._dir).mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=self._project,
            name=self._run_name,
            dir=self._dir,
            mode=self._mode,
            id=self._id,
            resume=None if self._id is None or self._mode == "offline" else "must",
            config={"budget": str(event.budget)},
            settings=wandb.Settings(silent=True, console="off", disable_git=True),
        )
        self._id = self._run.id
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")  # W&B's own count cannot go back, as a run may

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Logs metrics."""
        self._run.log({"step": step, **values})

    def mutation(self, record: Record, applied: int) -> None:
        """Logs what became of a mutation, and how many there are now."""
        self._run.log({"step": record.step or 0, "mutation": told(record), "mutations_applied": applied})

    def end(self, event: RunFinished) -> None:
        """Ends the W&B run."""
        self._run.summary["finished"] = event.finished
        self._run.finish()

    def state_dict(self) -> dict[str, Any]:
        """Returns which W&B run it is."""
        return {"logger": self.name, "run": self._id}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with that run, where it is one of W&B's."""
        self._id = state["run"] if state.get("logger") == self.name else None
