"""Loads exports in one fresh interpreter in which evolve cannot be imported."""

import json
import subprocess
import sys

CHILD = """
import importlib.util, json, sys
from pathlib import Path

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "evolve":
            raise ModuleNotFoundError("evolve is not here")

sys.meta_path.insert(0, Blocked())
folder = Path(sys.argv[1])
sys.path.insert(0, str(folder))
import torch

found = {}
for batch in sorted(folder.glob("*.pt")):
    spec = importlib.util.spec_from_file_location(f"of_{batch.stem}", batch.with_suffix("") / "model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    model, (args, wanted) = module.load(), torch.load(batch)
    with torch.no_grad():
        apart = float((model(*args) - wanted).abs().max())
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()(*args).square().mean().backward()
    optimizer.step()
    moved = sum(not torch.equal(one, two) for one, two in zip(before, model.parameters()))
    again = module.load()
    try:
        torch.jit.script(again)
        scripted = True
    except (RuntimeError, TypeError, ValueError, OSError, torch.jit.frontend.FrontendError):  # it cannot be
        scripted = False
    found[batch.stem] = [apart, moved, scripted]
print(json.dumps(found))
"""


def loaded_without_evolve(folder):
    """Returns max|Δ|, how many parameters a step changed, and whether it was scripted, by the name of each export."""
    done = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", CHILD, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
