"""A run folder says what the run was made of: built in Python too, and with modules beside its YAML file."""

import json
import sys

import pytest
import torch
import yaml
from helpers.cli_runs import invoke, metrics, succeeds, write_config
from helpers.runs import Net, digests, make, stop_after
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import evolve
from evolve import Evolver, OptimizerConfig, TrainingConfig
from evolve.errors import CheckpointError
from evolve.policies import policies

MODULE = """
import torch
from torch import nn


class Net(nn.Sequential):
    def __init__(self, width=4):
        super().__init__(nn.Flatten(), nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 3))


def data(samples=32):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(samples, 1, 4, 4, generator=g), torch.randint(3, (samples,), generator=g)
    return (x, y), (x[:8], y[:8])
"""


def config_of(run):
    return yaml.safe_load((run / "config.yaml").read_text())


def squares(model, batch):
    return model(batch[0]).square().mean()


def by_hand(folder, **changes):
    torch.manual_seed(0)
    x = torch.randn(32, 4)
    loader = DataLoader(TensorDataset(x, x.argmax(1) % 3), batch_size=8)
    arguments = {"training": TrainingConfig(epochs=2, device="cpu", monitor={"metric": "val_accuracy"})}
    return Evolver(
        nn.Linear(4, 3),
        loader,
        loader,
        output=folder,
        progress=False,
        callbacks=[print_nothing],
        **arguments,
        **changes,
    )


def print_nothing(event):
    pass


def test_a_run_built_in_python_names_what_it_can(tmp_path):
    by_hand(tmp_path / "run", optimizer=OptimizerConfig(name="SGD", options={"lr": 0.05})).run()
    config = config_of(tmp_path / "run")
    assert config["optimizer"] == OptimizerConfig(name="SGD", options={"lr": 0.05}).model_dump(mode="json")
    assert config["task"]["name"] == "classification"
    assert (config["training"]["epochs"], config["output"]["dir"]) == (2, str(tmp_path / "run"))
    assert config["training"]["monitor"] == {"metric": "val_accuracy", "mode": "max"}
    assert config["evolution"]["attempts"] == 3
    note = config["built_in_python"]
    assert note["model"] == {"class": "torch.nn.modules.linear:Linear"}
    assert note["train_data"]["class"] == "torch.utils.data.dataloader:DataLoader"
    assert note["train_data"]["dataset"] == {"class": "torch.utils.data.dataset:TensorDataset"}
    assert note["train_data"]["samples"] == 32
    assert note["callbacks"] == [{"class": f"{__name__}:print_nothing", "file": __file__}]
    assert "optimizer" not in note
    told = succeeds("report", tmp_path / "run")
    assert "Best val_accuracy" in " ".join(told.split())


def test_what_cannot_be_named_is_noted(tmp_path):
    x = torch.randn(16, 4)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = TrainingConfig(epochs=1, device="cpu")
    run = tmp_path / "run"
    Evolver(
        model, (x, x), (x, x), optimizer=optimizer, task=squares, training=training, output=run, progress=False
    ).run()
    config = config_of(run)
    assert config["built_in_python"]["optimizer"] == {"class": "torch.optim.sgd:SGD"}
    assert config["built_in_python"]["task"] == {"class": f"{__name__}:squares", "file": __file__}
    assert "task" not in config
    assert "optimizer" not in config


def test_resume_and_load_say_what_is_lacking(tmp_path):
    run = tmp_path / "run"
    by_hand(run).run()
    file = write_config(tmp_path)
    by_yaml = ("run", file, "--resume", "auto")
    for words in (("resume", run), ("resume", run, "--trust", "training.epochs=4"), ("inspect", run), by_yaml):
        told = invoke(*words)
        assert told.exit_code == 1
        assert "was started in Python" in told.output
        assert "model: torch.nn.modules.linear:Linear" in told.output
        assert "train_data: torch.utils.data.dataloader:DataLoader of torch.utils.data.dataset:TensorDataset, 32" in (
            told.output
        )
        assert f"callbacks: {__name__}:print_nothing in {__file__}" in told.output
    with pytest.raises(CheckpointError, match="pass the base model"):
        evolve.load(run)
    assert evolve.load(run, model=nn.Linear(4, 3)).weight.shape == (3, 4)


def test_python_still_resumes_as_it_did(tmp_path):
    whole = make(tmp_path / "whole")
    whole.run()
    stop_after(make(tmp_path / "run"), 7).run()
    resumed = make(tmp_path / "run").restore()
    resumed.run()
    assert digests(resumed) == digests(whole)
    model = evolve.load(tmp_path / "run", model=Net(), which="last")
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in resumed.model.parameters())


def test_a_yaml_run_that_python_goes_on_with_stays_one(tmp_path):
    file = write_config(tmp_path)
    succeeds("run", file)
    before = (tmp_path / "run" / "config.yaml").read_text()
    from_yaml = Evolver.from_config(file)
    going = Evolver(
        from_yaml.model, from_yaml.train_data, from_yaml.val_data, output=tmp_path / "run", progress=False,
        optimizer=OptimizerConfig(name="SGD", options={"lr": 0.1, "momentum": 0.9}),
        training=TrainingConfig(epochs=3, device="cpu"),
    )  # fmt: skip
    going.restore().run()
    assert (tmp_path / "run" / "config.yaml").read_text() == before
    assert evolve.load(tmp_path / "run") is not None


@pytest.fixture
def forget(tmp_path, monkeypatch):
    """Works in a folder elsewhere; what it returns makes Python forget modules and where it found them."""
    elsewhere, path = tmp_path / "elsewhere", [place for place in sys.path if place]
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(sys, "path", list(path))

    def forgotten():
        sys.path[:] = path
        sys.modules.pop("beside_net", None)
        sys.modules.pop("gone_parts", None)
        if "gone_policy" in policies:
            policies.unregister("gone_policy")

    yield forgotten
    forgotten()


def test_modules_beside_the_file_are_found_from_anywhere(tmp_path, forget):
    project, run = tmp_path / "project", tmp_path / "run"
    project.mkdir()
    (project / "beside_net.py").write_text(MODULE)
    (tmp_path / "elsewhere" / "beside_net.py").write_text("raise ImportError('the wrong one')")
    data = {"name": "beside_net:data", "batch_size": 8}
    file = write_config(project, model="beside_net:Net", data=data, output={"dir": str(run)})
    sys.path.append(str(tmp_path / "elsewhere"))  # as an earlier import by name leaves it
    succeeds("run", file)
    assert config_of(run)["import_from"] == str(project)
    forget()
    succeeds("resume", run, "--trust", "training.epochs=3")
    assert len(metrics(run)) == 3
    forget()
    assert type(evolve.load(run, trust=True)).__module__ == "beside_net"
    forget()
    plain = write_config(project, name="plain.yaml", output={"dir": str(tmp_path / "plain")})
    succeeds("run", plain)
    assert config_of(tmp_path / "plain")["import_from"] is None
    assert str(project) not in sys.path
    file.write_text(file.read_text().replace("beside_net:Net", "no_such_module:Net"))
    assert "the folder of the configuration" in invoke("validate", file).output


def test_a_folder_to_import_from_is_relative_to_the_file(tmp_path, forget):
    project = tmp_path / "project"
    (project / "src").mkdir(parents=True)
    (project / "src" / "beside_net.py").write_text(MODULE)
    file = write_config(project, model="beside_net:Net", import_from="src")
    succeeds("run", file)
    assert config_of(project / "run")["import_from"] == str(project / "src")


def test_nothing_is_imported_from_a_run_folder(tmp_path):
    run = tmp_path / "run"
    file = write_config(tmp_path)
    succeeds("run", file)
    harm = run / "harmful_module.py"
    harm.write_text(f"open({str(tmp_path / 'harm')!r}, 'w')\nregistered = True")
    for changed in ({"plugins": ["harmful_module"]}, {"plugins": ["harmful_module"], "import_from": str(run)}):
        config = config_of(run)
        (run / "config.yaml").write_text(json.dumps({**config, **changed}))
        before = list(sys.path)
        told = invoke("resume", run, "training.epochs=3")
        assert told.exit_code == 2
        assert "--trust" in told.output
        assert sys.path == before
        evolve.load(run)
        assert not (tmp_path / "harm").exists()
    (run / "config.yaml").write_text(json.dumps({**config, "plugins": ["harmful_module"], "import_from": None}))
    told = invoke("resume", run, "--trust", "training.epochs=3")
    assert "cannot import 'harmful_module'" in told.output
    assert not (tmp_path / "harm").exists()


PARTS = """
from evolve.policies import policies
from evolve.policies.plain import RoundRobin


@policies.register("gone_policy")
class Gone(RoundRobin):
    pass


def gone_task(model, batch):
    import torch
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
"""


@pytest.mark.parametrize("trust", [False, True])
def test_load_needs_neither_data_nor_task_nor_policy(tmp_path, trust, forget, caplog):
    project, run = tmp_path / "project", tmp_path / "run"
    project.mkdir()
    (project / "gone_parts.py").write_text(PARTS + MODULE)
    file = write_config(
        project,
        data={"name": "gone_parts:data", "batch_size": 8},
        task="gone_parts:gone_task",
        plugins=["gone_parts"],
        evolution={"schedule": {"name": "every", "options": {"epochs": 1}}, "policy": "gone_policy",
                   "operators": ["widen"]},
        output={"dir": str(run)},
    )  # fmt: skip
    succeeds("run", file)
    (project / "gone_parts.py").unlink()
    forget()
    assert evolve.load(run, trust=trust, which="last")[1].out_features > 4
    assert ("cannot import 'gone_parts'" in caplog.text) is trust
    assert invoke("resume", run, "--trust").exit_code == 2
