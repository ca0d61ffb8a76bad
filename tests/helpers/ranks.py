"""Runs on several ranks: `python -m helpers.ranks ROOT NAME/RANKS/FOLDER ...` forks them and says how each ended.

Each rank is a process of one gloo group, as torchrun would start it. Forking them off one process that has imported
torch, but not used it, is much quicker than starting each anew.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from typer.testing import CliRunner

from evolve import EvolutionConfig, Evolver, OptimizerConfig, OutputConfig, TrainingConfig
from evolve.cli import app
from evolve.distributed import digest, ranks
from evolve.distributed.joining import join_ranks
from evolve.errors import EvolveError, MisfitError
from evolve.evolver import together
from evolve.evolver.proposer import Proposer
from evolve.evolver.together import _held
from evolve.training.events import MutationTried, StepMade, VerdictGiven

TESTS = Path(__file__).parents[1]
THREE = {
    "schedule": {"name": "at", "options": {"epochs": [1, 2, 3]}},
    "policy": {
        "name": "fixed",
        "options": {
            "steps": [
                {"operator": "widen", "site": "0"},
                {"operator": "deepen", "site": "2"},
                {"operator": "narrow", "site": "2"},
            ]
        },
    },
    "operators": [
        {"name": "widen", "options": {"factor": 1.5}},
        {"name": "deepen"},
        {"name": "narrow", "options": {"factor": 0.75, "criterion": "taylor"}},
    ],
}


def net(norm=False):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8) if norm else nn.Tanh(), nn.Linear(8, 3)
    )


def evolver(folder=None, evolution=THREE, model=None, labels=None, **changes):
    x = torch.randn(39, 6, generator=torch.Generator().manual_seed(0))  # batches of 9, the last of 3
    y = x[:, :3].argmax(1) if labels is None else labels
    training = {"epochs": 4, "device": "cpu", "seed": 1, "ema": 0.9, **changes.pop("training", {})}
    return Evolver(
        model or net(), (x, y), (x[:16], y[:16]), batch_size=9, progress=False,
        output=OutputConfig(dir=str(folder) if folder else None, keep=9),
        optimizer=OptimizerConfig(name="AdamW", options={"lr": 0.01}),
        training=TrainingConfig.model_validate(training),
        evolution=EvolutionConfig.model_validate(evolution), **changes,
    )  # fmt: skip


def told(run, digests=()):
    """What a test compares."""
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in run.history]
    return {
        "operators": [record.operator for record in run.lineage.applied],
        "verdicts": [record.verdict and record.verdict.kept for record in run.lineage],
        "digests": list(digests),
        "held": _held(run.state, run.lineage),
        "history": lines,
        "seconds": [line["seconds"] for line in run.history],
        "step": run.state.step,
        "weights": [tensor.flatten().tolist() for tensor in run.model.state_dict().values()],
        "names": list(run.model.state_dict()),
    }


def trained(folder, **changes):
    digests = []

    def note(event):
        if isinstance(event, MutationTried | VerdictGiven):
            digests.append(_held(run.state, run.lineage))

    run = evolver(folder, callbacks=[note], **changes)
    run.run()
    return told(run, digests)


def three(folder):
    return trained(None)


def accumulated(folder):
    return trained(None, training={"accumulate": 2})


def ignored(folder):
    """Labels of which some do not count: in three cases none of those that a rank has of a batch."""
    labels = torch.arange(39) % 3
    labels[torch.randperm(39, generator=torch.Generator().manual_seed(5))[:22]] = -100
    return trained(None, labels=labels, training={"accumulate": 2})


def probation(folder):
    """A mutation that does harm and goes back, on a model with BatchNorm and dropout."""
    spoil = {
        "schedule": {"name": "at", "options": {"epochs": [6]}},
        "operators": [{"name": "shrink_perturb", "sites": ["*"], "options": {"keep": 0.0}}],
        "probation": {"steps": 1},
    }
    model = nn.Sequential(*net(norm=True), nn.Dropout(0.1))
    return trained(folder, evolution=spoil, model=model, training={"epochs": 7})


def children(folder):
    """Only rank 0 trains children; all take over what the best of them has learned."""
    climb = {
        "schedule": {"name": "at", "options": {"epochs": [1]}},
        "policy": {"name": "hill_climb", "options": {"children": 2, "steps": 3}},
        "operators": [{"name": "widen"}, {"name": "deepen"}],
    }
    return trained(None, evolution=climb, training={"epochs": 2})


def gradient(folder):
    choose = {
        "schedule": {"name": "at", "options": {"epochs": [1]}},
        "policy": {"name": "gradient"},
        "operators": [{"name": "widen", "options": {"init": "gradmax"}}],  # directions are in no plan
    }
    return trained(None, evolution=choose, training={"epochs": 2})


def stopping(at):
    """A callback that stops a run after a step, on the last rank alone."""

    def stop(event):
        last = event.run.world.rank == event.run.world.size - 1
        if isinstance(event, StepMade) and event.run.state.step == at and last:
            event.run.stop()

    return stop


def stopped(folder):
    run = evolver(folder, callbacks=[stopping(7)])
    run.run()
    return told(run)


def stopped_again(folder):
    run = evolver(folder, callbacks=[stopping(12)]).restore()
    run.run()
    return told(run)


def resumed(folder):
    run = evolver(folder).restore()
    run.run()
    return told(run)


def _in_second_mutation(harm):
    real, calls = together.follow, []

    def follow(*args):
        calls.append(args)
        if len(calls) == 2:
            harm()
        return real(*args)

    together.follow = follow


def killed(folder):
    """Rank 1 is killed while it carries out the second mutation."""
    _in_second_mutation(lambda: os.kill(os.getpid(), signal.SIGKILL))
    return trained(folder)


def killed_in_step(folder):
    """Rank 1 is killed after its third step."""

    def kill(event):
        if isinstance(event, StepMade) and event.run.state.step == 3 and event.run.world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    run = evolver(folder, callbacks=[kill])
    run.run()


def seconds(folder):
    """A budget of wall time, which no two ranks measure alike."""
    run = evolver(None, training={"epochs": None, "seconds": 0.3})
    run.run()
    return told(run)


def wrapped(folder):
    """Models that are wrapped already."""
    join_ranks("cpu")
    messages = []
    for wrap in (fully_shard, nn.parallel.DistributedDataParallel):
        try:
            evolver(None, model=wrap(net()))
        except MisfitError as error:
            messages.append(str(error))
    return messages


def stuck(folder):
    """Rank 1 does not answer any more."""
    together.PATIENCE = ranks.PATIENCE / 20
    _in_second_mutation(lambda: time.sleep(60))
    return trained(folder)


def out_of_memory(folder):
    """Rank 1 has no memory for the second mutation: it goes back on both."""

    def fail():
        raise torch.OutOfMemoryError("CUDA out of memory.")

    _in_second_mutation(fail)
    return trained(folder)


def undecided(folder):
    """Rank 0 fails as it decides."""

    def decide(self, reason, history):
        raise EvolveError("no idea")

    Proposer._decide = decide
    return trained(folder)


def drifted(folder):
    """Rank 1 carries the second mutation out in another way."""
    real = together.SeveralDevices._take_over

    def take_over(self, optimizer):
        real(self, optimizer)
        if self._state.world.rank == 1 and self._state.step > 5:
            self._state.optimizer.param_groups[0]["lr"] = 0.5

    together.SeveralDevices._take_over = take_over
    return trained(folder)


def other_seed(folder):
    return trained(folder, training={"seed": 1 + int(os.environ["RANK"])})


def other_code(folder):
    """The file that the model's class comes from differs by a comment."""
    path = Path(folder) / f"rank{os.environ['RANK']}" / "mine.py"
    path.parent.mkdir(parents=True)
    path.write_text(f"from torch import nn\n# {path}\nclass Mine(nn.Sequential):\n    pass\n")
    spec = importlib.util.spec_from_file_location("mine", path)
    sys.modules["mine"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return trained(Path(folder) / "run", model=module.Mine(*net()))


def missing(folder):
    """The data are not there, as the first rank finds."""
    config = Path(folder).parent / "missing.yaml"
    config.write_text(
        "model: {name: mlp, options: {in_features: 64, hidden: [8], num_classes: 10}}\n"
        "data: {name: csv, options: {path: nowhere.csv, target: y}}\ntraining: {epochs: 2, device: cpu}\n"
    )
    return told(Evolver.from_config(config))


def command(folder):
    """What torchrun calls on each rank."""
    config = Path(folder).parent / "config.yaml"
    config.write_text(
        "model: {name: mlp, options: {in_features: 64, hidden: [8], num_classes: 10}}\n"
        "data: {name: digits}\n"
        "training: {epochs: 2, device: cpu}\n"
        "evolution: {schedule: {name: at, options: {epochs: [1]}}, operators: [{name: widen}]}\n"
        f"loggers: [{{name: csv}}]\noutput: {{dir: {folder}}}\n"
    )
    done = CliRunner().invoke(app, ["run", str(config)])
    return {"code": done.exit_code, "output": done.stdout}


def locked(folder):
    """The folder holds a run already."""
    return trained(folder)


def _rank(rank, size, port, scenario, folder, answers):
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True", "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    torch.set_num_threads(1)
    made = []
    real = digest.compare
    digest.compare = lambda found, when, advice: (made.append(when), real(found, when, advice))[1]
    try:
        answer = {"told": globals()[scenario](folder)}
    except EvolveError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    Path(answers, f"{rank}.json").write_text(json.dumps({**answer, "compared": len(made)}))


def forked(size, scenario, folder, answers):
    """Runs a scenario on so many ranks to its end.

    They meet in a store of this process, as in that of torchrun's agent: a port that is looked for, let go of and bound
    again by the first rank may be another's by then.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    began, waiting = time.perf_counter(), set()
    for rank in range(size):
        child = os.fork()
        if child == 0:
            try:
                _rank(rank, size, store.port, scenario, folder, answers)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(0)
        waiting.add(child)
    while waiting and time.perf_counter() - began < 40:
        waiting -= {child for child in waiting if os.waitpid(child, os.WNOHANG)[0]}
        if scenario == "stuck" and len(waiting) == 1:
            break
        time.sleep(0.02)
    for child in waiting:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return time.perf_counter() - began


def main(root, *scenarios):
    """Runs scenarios one after the other: "NAME/RANKS/FOLDER"."""
    for number, told in enumerate(scenarios):
        name, size, folder = told.split("/")
        answers = Path(root, f"answers{number}")
        answers.mkdir()
        seconds = forked(int(size), name, str(Path(root, folder)), answers)
        (answers / "seconds").write_text(str(seconds))


def run(root, scenarios):
    """Returns what each rank of each scenario answered, None for one that was killed; the seconds; what was said."""
    done = subprocess.run(
        [sys.executable, "-m", "helpers.ranks", str(root), *scenarios],
        cwd=TESTS, env={**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}", "OMP_NUM_THREADS": "1"},
        check=False, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    found, seconds = [], []
    for number, scenario in enumerate(scenarios):
        answers = Path(root, f"answers{number}")
        paths = [answers / f"{rank}.json" for rank in range(int(scenario.split("/")[1]))]
        found.append([json.loads(path.read_text()) if path.is_file() else None for path in paths])
        seconds.append(float((answers / "seconds").read_text()) if answers.is_dir() else None)
    return found, seconds, done.stderr


if __name__ == "__main__":
    main(*sys.argv[1:])
