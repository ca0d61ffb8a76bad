import os

import pytest

from evolve.errors import EvolveError
from evolve.population.blobs import BlobFolder, MemoryBlobs, name_of


def test_what_is_written_is_read(tmp_path):
    blobs = BlobFolder(tmp_path / "weights")
    name = blobs.write(b"one")
    assert name == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    assert blobs.read(name) == b"one"
    assert blobs.write(b"one") == name
    assert blobs.size() == 3
    file = tmp_path / "weights" / f"{name}.safetensors"
    plain = tmp_path / "plain"
    plain.touch()
    assert file.stat().st_mode == plain.stat().st_mode


def test_damage_and_absence_are_told(tmp_path):
    blobs = BlobFolder(tmp_path)
    name = blobs.write(b"one")
    (tmp_path / f"{name}.safetensors").write_bytes(b"two")
    with pytest.raises(EvolveError, match=f"{name}.*damaged"):
        blobs.read(name)
    with pytest.raises(EvolveError, match="cannot be read"):
        blobs.read("0" * 64)
    for evil in ("../secret", "/etc/passwd", "", "A" * 64, "0" * 64 + "\n"):
        with pytest.raises(EvolveError, match="no name of weights"):
            blobs.read(evil)


def test_what_nobody_needs_is_removed(tmp_path):
    blobs = BlobFolder(tmp_path)
    one, two, three = (blobs.write(text) for text in (b"one", b"two", b"three"))
    (tmp_path / f".{one}.1.partial").write_bytes(b"on")
    (tmp_path / "notes.txt").write_text("of the user's")
    blobs.delete([two, two])
    blobs.collect([three])
    assert sorted(os.listdir(tmp_path)) == sorted([f"{three}.safetensors", "notes.txt"])


def test_a_folder_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    blobs = BlobFolder(tmp_path)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EvolveError, match=r"No space left.*Make room"):
        blobs.write(b"one")
    assert os.listdir(tmp_path) == []


def test_a_worker_remembers_the_last_few():
    blobs = MemoryBlobs()
    sent = {name_of(content): content for content in (b"1", b"2", b"3")}
    blobs.begin(sent)
    assert blobs.read(name_of(b"1")) == b"1"
    written = [blobs.write(content) for content in (b"4", b"5")]
    assert blobs.written == dict(zip(written, (b"4", b"5"), strict=True))
    assert blobs.trim() == [name_of(content) for content in (b"3", b"1", b"4", b"5")]
    blobs.begin({})
    assert blobs.written == {}
    with pytest.raises(EvolveError, match="not sent"):
        blobs.read(name_of(b"2"))
