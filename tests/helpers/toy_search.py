"""A search space without torch: a genome is a number, edits move it, and an edit may order a disaster."""

import os
import signal
import sys
import time

from pydantic import NonNegativeFloat

from evolve.errors import EvolveError
from evolve.population.individual import Edit, Proposal
from evolve.population.jobs import Evaluator
from evolve.population.space import Space
from evolve.registry import TypedOptions

PATH = "helpers.toy_search:Numbers"
BEST = 40


class Numbers(Space):
    """Whole numbers; the best one is 40."""

    rooted = True

    class Options(TypedOptions):
        seconds: NonNegativeFloat = 0.0  # that each training takes
        fault: str = ""  # what beginning the evaluator meets with

    def draw(self, chance):
        return Proposal((0,), edits := tuple(chance.choices(self.edits(None), k=3)), self.code(0, edits))

    def edits(self, individual):
        return [Edit("add", str(step)) for step in (1, 3, 7, -2)]

    def code(self, code, edits):
        return (code or 0) + sum(int(edit.where) for edit in edits if edit.operator == "add")

    def features(self, code):
        return [float(code)]

    def evaluator(self, setup):
        if self.options.fault == "refuses":
            raise EvolveError("no numbers today")
        if self.options.fault == "exits":
            os._exit(7)
        return Counter(setup, self.options.seconds)


class Counter(Evaluator):
    """Counts. The edit `do` orders what happens on the way: `("do", "hang while training")`."""

    def __init__(self, setup, seconds):
        self.setup, self.seconds = setup, seconds

    def make(self, order, blobs):
        obey(order, "making")
        before = sum(int(blobs.read(name).partition(b" ")[0]) for name in order["weights"])
        if order["genome"] is not None and order["weights"]:
            assert before == order["genome"]
        self.number = (order["genome"] or 0) + sum(int(where) for what, where in order["edits"] if what == "add")
        if self.number < -100:
            return {"refused": "too small"}
        return {"genome": self.number, "key": str(self.number), "code": self.number, "metrics": {"params": self.number}}

    def train(self, order, blobs):
        obey(order, "training")
        time.sleep(self.seconds)
        name = blobs.write(f"{self.number} of {order['individual']}".encode())
        given = [self.setup.device, self.setup.threads, os.environ.get("OMP_NUM_THREADS")]
        metrics = {"fitness": -abs(self.number - BEST), "pid": os.getpid()}
        return {"metrics": metrics, "weights": [name], "steps": 1, "given": given}


def obey(order, when):
    for what, where in order["edits"]:
        if what == "do" and where.endswith(when):
            {
                "hang": lambda: time.sleep(1000),
                "raise": lambda: 1 / 0,
                "exit": lambda: os._exit(3),
                "leave": lambda: sys.exit(3),
                "die": lambda: os.kill(os.getpid(), signal.SIGKILL),
                "print": lambda: print("hello from a child", flush=True),
            }[where.split()[0]]()


def order(individual=0, genome=None, edits=(), weights=(), **more):
    """An order as the driver of a search gives it."""
    return {
        **{"individual": individual, "seed": 0, "genome": genome, "code": None, "other": None, "edits": list(edits)},
        **{"weights": list(weights), "rung": 0, "again": False, **more},
    }
