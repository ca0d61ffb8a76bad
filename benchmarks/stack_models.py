"""The models that `stack.py` makes deeper: families of transformers and timm, tiny, from configurations."""

# ruff: noqa: E501 - the table of models is easier to read in long lines
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY, WIDTH = 64, 32


@dataclass(frozen=True)
class Subject:
    """A family of models.

    Attributes:
        name: What it is called.
        build: Makes a model with so many layers.
        inputs: Makes the arguments of a forward pass.
        sites: Containers of its blocks.
        exact: Whether its blocks can start as the identity.
        library: "hf" or "timm".
        generates: Whether it generates text with a cache.
        before: Blocks of another form in front of them, in the same container.
    """

    name: str
    build: Callable[[int], nn.Module]
    inputs: Callable[[], Any]
    sites: tuple[str, ...]
    exact: bool = True
    library: str = "hf"
    generates: bool = False
    before: int = 0


def tokens() -> dict[str, Tensor]:
    """A batch of tokens."""
    return {"input_ids": torch.randint(3, VOCABULARY, (2, 8), generator=torch.Generator().manual_seed(0))}


def images(side: int = 32) -> Tensor:
    """A batch of images."""
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def quiet() -> None:
    """Lets transformers say nothing of what it loads and saves."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def subjects(only: str = "") -> list[Subject]:
    """Returns the families of some names, between commas; all where there is none."""
    words = [word.strip() for word in only.split(",") if word.strip()]
    every = [*_languages(), *_others(), *_timm()]
    return [one for one in every if not words or one.name in words]


def _languages() -> list[Subject]:
    import transformers as t

    usual = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_attention_heads": 4, "pad_token_id": 0}
    wide = {**usual, "intermediate_size": 64, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2}
    grouped = {**wide, "num_key_value_heads": 2}
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    old = {"vocab_size": VOCABULARY, **ends}

    def language(
        name: str, config: str, options: dict[str, Any], site: str, layers: str = "num_hidden_layers", **more: Any
    ) -> Subject:
        def build(depth: int) -> nn.Module:
            made = getattr(t, config)(**options, **{layers: depth}, **{k: v(depth) for k, v in varying.items()})
            return t.AutoModelForCausalLM.from_config(made)  # type: ignore[no-any-return]

        varying = more.pop("varying", {})
        return Subject(name, build, tokens, (site,), generates=True, **more)

    return [
        language("llama", "LlamaConfig", grouped, "model.layers"),
        language("mistral", "MistralConfig", {**grouped, "sliding_window": 4}, "model.layers"),
        language("qwen2", "Qwen2Config", grouped, "model.layers"),
        language("qwen3", "Qwen3Config", {**grouped, "head_dim": 8}, "model.layers"),
        language("gemma", "GemmaConfig", {**grouped, "head_dim": 8}, "model.layers"),
        language("gemma2", "Gemma2Config", {**grouped, "head_dim": 8, "sliding_window": 4}, "model.layers"),
        language(
            "gemma3", "Gemma3TextConfig", {**grouped, "head_dim": 8, "sliding_window": 4}, "model.layers",
            varying={"layer_types": lambda n: ["sliding_attention", "full_attention"] * (n // 2)},
        ),
        language("gpt2", "GPT2Config", {**old, "n_embd": WIDTH, "n_head": 4, "n_positions": 64}, "transformer.h", "n_layer"),
        language(
            "gpt_neo", "GPTNeoConfig",
            {**old, "hidden_size": WIDTH, "num_heads": 4, "window_size": 4, "max_position_embeddings": 64},
            "transformer.h", "num_layers", varying={"attention_types": lambda n: [[["global", "local"], n // 2]]},
        ),
        language("gpt_neox", "GPTNeoXConfig", wide, "gpt_neox.layers"),
        language("gptj", "GPTJConfig", {**old, "n_embd": WIDTH, "n_head": 4, "n_positions": 64, "rotary_dim": 4}, "transformer.h", "n_layer"),
        language(
            "opt", "OPTConfig",
            {**usual, "ffn_dim": 64, "word_embed_proj_dim": WIDTH, "max_position_embeddings": 64, **ends},
            "model.decoder.layers",
        ),
        language("phi", "PhiConfig", wide, "model.layers"),
        language("stablelm", "StableLmConfig", grouped, "model.layers"),
        language("bloom", "BloomConfig", {**old, "hidden_size": WIDTH, "n_head": 4}, "transformer.h", "n_layer"),
        language("falcon", "FalconConfig", {**usual, **ends}, "transformer.h"),
        language("mpt", "MptConfig", {**old, "d_model": WIDTH, "n_heads": 4, "max_seq_len": 64}, "transformer.blocks", "n_layers"),
        language("olmo2", "Olmo2Config", grouped, "model.layers"),
        language("granite", "GraniteConfig", grouped, "model.layers"),
        language("mixtral", "MixtralConfig", {**grouped, "num_local_experts": 2}, "model.layers", exact=False),
    ]  # fmt: skip


def _others() -> list[Subject]:
    import transformers as t

    usual = {"hidden_size": WIDTH, "num_attention_heads": 4, "intermediate_size": 64}
    words = {**usual, "vocab_size": VOCABULARY, "max_position_embeddings": 64, "pad_token_id": 0}
    picture = {**usual, "image_size": 32, "patch_size": 8}
    sequences = {"vocab_size": VOCABULARY, "d_model": WIDTH, "pad_token_id": 0, "decoder_start_token_id": 0}

    def of(
        cls: str, config: str, options: dict[str, Any], layers: str = "num_hidden_layers"
    ) -> Callable[[int], nn.Module]:
        return lambda depth: getattr(t, cls)(getattr(t, config)(**options, **dict.fromkeys(layers.split(), depth)))

    def pair() -> dict[str, Tensor]:
        return {**tokens(), "decoder_input_ids": tokens()["input_ids"][:, :5]}

    t5 = {**sequences, "d_kv": 8, "d_ff": 64, "num_heads": 4}
    bart = {
        **sequences, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "max_position_embeddings": 64,
    }  # fmt: skip
    swin = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "num_heads": [2, 4], "window_size": 4}
    return [
        Subject("bert", of("BertForMaskedLM", "BertConfig", words), tokens, ("bert.encoder.layer",), exact=False),
        Subject("vit", of("ViTForImageClassification", "ViTConfig", picture), images, ("vit.layers",)),
        Subject("deit", of("DeiTForImageClassification", "DeiTConfig", picture), images, ("deit.layers",)),
        Subject("dinov2", of("Dinov2Model", "Dinov2Config", picture), images, ("encoder.layer",)),
        Subject(
            "swin_hf",
            lambda depth: t.SwinModel(t.SwinConfig(**swin, depths=[2, depth])),
            images,
            ("encoder.layers.1.blocks",),
        ),
        Subject("t5", of("T5ForConditionalGeneration", "T5Config", t5, "num_layers num_decoder_layers"), pair, ("encoder.block", "decoder.block")),
        Subject("bart", of("BartForConditionalGeneration", "BartConfig", bart, "encoder_layers decoder_layers"), pair, ("model.encoder.layers", "model.decoder.layers"), exact=False),
    ]  # fmt: skip


def _timm() -> list[Subject]:
    import timm
    from timm.models.mlp_mixer import ResBlock

    vit = {"img_size": 32, "patch_size": 8, "embed_dim": WIDTH, "num_heads": 4}

    def model(name: str, **options: Any) -> Callable[[int], nn.Module]:
        return lambda depth: timm.create_model(name, pretrained=False, num_classes=5, depth=depth, **options)

    def staged(name: str, **options: Any) -> Callable[[int], nn.Module]:
        return lambda depth: timm.create_model(
            name, pretrained=False, num_classes=5, depths=(1, depth, 1, 1), **options
        )

    def staged2(name: str, **options: Any) -> Callable[[int], nn.Module]:
        return lambda depth: timm.create_model(name, pretrained=False, num_classes=5, depths=(2, depth), **options)

    def metaformer(depth: int) -> nn.Module:
        from timm.models.metaformer import GroupNorm1, MetaFormer, Pooling

        made: nn.Module = MetaFormer(
            depths=(1, depth), dims=(8, 16), num_classes=5, token_mixers=Pooling, norm_layers=GroupNorm1
        )
        return made

    def mixed(name: str, **options: Any) -> Callable[[int], nn.Module]:
        sizes = {"img_size": 32, "patch_size": 8, "embed_dim": WIDTH, "num_classes": 5}
        return lambda depth: getattr(timm.models.mlp_mixer, name)(num_blocks=depth, **sizes, **options)

    return [
        Subject("vit_timm", model("vit_tiny_patch16_224", **vit), images, ("blocks",), library="timm"),
        Subject("deit_timm", model("deit_tiny_distilled_patch16_224", **vit), images, ("blocks",), library="timm"),
        Subject("deit3_timm", model("deit3_small_patch16_224", **vit), images, ("blocks",), library="timm"),
        Subject("beit_timm", model("beit_base_patch16_224", **vit), images, ("blocks",), library="timm"),
        Subject("cait_timm", model("cait_xxs24_224", **vit), images, ("blocks",), library="timm"),
        Subject("mixer_timm", mixed("MlpMixer"), images, ("blocks",), library="timm"),
        Subject("resmlp_timm", mixed("MlpMixer", block_layer=ResBlock, mlp_ratio=4), images, ("blocks",), library="timm"),
        Subject("convnext_timm", staged("convnext_atto", dims=(16, 32, 32, 32)), images, ("stages.1.blocks",), library="timm"),
        Subject("convnextv2_timm", staged("convnextv2_atto", dims=(16, 32, 32, 32)), images, ("stages.1.blocks",), library="timm"),
        Subject(
            "resnet_timm",
            lambda depth: timm.create_model("resnet18", pretrained=False, num_classes=5, layers=[1, depth + 1, 1, 1], channels=(8, 16, 16, 16)),
            images, ("layer2",), library="timm", before=1,
        ),
        Subject(
            "resnet50_timm",
            lambda depth: timm.create_model("resnet50", pretrained=False, num_classes=5, layers=[1, depth + 1, 1, 1], channels=(8, 16, 16, 16)),
            images, ("layer2",), library="timm", before=1,
        ),
        Subject(
            "swin_timm",
            staged2("swin_tiny_patch4_window7_224", img_size=32, patch_size=2, window_size=4, embed_dim=16, num_heads=(2, 4)),
            images, ("layers.1.blocks",), library="timm",
        ),
        Subject(
            "swinv2_timm",
            staged2("swinv2_tiny_window8_256", img_size=32, patch_size=2, window_size=4, embed_dim=16, num_heads=(2, 4)),
            images, ("layers.1.blocks",), library="timm",
        ),
        Subject("poolformer_timm", metaformer, images, ("stages.1.blocks",), library="timm"),
    ]  # fmt: skip
