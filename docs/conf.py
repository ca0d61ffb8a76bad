"""How the documentation site is built: `pip install ".[docs]" && sphinx-build -W docs site`."""

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

import evolve

ROOT = Path(__file__).parents[1]

project = "evolve"
author = "The evolve authors"
copyright = f"2026, {author}"
version = release = evolve.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["search.md"]
myst_heading_anchors = 4
default_role = "literal"  # docstrings name code in single backticks

# Every public thing is documented where it is defined; optional packages need not be installed for that.
autodoc_default_options = {"members": True, "exclude-members": "model_config, model_post_init"}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_mock_imports = ["accelerate", "lightning", "mlflow", "tensorboard", "transformers", "wandb"]
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"evolve {version}"
html_static_path: list[str] = []
html_copy_source = False

# Pages of the site that lie elsewhere in the project.
_ELSEWHERE = {
    "benchmarks": "benchmarks/README.md",
    "changelog": "CHANGELOG.md",
    "contributing": "CONTRIBUTING.md",
    "plugin-package": "examples/plugin/README.md",
    "population": "docs/search.md",  # Sphinx has a page called search
}


def _on_site(target: str, folder: Path, page: str) -> str:
    """Returns where a link in a file of the project leads on the site; files that are no pages can be downloaded."""
    name, hash_sign, anchor = target.partition("#")
    file = (folder / name).resolve()
    if "://" in target or not name or not file.exists():
        return target
    file = file / "README.md" if file.is_dir() else file
    relative = file.relative_to(ROOT).as_posix()
    if relative == "README.md":
        relative, hash_sign, anchor = "docs/index.md", "", ""
    for here, there in _ELSEWHERE.items():
        relative = f"docs/{here}.md" if relative == there else relative
    return os.path.relpath(ROOT / relative, (ROOT / "docs" / page).parent) + hash_sign + anchor


def _read(app: Sphinx, page: str, source: list[str]) -> None:
    """Takes the text of pages that lie elsewhere, and leads all links to where things are on the site."""
    path = ROOT / _ELSEWHERE.get(page, f"docs/{page}.md")
    app.env.note_dependency(str(path))
    text = path.read_text(encoding="utf-8")
    source[0] = re.sub(r"\]\(([^)\s]+)\)", lambda link: f"]({_on_site(link[1], path.parent, page)})", text)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _read)
