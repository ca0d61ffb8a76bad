"""The same small BERT classifier and made-up sentences for every library's training loop."""

import torch

import evolve

SAMPLES, BATCH = 64, 8
MUTATIONS = ["bert.encoder.layer.0.output.LayerNorm", "bert.encoder.layer.1.intermediate.dense"]


def bert(seed=0):
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=16,
            num_labels=3,
        )
    )


def sentences(samples=SAMPLES, seed=0):
    """A list of samples: token ids, an attention mask with padding at the end, and a label."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 40, (samples, 10), generator=g)
    lengths = torch.randint(4, 11, (samples, 1), generator=g)
    mask = (torch.arange(10) < lengths).long()
    labels = ids[:, 0] % 3
    rows = zip(ids * mask, mask, labels, strict=True)
    return [{"input_ids": i, "attention_mask": m, "labels": y} for i, m, y in rows]


def batch(samples):
    return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}


def evolution(steps, **changes):
    """A shortcut with a gate in the first layer, then a widen in the second one, after these steps."""
    return evolve.EvolutionConfig.model_validate(
        {
            "schedule": {"name": "at", "options": {"steps": list(steps)}},
            "operators": [
                {"name": "residual", "sites": [MUTATIONS[0]]},
                {"name": "widen", "sites": [MUTATIONS[1]], "options": {"factor": 1.5}},
            ],
            **changes,
        }
    )


def held(optimizer):
    """How often each parameter is in an optimizer."""
    found = [id(p) for group in optimizer.param_groups for p in group["params"]]
    return sorted(found)
