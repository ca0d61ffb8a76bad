"""The models that `coverage.py` tries: all of torchvision's classifiers, and families of timm and Hugging Face.

Those of timm and Hugging Face are built from small configurations with random weights; nothing is downloaded.
"""

# ruff: noqa: E501 - the table of models is easier to read in long lines
from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Subject:
    """A model to try operators on: how to build it, and the arguments of a forward pass."""

    source: str
    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]


def subjects(source: str) -> list[Subject]:
    """Returns the models of a source: "torchvision", "timm" or "hf"."""
    return {"torchvision": _torchvision, "timm": _timm, "hf": _hugging_face}[source]()


def _torchvision() -> list[Subject]:
    import torchvision

    def subject(name: str) -> Subject:
        side = 299 if name == "inception_v3" else 224 if name.startswith(("vit", "swin", "maxvit")) else 64
        options: dict[str, Any] = {"weights": None}
        if name in {"googlenet", "inception_v3"}:
            options["init_weights"] = False
        return Subject(
            "torchvision",
            name,
            lambda: torchvision.models.get_model(name, **options),
            lambda: torch.randn(2, 3, side, side),
        )

    return [subject(name) for name in torchvision.models.list_models(module=torchvision.models)]


# One small member of each family, by timm's own names.
TIMM = """
beit_base_patch16_224 cait_xxs24_224 coat_tiny coatnet_nano_rw_224 convformer_s18 convmixer_768_32 convnext_atto
convnextv2_atto crossvit_9_240 cs3darknet_focus_s davit_tiny deit_tiny_patch16_224 densenet121 dla34 dpn48b
edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientnet_lite0 efficientvit_b0 eva02_tiny_patch14_224
fastvit_t8 focalnet_tiny_srf gcvit_xxtiny ghostnet_050 hardcorenas_a hgnet_tiny hrnet_w18_small inception_next_tiny
inception_resnet_v2 inception_v4 lcnet_050 levit_128s maxvit_nano_rw_256 mixer_s32_224 mobilenetv3_small_050
mobilevit_xxs mobileone_s0 mvitv2_tiny nest_tiny nf_resnet26 nfnet_l0 pit_ti_224 poolformer_s12 pvt_v2_b0
regnetx_002 regnety_002 repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_26w_4s resmlp_12_224 resnest14d resnet18
resnetv2_50 rexnet_100 selecsls42 semnasnet_075 seresnet18 skresnet18 swin_tiny_patch4_window7_224
swinv2_tiny_window8_256 tinynet_e tiny_vit_5m_224 tnt_s_patch16_224 tresnet_m twins_pcpvt_small vgg11 visformer_tiny
vit_tiny_patch16_224 volo_d1_224 vovnet39a xception41 xcit_nano_12_p16_224
""".split()  # noqa: SIM905 - a list that can be read


def _timm() -> list[Subject]:
    import timm

    known = set(timm.list_models())

    def subject(name: str) -> Subject:
        def build() -> nn.Module:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return timm.create_model(name, pretrained=False, num_classes=10)

        def inputs() -> torch.Tensor:
            size = timm.get_pretrained_cfg(name, allow_unregistered=True)
            return torch.randn(2, *(size.input_size if size is not None else (3, 224, 224)))

        return Subject("timm", name, build, inputs)

    return [subject(name) for name in TIMM if name in known]


_SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 60,
}
_IMAGE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 32,
          "patch_size": 8}  # fmt: skip
_GQA = {**_SMALL, "num_key_value_heads": 2, "max_position_embeddings": 64}


def _tokens() -> dict[str, Any]:
    return {"input_ids": torch.randint(3, 50, (2, 12))}


def _both() -> dict[str, Any]:
    return {"input_ids": torch.randint(3, 50, (2, 12)), "decoder_input_ids": torch.randint(3, 50, (2, 8))}


def _pixels() -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, 3, 32, 32)}


# Model class, configuration class, its settings, the arguments of a forward pass.
HUGGING_FACE: list[tuple[str, str, dict[str, Any], Callable[[], dict[str, Any]]]] = [
    ("BertForSequenceClassification", "BertConfig", _SMALL, _tokens),
    ("RobertaModel", "RobertaConfig", {**_SMALL, "max_position_embeddings": 64}, _tokens),
    ("DistilBertModel", "DistilBertConfig", {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": 60}, _tokens),
    ("AlbertModel", "AlbertConfig", {**_SMALL, "embedding_size": 16}, _tokens),
    ("ElectraModel", "ElectraConfig", {**_SMALL, "embedding_size": 16}, _tokens),
    ("DebertaV2Model", "DebertaV2Config", _SMALL, _tokens),
    ("GPT2LMHeadModel", "GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 60, "n_positions": 64}, _tokens),
    ("GPTNeoXForCausalLM", "GPTNeoXConfig", _SMALL, _tokens),
    ("OPTForCausalLM", "OPTConfig", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48,
     "vocab_size": 60, "word_embed_proj_dim": 32, "max_position_embeddings": 64}, _tokens),
    ("BloomForCausalLM", "BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 60}, _tokens),
    ("LlamaForCausalLM", "LlamaConfig", _GQA, _tokens),
    ("MistralForCausalLM", "MistralConfig", _GQA, _tokens),
    ("MixtralForCausalLM", "MixtralConfig", {**_GQA, "num_local_experts": 4}, _tokens),
    ("Qwen2ForCausalLM", "Qwen2Config", _GQA, _tokens),
    ("Qwen3ForCausalLM", "Qwen3Config", {**_GQA, "head_dim": 8}, _tokens),
    ("GemmaForCausalLM", "GemmaConfig", {**_GQA, "head_dim": 8}, _tokens),
    ("PhiForCausalLM", "PhiConfig", _GQA, _tokens),
    ("FalconForCausalLM", "FalconConfig", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
     "vocab_size": 60}, _tokens),
    ("T5ForConditionalGeneration", "T5Config", {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
     "vocab_size": 60}, _both),
    ("BartModel", "BartConfig", {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
     "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 60,
     "max_position_embeddings": 64}, _both),
    ("WhisperModel", "WhisperConfig", {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
     "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
     "vocab_size": 60, "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 20, "pad_token_id": 0,
     "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
     lambda: {"input_features": torch.randn(2, 8, 40), "decoder_input_ids": torch.randint(3, 50, (2, 6))}),
    ("ViTForImageClassification", "ViTConfig", _IMAGE, _pixels),
    ("DeiTForImageClassification", "DeiTConfig", _IMAGE, _pixels),
    ("BeitForImageClassification", "BeitConfig", _IMAGE, _pixels),
    ("Dinov2Model", "Dinov2Config", {**_IMAGE, "mlp_ratio": 2}, _pixels),
    ("ConvNextForImageClassification", "ConvNextConfig", {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}, _pixels),
    ("ResNetForImageClassification", "ResNetConfig", {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32],
     "depths": [1, 1, 1, 1], "layer_type": "basic"}, _pixels),
    ("SwinForImageClassification", "SwinConfig", {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4,
     "image_size": 32, "patch_size": 4}, _pixels),
    ("SegformerForImageClassification", "SegformerConfig", {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1],
     "num_attention_heads": [1, 2, 2, 4]}, lambda: {"pixel_values": torch.randn(2, 3, 64, 64)}),
    ("CLIPVisionModel", "CLIPVisionConfig", _IMAGE, _pixels),
    ("Wav2Vec2Model", "Wav2Vec2Config", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
     "intermediate_size": 48, "conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3),
     "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
     "mask_time_prob": 0.0, "layerdrop": 0.0}, lambda: {"input_values": torch.randn(2, 400)}),
]  # fmt: skip


def _hugging_face() -> list[Subject]:
    import transformers

    def subject(model: str, config: str, settings: dict[str, Any], inputs: Callable[[], Any]) -> Subject:
        def build() -> nn.Module:
            return getattr(transformers, model)(getattr(transformers, config)(**settings))

        return Subject("hf", model, build, lambda: {**inputs(), **_CALL.get(model, {"return_dict": True})})

    return [subject(*entry) for entry in HUGGING_FACE if hasattr(transformers, entry[0])]


_NO_CACHE = {"use_cache": False, "return_dict": True}
_CALL = {entry[0]: _NO_CACHE for entry in HUGGING_FACE if "input_ids" in entry[3]() and "Bert" not in entry[0]}
