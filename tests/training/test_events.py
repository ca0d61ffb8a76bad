"""Who hears of what."""

from evolve.training.events import EpochEnded, EventStream, StepMade


def test_parts_hear_what_they_listen_for():
    """The user's callbacks hear of everything."""
    heard = {"all": [], "epochs": [], "user": []}
    events = EventStream()
    events.listen(heard["epochs"].append, EpochEnded)
    assert events.heard(EpochEnded)
    assert not events.heard(StepMade)
    events.listen(heard["all"].append)
    assert events.heard(StepMade)
    events.callbacks.append(heard["user"].append)
    told = [StepMade(None, 0, 1, 1, 0.5, 0.1), EpochEnded(None, {})]
    events.emit(*told)
    assert heard == {"all": told, "epochs": told[1:], "user": told}
