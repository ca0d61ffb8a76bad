"""Models of transformers and timm, tiny, that `stack` makes deeper: what is held, and what a step of training takes.

For each family: 2, 4 and 8 layers with `init: zero` (`copy` and `fresh` where a block cannot be the identity), bit for
bit in eval and train mode, at the container and at every block; training that goes on with the moments that there were;
replay with weights and optimizer; `save_pretrained` and transformers' own `from_pretrained`; `generate` with a cache;
the modules, tensors and operations of the model that its class builds with so many layers, and a step of training over
one of that model. A second copy of that model is a control: its ratio shows what the machine's noise does.
"""

from __future__ import annotations

import copy
import gc
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from stack_models import Subject, quiet, subjects
from timing import Took, arguments, ratios, seconds, taking_turns, told, write_json
from torch import Tensor, nn

from evolve import analyse, mutate, replay
from evolve.lineage import Record

DEPTH = 2
_STEPS = 4  # of training in one block that is timed


def made(subject: Subject, depth: int = DEPTH) -> nn.Module:
    """Builds a model without dropout, which draws other masks in a deeper one."""
    torch.manual_seed(0)
    model = subject.build(depth)
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and ("drop" in name or name == "p"):
                setattr(module, name, 0.0)
    return model


def outputs(model: nn.Module, inputs: Any) -> Tensor:
    """Returns what a model gives, without what it gives for each layer."""
    given = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    if isinstance(given, Tensor):
        return given
    return given.logits if hasattr(given, "logits") else given.last_hidden_state  # type: ignore[no-any-return]


def both_modes(model: nn.Module, inputs: Any) -> list[Tensor]:
    """Returns the outputs in eval and in train mode, with the same random numbers; buffers stay as they were."""
    found = []
    state = copy.deepcopy(model.state_dict())
    for training in (False, True):
        torch.manual_seed(1)
        with torch.no_grad():
            found.append(outputs(model.train(training), inputs).clone())
    model.load_state_dict(state)
    return found


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether tensors are equal bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Any, steps: int = 2) -> None:
    """Takes steps of training in eval mode, which draws nothing."""
    model.eval()
    for _ in range(steps):
        optimizer.zero_grad()
        given = outputs(model, inputs).flatten()
        (given @ torch.linspace(-1, 1, given.numel())).backward()
        optimizer.step()


def stack(model: nn.Module, subject: Subject, inputs: Any, optimizer: Any, **options: Any) -> list[Record]:
    """Doubles the blocks at all sites of a subject; returns the records."""
    init = "zero" if subject.exact else "copy"
    options = {"init": init, **options}
    where = {"optimizer": optimizer, "example_inputs": inputs, "strict": True}
    return [mutate(model, "stack", site=site, **where, **options).record for site in subject.sites]


def check(subject: Subject, deepest: int = 8, *, blocks: bool = True) -> dict[str, Any]:
    """Makes a model deeper and returns what was held, by name; an entry that is not true is a failure."""
    inputs = subject.inputs()
    model = made(subject)
    base = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    train(model, optimizer, inputs)
    before, tokens = both_modes(model, inputs), generated(model, subject, inputs)
    moments = {id(p): state["exp_avg"].clone() for p, state in optimizer.state.items()}
    old, found, records = list(optimizer.state), {}, []
    if not subject.exact:
        refused = mutate(model, "stack", site=subject.sites[0], example_inputs=inputs)
        found["declines zero"] = refused.status == "not_applicable"
        found["why"] = refused.message
        fresh = copy.deepcopy(model)
        stack(fresh, subject, inputs, None, init="fresh")
        found["fresh"] = bool(outputs(fresh, inputs).isfinite().all())
    depth = DEPTH
    while depth < deepest:
        records += stack(model, subject, inputs, optimizer)
        depth *= 2
    if subject.exact:
        found["exact"] = same(both_modes(model, inputs), before)
        if blocks:
            found["exact at blocks"] = at_blocks(subject, inputs)
    found["moments stay"] = all(torch.equal(optimizer.state[p]["exp_avg"], moments[id(p)]) for p in old)
    found["tokens"] = tokens is None or not subject.exact or torch.equal(generated(model, subject, inputs), tokens)
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, optimizer, inputs, 3)
    found["trains"] = all(not torch.equal(kept[n], p) for n, p in model.named_parameters() if p in optimizer.state)
    found["replay"] = resumes(base, model, optimizer, records, inputs)
    found["saved"] = saved(model, inputs)
    found["as built"] = as_built(model, subject, inputs)
    return found


def at_blocks(subject: Subject, inputs: Any) -> bool:
    """Whether a copy of each block alone, behind it and before it, is exact; where its config has words for it."""
    for site in subject.sites:
        names = [f"{site}.{name}" for name, _ in made(subject).get_submodule(site).named_children()]
        for name in names:
            model = made(subject)
            before = both_modes(model, inputs)
            result = mutate(
                model, "stack", site=name, example_inputs=inputs, where="start" if name[-1] == "1" else "each"
            )
            if result.status not in ("applied", "not_applicable") or not same(both_modes(model, inputs), before):
                return False
    return True


def generated(model: nn.Module, subject: Subject, inputs: Any, **options: Any) -> Tensor | None:
    """Returns the tokens that a model goes on with, with a cache; None where it generates none."""
    if not subject.generates:
        return None
    whole: Any = model.eval()
    more = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, "use_cache": True}
    return whole.generate(inputs["input_ids"][:1], **{**more, **options})  # type: ignore[no-any-return]


def resumes(
    base: nn.Module, model: nn.Module, optimizer: torch.optim.Optimizer, records: list[Record], inputs: Any
) -> bool:
    """Whether base model, records as JSON, weights and the optimizer's state train on as the model itself does."""
    twin = copy.deepcopy(base)
    other = torch.optim.AdamW(twin.parameters(), lr=1e-3)
    replay(twin, [Record.model_validate_json(record.model_dump_json()) for record in records], other)
    twin.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    ours = copy.deepcopy(model)
    own = torch.optim.AdamW(ours.parameters(), lr=1e-3)
    ordered = {id(p): n for n, p in model.named_parameters()}
    parameters = dict(ours.named_parameters())
    own.param_groups[0]["params"] = [parameters[ordered[id(p)]] for p in optimizer.param_groups[0]["params"]]
    own.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(twin, other, inputs)
    train(ours, own, inputs)
    return same(list(twin.state_dict().values()), list(ours.state_dict().values()))


def saved(model: nn.Module, inputs: Any) -> bool:
    """Whether transformers alone loads what the model saves, and it computes the same."""
    whole: Any = model.eval()
    if not hasattr(whole, "save_pretrained"):
        return True
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        whole.save_pretrained(folder)
        loaded = type(whole).from_pretrained(folder).eval()
        return torch.equal(outputs(loaded, inputs), outputs(whole, inputs))


def as_built(model: nn.Module, subject: Subject, inputs: Any) -> bool:
    """Whether the model has the modules and tensors of one that was built with so many layers, and runs as that does.

    The operations of a forward pass are compared one by one, with the modules that they belong to.
    """
    other = by_hand(subject, model)
    shapes = [{name: tuple(tensor.shape) for name, tensor in one.state_dict().items()} for one in (model, other)]
    kinds = [[(name, type(module)) for name, module in one.named_modules()] for one in (model, other)]
    tapes = [analyse(one.eval(), inputs).tapes[0] for one in (model, other)]
    ran = [[(op.name, tape.modules_of(op)) for op in tape.ops] for tape in tapes]
    return shapes[0] == shapes[1] and kinds[0] == kinds[1] and ran[0] == ran[1]


def by_hand(subject: Subject, model: nn.Module) -> nn.Module:
    """Returns a model that was built with as many layers, with the same weights."""
    blocks = len(model.get_submodule(subject.sites[0]))  # type: ignore[arg-type]
    other = made(subject, blocks - subject.before)
    other.load_state_dict(model.state_dict())
    return other


def step_time(subject: Subject, repetitions: int) -> dict[str, Any]:
    """Returns how long a step of the stacked model takes over one of the model that was built so."""
    inputs, model = subject.inputs(), made(subject)
    for _ in range(2):
        stack(model, subject, inputs, None)
    models = {"ours": model, "by hand": by_hand(subject, model), "control": by_hand(subject, model)}

    def block(one: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], Took]:
        return lambda: seconds(partial(train, one, optimizer, inputs, _STEPS))

    arms = {name: block(one, torch.optim.AdamW(one.parameters(), lr=1e-4)) for name, one in models.items()}
    gc.collect()
    gc.freeze()  # what there is by now is not looked through before every block
    rounds = taking_turns(arms, repetitions)
    gc.unfreeze()
    return {name: ratios([(took[name], took["by hand"]) for took in rounds]) for name in ("ours", "control")}


def main() -> None:
    """Prints a line for each family."""
    parser = arguments(str(__doc__), repetitions=30)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    quiet()
    cases = []
    for subject in subjects(options.only):
        found = check(subject)
        why = found.pop("why", "")
        failed = [name for name, held in found.items() if held is not True]
        took = step_time(subject, options.repetitions) if options.repetitions else {}
        times = "".join(f"; {name} {told(figures['cpu'])}" for name, figures in took.items())
        verdict = f"FAILED: {', '.join(failed)}" if failed else "copy" if why else "exact"
        print(f"{subject.library:5} {subject.name:16} {verdict}{times}", flush=True)
        if why:
            print(f"      declines zero: {why}", flush=True)
        cases.append({"name": subject.name, "held": found, "why": why, "step": took})
    exact = [case for case in cases if not case["why"] and all(held is True for held in case["held"].values())]
    copied = [case for case in cases if case["why"] and all(held is True for held in case["held"].values())]
    print(f"{len(cases)} families: {len(exact)} exact, {len(copied)} decline zero and take copies")
    write_json(options.json, "stack", cases)


if __name__ == "__main__":
    main()
