"""The contract of search algorithms finds what is broken."""

import pytest
from helpers.imports_torch import WithTorch

from evolve.population.algorithms import Elitist, RandomSearch, algorithms
from evolve.population.individual import Proposal
from evolve.testing import check_algorithm
from evolve.testing.algorithms import check_improves
from evolve.testing.toy_spaces import Letters


class Repeats(Elitist):
    def fresh(self):
        return self.space.draw(self.chance)

    def child(self, parent, why):
        return self.mutated(Proposal((parent.id,), (), parent.code), 1)


class LetsDie(Elitist):
    def living(self):
        return [self.population.best().id] if len(self.population) else []


class Forgets(Elitist):
    moved = ()


class DrawsWhenTold(Elitist):
    def tell(self, individual):
        super().tell(individual)
        self.chance.random()


class KeepsTuples(Elitist):
    def state(self):
        return {**super().state(), "living": tuple(self.living())}


class NeedsValues(Elitist):
    def tell(self, individual):
        self.population.add(individual)
        assert individual.values[0] > -1e9


class GivesUp(Elitist):
    def ask(self):
        return super().ask() if self.begun < 30 else None


class Silent(Elitist):
    def ask(self):
        return super().ask() if len(self.population) else None


BROKEN = {
    Repeats: "proposed again",
    LetsDie: "did not live",
    Forgets: "after an interruption",
    DrawsWhenTold: "after an interruption",
    KeepsTuples: "JSON",
    NeedsValues: "NoneType",
    GivesUp: "gave up after",
    Silent: "sends nobody out",
    WithTorch: "imports torch",
}


@pytest.mark.parametrize("cls", BROKEN, ids=lambda cls: cls.__name__)
def test_what_is_broken_is_found(cls):
    algorithms.register("broken")(cls)
    try:
        with pytest.raises((AssertionError, TypeError), match=BROKEN[cls]):
            check_algorithm("broken")
    finally:
        algorithms.unregister("broken")


def test_what_is_no_better_than_random_is_found():
    class Unlucky(RandomSearch):
        """Takes the worst of three."""

        def fresh(self):
            found = [super(Unlucky, self).fresh() for _ in range(3)]
            return min(found, key=lambda proposal: self.space.fitness(proposal.code))

    with pytest.raises(AssertionError, match="by random search"):
        check_improves(Unlucky, Letters(), False, "it")
