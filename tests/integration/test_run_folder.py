"""A run folder is whole or not at all, is written by one process, and runs no code that nobody trusted."""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import nn
from typer.testing import CliRunner

import evolve
from evolve import Evolver, OutputConfig, TrainingConfig
from evolve.cli import app
from evolve.config import ConfigError
from evolve.errors import CheckpointError, EvolveError, NonFiniteModelError
from evolve.evolver.saved_config import saved_config
from evolve.training.opening import newest_checkpoint, open_newest

ROOT = Path(__file__).parents[2]


def checkpoints(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def flip(path, byte=-1):
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)


# Nothing that is not finite is saved or reported as a result.


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1))
        self.register_buffer("smallest", torch.tensor(float("inf")))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        return self.layer(x)


def small(folder, **training):
    torch.manual_seed(0)
    x = torch.randn(32, 4)
    return Evolver(
        Masked(),
        (x, x[:, :2].argmax(1)),
        (x[:8], x[:8, :2].argmax(1)),
        batch_size=8,
        training=TrainingConfig(**{"epochs": 3, "device": "cpu", "ema": 0.9, **training}),
        output=folder,
        progress=False,
    )


BREAKS = {
    "a weight": lambda state: state.model.layer.weight.data[0].fill_(float("nan")),
    "a buffer": lambda state: state.model.seen.fill_(float("inf")),
    "an average": lambda state: state.ema.shadow["layer.bias"].fill_(float("inf")),
}


@pytest.mark.parametrize("written", [True, False])
@pytest.mark.parametrize("step", [8, 12], ids=["last step of an epoch", "last step of the run"])
@pytest.mark.parametrize("what", BREAKS)
def test_a_model_that_is_not_finite_ends_the_run(tmp_path, what, step, written):
    run = small(tmp_path / "run" if written else None)
    evaluated = run._meter.measure

    def broken(*arguments):
        line = evaluated(*arguments)
        if run.state.step == step:
            BREAKS[what](run.state)
        return line

    run._meter.measure = broken
    with pytest.raises(NonFiniteModelError, match=r"layer\.weight|seen|layer\.bias") as caught:
        run.run()
    if written:
        last = f"step-{step - 4:08d}"
        assert f"{last}, is from before it" in str(caught.value)
        assert checkpoints(tmp_path / "run")[-1] == last
        model = evolve.load(tmp_path / "run", model=Masked(), which="last")
        assert model.layer.weight.isfinite().all()
        assert small(tmp_path / "run").restore().run().finished


def test_what_was_infinite_from_the_beginning_may_stay_so(tmp_path):
    stop_at(small(tmp_path / "run"), 4).run()
    assert small(tmp_path / "run").restore().run().finished
    assert evolve.load(tmp_path / "run", model=Masked(), which="last").smallest == float("inf")


def stop_at(run, step):
    run.events.listen(lambda event: event.run.stop() if getattr(event, "step", 0) == step else None)
    return run


# One process at a time.


def test_a_folder_in_use_is_refused_with_the_process(tmp_path):
    run = small(tmp_path / "run")
    refused = []

    def second(event):
        if type(event).__name__ == "StepMade" and event.step == 6:
            for other in (small(tmp_path / "run").restore(), overwriting()):
                with pytest.raises(EvolveError) as caught:
                    other.run()
                refused.append(str(caught.value))

    def overwriting():
        return small(OutputConfig(dir=str(tmp_path / "run"), overwrite=True))

    run.events.listen(second)
    assert run.run().finished
    assert len(refused) == 2
    assert all(f"in use by another run (process {os.getpid()} on " in words for words in refused)
    assert [json.loads(line)["epoch"] for line in (tmp_path / "run" / "metrics.jsonl").open()] == [1, 2, 3]
    assert overwriting().run().finished  # it is let go of at the end


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom evolve.training.lock import RunLock\n"
        f"RunLock(Path({str(tmp_path / 'run')!r})).__enter__()\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT)
    assert done.returncode == -9
    assert "process" in (tmp_path / "run" / ".lock").read_text()
    assert small(tmp_path / "run").run().finished


def test_a_run_that_another_has_gone_on_with_is_not_mixed_with_it(tmp_path):
    stop_at(small(tmp_path / "run"), 4).run()
    first, second = small(tmp_path / "run").restore(), small(tmp_path / "run").restore()
    assert first.run().finished
    with pytest.raises(EvolveError, match="Another run has gone on"):
        second.run()
    assert [json.loads(line)["epoch"] for line in (tmp_path / "run" / "metrics.jsonl").open()] == [1, 2, 3]


def test_restoring_writes_nothing(tmp_path):
    small(tmp_path / "run").run()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    small(tmp_path / "run").restore()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


# Whole or not at all.


def test_the_same_step_again_never_leaves_a_moment_without_a_whole_checkpoint(tmp_path, monkeypatch):
    output = OutputConfig(dir=str(tmp_path / "run"), keep=1)
    run = stop_at(small(output), 4)
    run.run()
    seen = []
    for name in ("rename", "replace", "rmdir", "unlink"):
        original = getattr(os, name)

        def watched(*arguments, original=original, **options):
            result = original(*arguments, **options)
            seen.append(newest_checkpoint(tmp_path / "run").name)
            return result

        monkeypatch.setattr(os, name, watched)
    run._save()
    monkeypatch.undo()
    assert {name.removesuffix(".replaced") for name in seen} == {"step-00000004"}
    assert checkpoints(tmp_path / "run") == ["step-00000004"]


def test_damaged_checkpoints_do_not_count_and_the_new_one_is_never_deleted(tmp_path):
    run = stop_at(small(OutputConfig(dir=str(tmp_path / "run"), keep=2)), 4)
    run.run()
    root = tmp_path / "run" / "checkpoints"
    for later in ("step-00000090", "step-00000091", "step-00000092"):
        shutil.copytree(root / "step-00000004", root / later)
        flip(root / later / "state.pt")
    again = stop_at(small(OutputConfig(dir=str(tmp_path / "run"), keep=2)).restore(), 8)
    again.run()
    assert checkpoints(tmp_path / "run") == ["step-00000004", "step-00000008"]


def test_a_failed_overwrite_is_told_and_leaves_no_old_checkpoint(tmp_path, monkeypatch):
    small(tmp_path / "run").run()
    output = OutputConfig(dir=str(tmp_path / "run"), overwrite=True)

    def denied(path, *arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("shutil.rmtree", denied)
    with pytest.raises(EvolveError, match="Permission denied"):
        small(output).run()
    monkeypatch.undo()
    assert not (tmp_path / "run" / "checkpoints").exists()
    stop_at(small(output), 4).run()
    assert checkpoints(tmp_path / "run") == ["step-00000004"]
    assert not list((tmp_path / "run").glob(".*.removed"))


FULL = {
    "torch": ("evolve.training.tensors.torch.save", RuntimeError("PytorchStreamWriter failed writing file data/3")),
    "safetensors": ("evolve.training.tensors.save_file", SafetensorError("I/O error: No space left on device")),
    "fsync": ("os.fsync", OSError(errno.ENOSPC, "No space left on device")),
    "mkdir": ("pathlib.Path.mkdir", OSError(errno.ENOSPC, "No space left on device")),
}


@pytest.mark.parametrize("where", FULL)
def test_a_full_disk_is_one_error_and_leaves_what_there_was(tmp_path, monkeypatch, where):
    run = stop_at(small(tmp_path / "run"), 4)
    run.run()
    target, error = FULL[where]

    def full(*arguments, **options):
        raise error

    monkeypatch.setattr(target, full)
    with pytest.raises(EvolveError, match="could not be written") as caught:
        run._save()
    monkeypatch.undo()
    assert isinstance(caught.value, EvolveError)
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-00000004"]
    assert small(tmp_path / "run").restore().run().finished


def test_what_a_killed_write_left_is_removed_at_the_next_start(tmp_path):
    stop_at(small(tmp_path / "run"), 4).run()
    left = tmp_path / "run" / "checkpoints" / ".step-00000008.partial"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"0" * 1000)
    assert small(tmp_path / "run").restore().run().finished
    assert not left.exists()


def write_config(folder, **changes):
    config = {
        "model": {"name": "mlp", "options": {"in_features": 64, "num_classes": 10, "hidden": [8]}},
        "data": {"name": "digits"},
        "training": {"epochs": 1, "device": "cpu"},
        "output": {"dir": str(folder / "run")},
    }
    file = folder / "config.yaml"
    file.write_text(json.dumps({**config, **changes}))
    return file


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_killed_before_the_first_checkpoint(tmp_path):
    file = write_config(tmp_path)
    assert invoke("run", file).exit_code == 0
    run = tmp_path / "run"
    shutil.rmtree(run / "checkpoints")
    records = [run / "lineage.jsonl", run / "metrics.jsonl"]
    for words in (("run", file), ("resume", run)):
        told = invoke(*words)
        assert told.exit_code == 1
        assert "no checkpoint of it" in told.output
        assert "output.overwrite=true" in told.output
    for path in records:
        path.write_text("")
    resumed = invoke("resume", run)
    assert resumed.exit_code == 0, resumed.output
    assert "starts from the beginning" in resumed.output
    shutil.rmtree(run / "checkpoints")
    for path in records:
        path.write_text("")
    assert invoke("run", file).exit_code == 0


# The configuration has a digest, too; what was edited in it counts.


def test_a_configuration_that_was_spoilt_is_told_and_not_used(tmp_path, caplog):
    assert invoke("run", write_config(tmp_path)).exit_code == 0
    run = tmp_path / "run"
    checkpoint, content = open_newest(run), (run / "config.yaml").read_bytes()
    whole = saved_config(checkpoint, trust=False)
    assert caplog.text == ""
    places = random.Random(0).sample(range(len(content) * 8), 150)
    spoilt = [bytearray(content) for _ in places]
    for text, place in zip(spoilt, places, strict=True):
        text[place // 8] ^= 1 << place % 8
    for text in (*spoilt, b"", content[:100], content[:-20]):
        (run / "config.yaml").write_bytes(text)
        caplog.clear()
        assert saved_config(checkpoint, trust=False) == whole
        assert "is damaged; the copy in" in caplog.text
        assert isinstance(evolve.load(run, which="last"), nn.Module)


def test_a_configuration_that_was_edited_counts(tmp_path, caplog):
    assert invoke("run", write_config(tmp_path)).exit_code == 0
    file = tmp_path / "run" / "config.yaml"
    file.write_text(file.read_text().replace("epochs: 1", "epochs: 12"))
    assert saved_config(open_newest(tmp_path / "run"), trust=False).training.epochs == 12
    assert "was changed since the last checkpoint" in caplog.text


# A run folder is data.

HARM = {"name": "os:system", "options": {"command": "touch {harm}"}}


def stranger(tmp_path, **changes):
    """A run folder whose configuration was changed by somebody who also wrote the manifest anew."""
    harm = tmp_path / "harm"
    assert invoke("run", write_config(tmp_path)).exit_code == 0
    run = tmp_path / "run"
    checkpoint = newest_checkpoint(run)
    config = json.loads(json.dumps(json_of(run)))
    config.update(json.loads(json.dumps(changes).replace("{harm}", str(harm))))
    text = json.dumps(config)
    (run / "config.yaml").write_text(text)
    (checkpoint / "config.yaml").write_text(text)
    reseal(checkpoint)
    (tmp_path / "evil.py").write_text(f"open({str(harm)!r}, 'w')\ndef make(*args, **options):\n    return None\n")
    return run, harm


def json_of(run):
    import yaml

    return yaml.safe_load((run / "config.yaml").read_text())


def reseal(folder):
    import hashlib

    files = [path for path in folder.iterdir() if path.name != "manifest.json"]
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (folder / "manifest.json").write_text(json.dumps(digests))


@pytest.mark.parametrize(
    "changes",
    [
        {"model": HARM},
        {"model": {"name": "evil:make"}},
        {"model": {"name": "evil.make"}},
        {"data": {"name": "evil:make"}},
        {"training": {"epochs": 1, "loss": "evil:make"}},
        {"plugins": ["evil"]},
        {"callbacks": ["evil:make"]},
    ],
    ids=lambda changes: "-".join(map(str, changes)),
)
def test_code_in_a_strangers_folder_is_not_run(tmp_path, monkeypatch, changes):
    run, harm = stranger(tmp_path, **changes)
    monkeypatch.chdir(tmp_path)
    of_model = "model" in changes
    told = invoke("resume", run)
    assert told.exit_code == 2, told.output
    assert "--trust" in told.output
    assert invoke("inspect", run).exit_code == (2 if of_model else 0)
    assert invoke("report", run).exit_code == 0
    if of_model:
        with pytest.raises(ConfigError, match="trust=True"):
            evolve.load(run, which="last")
    else:
        assert isinstance(evolve.load(run, which="last"), nn.Module)
    assert not harm.exists()
    assert "evil" not in sys.modules


@pytest.mark.parametrize("name", ["os:system", "builtins:exec", "builtins.eval", "subprocess:run", "shutil.rmtree"])
def test_what_builds_no_model_is_not_even_called_when_it_is_trusted(tmp_path, name):
    run, harm = stranger(tmp_path, model={"name": name, "options": HARM["options"]})
    with pytest.raises(ConfigError, match="part of Python itself"):
        evolve.load(run, which="last", trust=True)
    assert not harm.exists()


@pytest.mark.parametrize("attribute", ["number", "Plain", "text"])
def test_a_target_has_to_be_a_module_or_a_function_that_builds_one(tmp_path, monkeypatch, attribute):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "targets.py").write_text(
        "called = []\n"
        "def number() -> int:\n    called.append(1)\n    return 1\n"
        "def text() -> 'str':\n    called.append(1)\n    return ''\n"
        "class Plain:\n    def __init__(self):\n        called.append(1)\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(EvolveError, match=r"nn\.Module"):
        evolve.build_model(f"targets:{attribute}")
    assert sys.modules.pop("targets").called == []


def test_the_current_folder_comes_last(tmp_path, monkeypatch):
    (tmp_path / "yaml.py").write_text("raise SystemExit('the wrong yaml')")
    (tmp_path / "mine.py").write_text("from torch import nn\ndef net():\n    return nn.Linear(2, 2)\n")
    code = (
        "import sys; sys.path = [p for p in sys.path if p]\nimport evolve\n"
        "assert isinstance(evolve.build_model('mine:net'), __import__('torch').nn.Linear)\nimport yaml\n"
        f"assert sys.path[-1] == {str(tmp_path)!r}"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl", "lineage.jsonl", "lineage.jsonl.new"])
def test_a_run_does_not_write_through_links(tmp_path, name):
    stop_at(small(tmp_path / "run"), 4).run()
    elsewhere = tmp_path / "elsewhere"
    if (tmp_path / "run" / name).exists():
        os.rename(tmp_path / "run" / name, elsewhere)
    else:
        elsewhere.write_text("mine")
    (tmp_path / "run" / name).symlink_to(elsewhere)
    before = elsewhere.stat().st_mtime_ns
    with pytest.raises(EvolveError, match="is a link"):
        small(tmp_path / "run").restore().run()
    assert elsewhere.stat().st_mtime_ns == before


def test_loading_a_folder_in_use_finds_the_newest(tmp_path, monkeypatch):
    run = small(OutputConfig(dir=str(tmp_path / "run"), keep=1))
    stop_at(run, 4).run()
    from evolve.training import opening as module

    read = module.read_state
    moved = []

    def raced(path):
        if not moved:  # the run saves the next one while this one is being read, and deletes it
            moved.append(path)
            run.state.step += 1
            run._save()
        return read(path)

    monkeypatch.setattr(module, "read_state", raced)
    assert isinstance(evolve.load(tmp_path / "run", model=Masked(), which="last"), Masked)
    assert module.newest_checkpoint(tmp_path / "run").name == "step-00000005"


def test_no_folder_at_all(tmp_path):
    with pytest.raises(CheckpointError, match="No whole checkpoint"):
        evolve.load(tmp_path / "nowhere")
