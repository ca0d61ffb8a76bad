"""Whatever is wrong with a checkpoint: the one before it, or one clear message."""

import copy
import hashlib
import json
import random
import resource
import shutil

import pytest
import torch
from torch import nn

import evolve
from evolve import EvolutionConfig, Evolver, TrainingConfig
from evolve.errors import CheckpointError, EvolveError
from evolve.training.opening import newest_checkpoint

FILES = ("checkpoint.json", "lineage.jsonl", "manifest.json", "model.safetensors", "state.pt")
REPLACEMENTS = (b"", b"{}", b"[]", b"null", b"0", b'""', b"\0" * 64, b"\xff\xfe" * 32, b"[" * 100_000)


def net():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU())
    return nn.Sequential(body, nn.Linear(6, 2))


def evolver(folder):
    torch.manual_seed(1)
    x = torch.randn(32, 4)
    y = x[:, :2].argmax(1)
    evolution = EvolutionConfig.model_validate(
        {
            "schedule": {"name": "every", "options": {"steps": 2, "start": 2, "stop": 9}},
            "operators": [
                {"name": "widen", "sites": ["0.0"]},
                {"name": "deepen", "sites": ["0.2"]},
                {"name": "residual", "sites": ["0"]},
                {"name": "narrow", "sites": ["0.0"]},
            ],
        }
    )
    return Evolver(
        net(), (x, y), (x, y), batch_size=8, evolution=evolution, output=folder, progress=False,
        training=TrainingConfig(epochs=3, device="cpu", ema=0.9),
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = evolver(tmp_path_factory.mktemp("whole") / "run")
    assert run.run().applied >= 4
    return run.output.folder


@pytest.fixture
def run(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def newest(run):
    return sorted((run / "checkpoints").iterdir())[-1]


def flips(content, count, seed):
    """The content with one bit turned, at its beginning, its end and in between."""
    places = random.Random(seed).sample(range(len(content) * 8), min(count, len(content) * 8))
    for place in {0, 7, len(content) * 8 - 1, *places}:
        spoilt = bytearray(content)
        spoilt[place // 8] ^= 1 << place % 8
        yield bytes(spoilt)


def fault(action):
    """What evolve said was wrong; "" where nothing was. Any other error is a failure."""
    try:
        action()
    except EvolveError as error:
        return str(error)
    return ""


def reseal(folder):
    digests = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir() if f.name != FILES[2]}
    (folder / "manifest.json").write_text(json.dumps(digests))


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_was_spoilt_gives_the_checkpoint_before(run, caplog, name):
    latest = newest(run)
    before = sorted((run / "checkpoints").iterdir())[-2]
    file = latest / name
    content = file.read_bytes()
    cut = [content[:length] for length in (0, 1, len(content) // 2, len(content) - 1)]
    for spoilt in [*flips(content, 40, name), *cut, *REPLACEMENTS]:
        file.write_bytes(spoilt)
        caplog.clear()
        assert newest_checkpoint(run) == before, spoilt[:80]
        assert f"{latest} is damaged" in caplog.text
    file.unlink()
    assert newest_checkpoint(run) == before
    file.write_bytes(content)
    assert newest_checkpoint(run) == latest


@pytest.mark.parametrize(
    "change",
    [
        lambda digests: digests.pop("model.safetensors"),
        lambda digests: digests.pop("lineage.jsonl"),
        lambda digests: digests.update({"../../config.yaml": "0" * 64}),
        lambda digests: digests.update({"manifest.json": "0" * 64}),
        lambda digests: digests.update({"/etc/passwd": "0" * 64}),
        lambda digests: digests.update({"state.pt": None}),
        lambda digests: digests.update({"state.pt": digests["model.safetensors"]}),
        lambda digests: digests.update({"": "0" * 64}),
        lambda digests: digests.update({"missing": "0" * 64}),
    ],
)
def test_a_manifest_lists_what_is_read_and_nothing_else(run, change):
    manifest = newest(run) / "manifest.json"
    digests = json.loads(manifest.read_text())
    change(digests)
    manifest.write_text(json.dumps(digests))
    assert newest_checkpoint(run) != newest(run)


def test_a_file_that_is_a_link_is_not_read(run):
    file = newest(run) / "state.pt"
    file.rename(run / "elsewhere.pt")
    file.symlink_to(run / "elsewhere.pt")
    assert newest_checkpoint(run) != newest(run)


@pytest.mark.parametrize("name", [name for name in FILES if name != "manifest.json"])
def test_what_is_wrong_although_its_digest_is_right_is_told(run, name, caplog):
    file = newest(run) / name
    for spoilt in [*flips(file.read_bytes(), 12, name), *REPLACEMENTS]:
        file.write_bytes(spoilt)
        reseal(newest(run))
        caplog.clear()
        told = fault(lambda: evolver(run).restore())
        # Another number among the weights, or in a clock, is as good as any; what is no such file is told.
        assert told or f"{newest(run)} is damaged" in caplog.text or spoilt not in (b"{}", *REPLACEMENTS)


def places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def with_change(value, path, new):
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return value


def rewrite(run, index, record):
    file = newest(run) / "lineage.jsonl"
    lines = file.read_text().split("\n")
    lines[index] = json.dumps(record)
    file.write_text("\n".join(lines))
    reseal(newest(run))


@pytest.mark.parametrize("operator", ["widen", "deepen", "residual", "narrow"])
def test_a_plan_that_was_spoilt_builds_nothing_large(run, operator):
    lines = (newest(run) / "lineage.jsonl").read_text().split("\n")[:-1]
    records = [json.loads(line) for line in lines]
    index = next(i for i, record in enumerate(records) if record["operator"] == operator and record["success"])
    found = [path for path in places(records[index]["plan"]) if path]
    assert found
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in random.Random(operator).sample(found, min(6, len(found))):
        for new in (10**9, -1, 10**30, None, "x", [], {}, [10**9]):
            rewrite(run, index, {**records[index], "plan": with_change(records[index]["plan"], path, new)})
            fault(lambda: evolve.load(run, model=net(), which="last"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kilobytes


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1e30}, {"seed": -(2**70)}, {"seed": None}, {"options": {"factor": 1e9}}, {"options": []},
        {"plan": []}, {"site": 7}, {"site": "nowhere.0"}, {"operator": "os:system"}, {"operator": "unknown"},
        {"params_after": 10**12}, {"params_after": -1}, {"params_after": True}, {"status": "done"}, {"version": 2},
        {"root": "nowhere"}, {"more": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_record_that_was_spoilt_is_told(run, change, caplog):
    lines = (newest(run) / "lineage.jsonl").read_text().split("\n")
    rewrite(run, 0, {**json.loads(lines[0]), **change})
    told = fault(lambda: evolve.load(run, model=net(), which="last"))
    assert told or "damaged" in caplog.text  # and the checkpoint before it was taken


def test_nothing_left(run):
    for folder in (run / "checkpoints").iterdir():
        (folder / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match="No whole checkpoint"):
        evolve.load(run, model=net(), which="last")
