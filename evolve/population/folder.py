"""What lies where in the folder of a search."""

from __future__ import annotations

from pathlib import Path

ARCHIVE, WEIGHTS, CONFIG, MODELS = "archive.sqlite", "weights", "search.yaml", "models"
INDEX = "index.json"  # among the models: the ids of the best, the first one first


def is_search(folder: Path) -> bool:
    """Whether a folder is that of a search; an archive that is empty was killed before it had begun."""
    archive = folder / ARCHIVE
    return archive.is_file() and archive.stat().st_size > 0
