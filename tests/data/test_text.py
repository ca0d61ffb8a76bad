"""Text as bytes: windows, their labels, the split, files and the standard library's sources."""

import sysconfig
from pathlib import Path

import pytest
import torch

from evolve.data import build_data
from evolve.data.windows import WindowBatches
from evolve.errors import DataError


def windows(n=101, context=10, **options):
    given = {"stride": context, "shuffle": False, **options}
    return WindowBatches(torch.arange(n, dtype=torch.uint8), context, 4, **given)


def test_labels_are_the_next_tokens():
    first, *_ = windows().epoch(0)
    assert first["input_ids"].dtype == first["labels"].dtype == torch.int64
    assert first["input_ids"].shape == (4, 10)
    assert torch.equal(first["labels"], first["input_ids"] + 1)
    assert first["input_ids"][:, 0].tolist() == [0, 10, 20, 30]


def test_every_token_is_predicted_once_an_epoch():
    batches = windows(shuffle=True, seed=3)
    assert (batches.samples, len(batches)) == (10, 3)
    seen = torch.cat([batch["labels"].flatten() for batch in batches.epoch(1)])
    assert seen.sort().values.tolist() == list(range(1, 101))
    assert windows(n=100).samples == 9  # the last window lacks the token after it


def test_order_is_of_seed_and_epoch_and_resumes():
    whole = [batch["input_ids"] for batch in windows(shuffle=True, seed=3).epoch(1)]
    again = [batch["input_ids"] for batch in windows(shuffle=True, seed=3).epoch(1, start=1)]
    assert all(map(torch.equal, whole[1:], again))
    assert not torch.equal(whole[0], next(windows(shuffle=True, seed=3).epoch(2))["input_ids"])
    examples = windows(shuffle=True, seed=3).examples(2)
    assert examples["input_ids"][:, 0].tolist() == [0, 10]


def test_stride_and_samples():
    assert windows(stride=5).examples(3)["input_ids"][:, 0].tolist() == [0, 5, 10]
    assert windows(samples=5).examples(9)["input_ids"][:, 0].tolist() == [0, 20, 40, 60, 80]
    assert windows(samples=500).samples == 10


def test_a_file_is_split_into_two_parts(tmp_path):
    file = tmp_path / "poem.txt"
    file.write_bytes(bytes(range(200)))
    data = build_data("text", batch_size=2, options={"path": str(file), "context": 9, "val_fraction": 0.25})
    assert (data.train.samples, data.val.samples) == (16, 5)
    assert data.val.examples(1)["input_ids"][0].tolist() == list(range(150, 159))
    assert (data.vocabulary, data.num_outputs, data.num_classes, data.input_shape) == (256, 256, None, (9,))
    data.train.tokens[0] = 77  # what a program does to the tensor does not reach the file
    assert file.read_bytes() == bytes(range(200))


def test_the_files_of_a_folder_in_order(tmp_path):
    for name, text in (("b.txt", "bbbb"), ("a/z.txt", "zzzz"), ("c.md", "cccc"), (".hidden/x.txt", "xxxx")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    def read(**options):
        data = build_data("text", options={"path": str(tmp_path), "context": 1, "val_fraction": 0.5, **options})
        return bytes(data.train.tokens.tolist() + data.val.tokens.tolist())

    assert read() == b"zzzzbbbb"
    assert read(glob="*.md") == b"cccc"
    with pytest.raises(DataError, match=r"matches '\*\.rst'"):
        read(glob="*.rst")


def test_the_sources_of_the_standard_library():
    options = {"context": 64, "max_bytes": 50_000, "samples": 40, "val_samples": 5}
    data = build_data("stdlib_source", batch_size=8, options=options)
    assert (data.train.samples, data.val.samples) == (40, 5)
    text = bytes(data.train.tokens.tolist() + data.val.tokens.tolist())
    assert len(text) == 50_000
    first = Path(sysconfig.get_paths()["stdlib"]) / "__future__.py"
    assert text.startswith(first.read_bytes())


def test_tests_and_installed_packages_are_left_out(tmp_path, monkeypatch):
    for place in (
        "b.py",
        "a/c.py",
        "test/t.py",
        "a/tests/t.py",
        "site-packages/x.py",
        "idlelib/idle_test/i.py",
        "d.txt",
    ):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(place)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    data = build_data("stdlib_source", options={"context": 1, "val_fraction": 0.5})
    assert bytes(data.train.tokens.tolist() + data.val.tokens.tolist()) == b"b.pya/c.py"


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("text", {"path": "nowhere"}, "no file or folder"),
        ("text", {"path": "empty.txt"}, "is empty"),
        ("text", {"path": "short.txt"}, r"do not fill one window of 256.*Lower context"),
        ("text", {"path": "short.txt", "context": 0}, "context must be at least 1"),
        ("text", {"path": "short.txt", "context": 2, "stride": 0}, "stride must be at least 1"),
        ("text", {"path": "short.txt", "context": 2, "samples": 0}, "samples must be at least 1"),
        ("text", {"path": "short.txt", "val_fraction": 0.0}, "between 0 and 1"),
        ("stdlib_source", {"max_bytes": 0}, "max_bytes must be at least 1"),
        ("stdlib_source", {"max_bytes": 100}, "Lower context"),
    ],
)
def test_what_cannot_be_cut(name, options, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text("too short for a window")
    with pytest.raises(DataError, match=words):
        build_data(name, options=options)
