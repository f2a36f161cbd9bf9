"""The models of the zoo: how each is built, small for the sweep and as published for the clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from network_surgery.ops import free_attention

GIANTS = {"vit_h_14": "633 M parameters", "regnet_y_128gf": "645 M parameters"}

Built = tuple[nn.Module, Any]
#: What rounding in single precision may do.
SINGLE = 1e-5


@dataclass(frozen=True)
class Animal:
    """One model: ``small()`` and ``native()`` give it with inputs for two samples, with random weights.

    ``size`` describes the small inputs. Some models compute in single precision whatever they are given, and need a
    ``tolerance`` for rounding; some take nothing else (``dtype``).
    """

    name: str
    family: str
    size: str
    small: Callable[[], Built]
    native: Callable[[], Built] | None = None
    tolerance: float = 1e-9
    dtype: torch.dtype = torch.float64


def zoo() -> Iterator[Animal]:
    """Every model that is installed; families come in order."""
    yield from _classification()
    yield from _segmentation()
    yield from _detection()
    yield from _flow()
    yield from _video()
    yield from _timm()
    yield from _language()


def images(size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, size, size)


# -- torchvision -------------------------------------------------------------------------------------------------------

#: Small image sizes that differ from 64: stems that need more, and deep or wide networks that answer to less.
SIZES = {"inception_v3": 96, "resnet152": 48, "wide_resnet101_2": 48, "resnext101_32x8d": 48, "resnext101_64x4d": 48}
SIZES |= {f"efficientnet_b{n}": 48 for n in range(3, 8)} | {f"efficientnet_v2_{size}": 48 for size in "sml"}
SIZES |= {f"regnet_{kind}_{size}": 48 for kind in "xy" for size in ("8gf", "16gf", "32gf", "128gf")}
SIZES |= {"densenet161": 48, "densenet201": 48, "densenet169": 48, "convnext_large": 48, "convnext_base": 48}


def _classification() -> Iterator[Animal]:
    import torchvision.models as tv

    for name in tv.list_models(module=tv):
        size = SIZES.get(name, 64)
        if name.startswith("vit_"):
            size = {"14": 56}.get(name[-2:], 64)
            small: Callable[[], Built] = partial(_torchvision, name, size, image_size=size)
        elif name == "maxvit_t":
            small = _small_maxvit
        elif name == "inception_v3":  # its auxiliary head takes no small image, and without it training would fail
            small = partial(_torchvision, name, size, aux_logits=False)
        else:
            small = partial(_torchvision, name, size)
        native = partial(_torchvision, name, _crop(name))
        yield Animal(name, "torchvision classification", f"2×3×{size}×{size}", small, native)


def _crop(name: str) -> int:
    import torchvision.models as tv

    crop = tv.get_model_weights(name).DEFAULT.transforms().crop_size
    return crop[0] if isinstance(crop, (list, tuple)) else crop


def _torchvision(name: str, size: int, **options: Any) -> Built:
    import torchvision.models as tv

    if name in ("inception_v3", "googlenet"):
        options = {"init_weights": False, **options}
    return free_attention(tv.get_model(name, weights=None, **options)), images(size)


def _small_maxvit() -> Built:
    """``maxvit_t`` with windows of two instead of seven, which lets it take images of 64."""
    from torchvision.models import MaxVit

    model = MaxVit(
        input_size=(64, 64), stem_channels=64, block_channels=[64, 128, 256, 512], block_layers=[2, 2, 5, 2],
        head_dim=32, stochastic_depth_prob=0.2, partition_size=2,
    )  # fmt: skip
    return model, images(64)


def _segmentation() -> Iterator[Animal]:
    import torchvision.models as tv

    for name in tv.list_models(module=tv.segmentation):
        options = {"weights_backbone": None}
        yield Animal(
            name, "torchvision segmentation", "2×3×64×64", partial(_torchvision, name, 64, **options),
            partial(_torchvision, name, 520, **options),
        )  # fmt: skip


def _detection() -> Iterator[Animal]:
    """One of each design."""
    for name in (
        "fasterrcnn_mobilenet_v3_large_320_fpn", "fcos_resnet50_fpn", "keypointrcnn_resnet50_fpn",
        "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn", "ssd300_vgg16", "ssdlite320_mobilenet_v3_large",
    ):  # fmt: skip
        yield Animal(name, "torchvision detection", "2 images 3×96×96", partial(_detector, name))


def _detector(name: str) -> Built:
    import torchvision.models as tv

    options, size = {"min_size": 96, "max_size": 96}, 96
    if "rcnn" in name:
        options |= {"box_detections_per_img": 5, "rpn_post_nms_top_n_test": 20}
    elif name.startswith("ssd"):
        options, size = {}, 300 if "300" in name else 320
    model = tv.get_model(name, weights=None, weights_backbone=None, **options)
    return model, ([torch.rand(3, size, size), torch.rand(3, size, size)],)


def _flow() -> Iterator[Animal]:
    for name in ("raft_small", "raft_large"):
        yield Animal(
            name, "torchvision optical flow", "2 pairs 3×128×128", partial(_raft, name), None, 1e-3, torch.float32
        )  # fmt: skip


def _raft(name: str) -> Built:
    import torchvision.models as tv

    pair = {"image1": images(128), "image2": images(128), "num_flow_updates": 2}
    return tv.get_model(name, weights=None), pair


def _video() -> Iterator[Animal]:
    for name in ("r3d_18", "mc3_18", "r2plus1d_18", "swin3d_t"):
        yield Animal(name, "torchvision video", "2×3×4×32×32", partial(_clip, name))
    for name in ("mvit_v1_b", "mvit_v2_s"):
        yield Animal(name, "torchvision video", "2×3×4×64×64", partial(_mvit, name))


def _clip(name: str) -> Built:
    import torchvision.models as tv

    return tv.get_model(name, weights=None), torch.randn(2, 3, 4, 32, 32)


def _mvit(name: str) -> Built:
    """With its published blocks, for smaller clips."""
    from torchvision.models.video import mvit

    with mock.patch.object(mvit, "_mvit", dict):
        settings = getattr(mvit, name)(weights=None)
    settings = {"rel_pos_embed": False, "proj_after_attn": False, **settings}
    settings |= {"spatial_size": (64, 64), "temporal_size": 4}
    model = mvit.MViT(**{key: value for key, value in settings.items() if key not in ("weights", "progress")})
    return model, torch.randn(2, 3, 4, 64, 64)


# -- timm --------------------------------------------------------------------------------------------------------------

#: name → image size, and options where the size is built in
TIMM: dict[str, tuple[int, dict[str, Any]]] = {
    "beit_base_patch16_224": (64, {"img_size": 64, "depth": 2}),
    "cait_xxs24_224": (64, {"img_size": 64, "depth": 3}),
    "coat_tiny": (64, {"img_size": 64}),
    "convnextv2_atto": (64, {}),
    "cspresnet50": (64, {}),
    "darknet53": (64, {}),
    "deit3_small_patch16_224": (64, {"img_size": 64, "depth": 3}),
    "dla34": (64, {}),
    "dpn68": (64, {}),
    "eca_resnet33ts": (64, {}),
    "edgenext_xx_small": (64, {}),
    "efficientvit_b0": (64, {}),
    "eva02_tiny_patch14_224": (56, {"img_size": 56, "depth": 3}),
    "ghostnet_100": (64, {}),
    "gmlp_s16_224": (64, {"img_size": 64}),
    "hardcorenas_a": (64, {}),
    "hrnet_w18_small": (64, {}),
    "levit_128s": (64, {"img_size": 64}),
    "mixer_s32_224": (64, {"img_size": 64}),
    "mobilenetv4_conv_small": (64, {}),
    "mobileone_s0": (64, {}),
    "mobilevit_xxs": (64, {}),
    "nf_regnet_b0": (64, {}),
    "pit_ti_224": (64, {"img_size": 64}),
    "poolformer_s12": (64, {}),
    "repvgg_a0": (64, {}),
    "res2net50_26w_4s": (64, {}),
    "resmlp_12_224": (64, {"img_size": 64}),
    "resnest14d": (64, {}),
    "resnetv2_50": (64, {}),
    "rexnet_100": (64, {}),
    "selecsls42b": (64, {}),
    "skresnet18": (64, {}),
    "tf_mobilenetv3_small_minimal_100": (64, {}),
    "tinynet_e": (64, {}),
    "twins_svt_small": (64, {"img_size": 64}),
    "vit_tiny_patch16_224": (64, {"img_size": 64, "depth": 4}),
    "vovnet39a": (64, {}),
    "xcit_nano_12_p16_224": (64, {}),
}


def _timm() -> Iterator[Animal]:
    try:
        import timm
    except ImportError:
        return
    for name, (size, options) in TIMM.items():
        if timm.is_model(name):
            tolerance = (
                SINGLE if name == "efficientvit_b0" else Animal.tolerance
            )  # its attention is in single precision
            yield Animal(name, "timm", f"2×3×{size}×{size}", partial(_of_timm, name, size, options), None, tolerance)


def _of_timm(name: str, size: int, options: dict[str, Any]) -> Built:
    import timm

    return timm.create_model(name, pretrained=False, **options), images(size)


# -- transformers ------------------------------------------------------------------------------------------------------

_SMALL = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40, "vocab_size": 50,
    "max_position_embeddings": 16,
}  # fmt: skip
_GROUPED = _SMALL | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

#: name → model class, configuration class, configuration, what it is given
TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "bert": ("BertForSequenceClassification", "BertConfig", _SMALL, "tokens"),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", _SMALL | {"max_position_embeddings": 20}, "tokens"),
    "albert": ("AlbertModel", "AlbertConfig", _SMALL | {"embedding_size": 12}, "tokens"),
    "electra": ("ElectraModel", "ElectraConfig", _SMALL | {"embedding_size": 12}, "tokens"),
    "distilbert": (
        "DistilBertForMaskedLM", "DistilBertConfig",
        {"dim": 24, "hidden_dim": 40, "n_layers": 2, "n_heads": 3, "vocab_size": 50, "max_position_embeddings": 16},
        "tokens",
    ),
    "gpt2": (
        "GPT2LMHeadModel", "GPT2Config",
        {"n_embd": 24, "n_layer": 2, "n_head": 3, "vocab_size": 50, "n_positions": 16, "use_cache": False}, "tokens",
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _SMALL | {"use_cache": False}, "tokens"),
    "opt": (
        "OPTForCausalLM", "OPTConfig",
        _SMALL | {"ffn_dim": 40, "word_embed_proj_dim": 24, "use_cache": False}, "tokens",
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", _GROUPED | {"use_cache": False}, "tokens"),
    "mistral": ("MistralForCausalLM", "MistralConfig", _GROUPED | {"use_cache": False}, "tokens"),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _GROUPED | {"use_cache": False}, "tokens"),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _GROUPED | {"use_cache": False}, "tokens"),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", _GROUPED | {"use_cache": False}, "tokens"),
    "phi": ("PhiForCausalLM", "PhiConfig", _SMALL | {"num_attention_heads": 2, "use_cache": False}, "tokens"),
    "t5": (
        "T5ForConditionalGeneration", "T5Config",
        {"d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 4, "vocab_size": 50, "use_cache": False},
        "pair",
    ),
    "bart": (
        "BartForConditionalGeneration", "BartConfig",
        {"d_model": 24, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 3, "vocab_size": 50,
         "decoder_attention_heads": 3, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "max_position_embeddings": 16,
         "use_cache": False}, "pair",
    ),
    "vit": ("ViTForImageClassification", "ViTConfig", _SMALL | {"image_size": 32, "patch_size": 8}, "image"),
    "dinov2": ("Dinov2Model", "Dinov2Config", _SMALL | {"image_size": 32, "patch_size": 8, "mlp_ratio": 2}, "image"),
    "convnext": (
        "ConvNextForImageClassification", "ConvNextConfig", {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 2, 1]},
        "image",
    ),
    "swin": (
        "SwinForImageClassification", "SwinConfig",
        {"image_size": 32, "patch_size": 2, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 3], "window_size": 4},
        "image",
    ),
    "resnet": (
        "ResNetForImageClassification", "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 2, 1]}, "image",
    ),
}  # fmt: skip


def _language() -> Iterator[Animal]:
    try:
        import transformers
    except ImportError:
        return
    for name, (model, config, _, given) in TRANSFORMERS.items():
        if hasattr(transformers, model) and hasattr(transformers, config):
            yield Animal(
                f"hf_{name}", "transformers, small configurations", given, partial(_of_hub, name), None, SINGLE
            )


def _of_hub(name: str) -> Built:
    import transformers

    model_class, config_class, options, given = TRANSFORMERS[name]
    config = getattr(transformers, config_class)(**{**_TOKENS, **options})
    model = getattr(transformers, model_class)(config)
    words = torch.randint(3, 50, (2, 7))
    if given == "image":
        return model, {"pixel_values": images(32)}
    if given == "pair":
        return model, {"input_ids": words, "decoder_input_ids": torch.randint(3, 50, (2, 5))}
    return model, {"input_ids": words}
