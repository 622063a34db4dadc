"""config.json of Qwen2-VL, Qwen2.5-VL and Qwen3-VL, in the three spellings in circulation: read and written.

  flat    the decoder's fields at the root, as in the files of Qwen2-VL and Qwen2.5-VL on the hub
  nested  `text_config` and `vision_config`, as saved by transformers since 4.52; the root may have copies
  v5      the same with `rope_parameters` in place of `rope_theta` and `rope_scaling`

Source: transformers models/qwen2_vl, qwen2_5_vl and qwen3_vl, configuration_*.py.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import transformers

from jaxvlm.config import DecoderConfig
from jaxvlm.errors import UserError
from jaxvlm.families.qwen_vl.config import KINDS, MergerConfig, QwenVLConfig, TowerConfig
from jaxvlm.families.qwen_vl.rope_axes import AXES, rope_axes, section_of
from jaxvlm.weights.hf.decoder import decoder_config
from jaxvlm.weights.hf.strict import IRRELEVANT, Report, check_fields, fill, make, unknown

_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_OLD_LIMITS = (56**2, 16384 * 28**2)
_ACTIVATIONS = {"quick_gelu": "quick_gelu", "silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a `model_type` does not say in its fields."""

    config: Any  # transformers' config class
    model: str  # transformers' model class
    architecture: str  # of the decoder, in `jaxvlm.models.decoder.ARCHITECTURES`
    pixels: tuple[tuple[float, float, float], tuple[float, float, float]]  # mean and deviation of the hub's files
    norm: str
    is_gated: bool
    patch_bias: bool
    limits: tuple[int, int]  # least and most area of an image in the hub's files


HF_KINDS = {
    "qwen2_vl": Kind(
        transformers.Qwen2VLConfig,
        "Qwen2VLForConditionalGeneration",
        "qwen2",
        _CLIP,
        "layer",
        False,
        False,
        _OLD_LIMITS,
    ),
    "qwen2_5_vl": Kind(
        transformers.Qwen2_5_VLConfig,
        "Qwen2_5_VLForConditionalGeneration",
        "qwen2",
        _CLIP,
        "rms",
        True,
        False,
        _OLD_LIMITS,
    ),
    "qwen3_vl": Kind(
        transformers.Qwen3VLConfig,
        "Qwen3VLForConditionalGeneration",
        "qwen3",
        _HALF,
        "layer",
        False,
        True,
        (256**2, 4096**2),
    ),
}
assert tuple(HF_KINDS) == KINDS

_ROOT = {"text_config", "vision_config", "tie_word_embeddings", "image_token_id", "video_token_id"}
_ROOT_IRRELEVANT = frozenset({"vision_start_token_id", "vision_end_token_id", "vision_token_id", "ignore_index"})
_TEXT_IRRELEVANT = frozenset({"vision_token_id", *_ROOT_IRRELEVANT, "image_token_id", "video_token_id"})
_VISION_IRRELEVANT = frozenset({"tokens_per_second", "rope_parameters", "tie_word_embeddings"})

# Required values of fields of the encoder, each with the reason; a field absent from file and class passes.
_VISION_REQUIRED: dict[str, tuple[Any, str]] = {
    "in_channels": (3, "RGB"),
    "in_chans": (3, "RGB"),
    "temporal_patch_size": (2, "two frames in a patch"),
}


@dataclasses.dataclass(frozen=True)
class QwenFile:
    """What a config.json describes."""

    kind: str
    vision: TowerConfig
    projector: MergerConfig
    language: DecoderConfig
    tokens_per_second: int
    image_token_id: int


def read_qwen(
    values: Mapping[str, Any], where: str, pixels: tuple[tuple[float, ...], tuple[float, ...]] | None
) -> QwenFile:
    """The model that a config.json describes.

    Args:
      values: the file's.
      where: its path, for messages.
      pixels: mean and deviation of the folder's image processor; None: it has none, and those of the hub are taken.

    Raises:
      UserError: another model, or unsupported fields, all in one message.
    """
    kind = values.get("model_type")
    if kind not in HF_KINDS:
        raise unknown(kind, HF_KINDS, where)
    report, known = Report(where), HF_KINDS[kind]
    text, own, prefix = _split(values, report)
    filled = fill(known.config, own | {"text_config": text}, "", report)
    if filled is None:
        raise report.error()
    check_fields(known.config, own, filled, "", report, mapped=_ROOT, required={}, irrelevant=_ROOT_IRRELEVANT)
    language = _language(kind, text, filled["text_config"], prefix, report)
    vision = values.get("vision_config") or {}
    tower = _tower(kind, vision, filled["vision_config"], pixels or known.pixels, report)
    if language is not None:
        language = dataclasses.replace(language, tie_embeddings=_is_tied(values, text, filled, report))
        _check_width(kind, filled["vision_config"], language.embed_dim, report)
    report.check()
    assert language is not None and tower is not None  # else there was something to report
    rate = filled["vision_config"].get("tokens_per_second", 2)
    merger = MergerConfig(filled["vision_config"]["spatial_merge_size"])
    return QwenFile(kind, tower, merger, language, rate, filled["image_token_id"])


def _split(values: Mapping[str, Any], report: Report) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The decoder's fields, those of the root, and the prefix of the decoder's names in messages."""
    nested = values.get("text_config")
    if nested is None:
        text = {name: value for name, value in values.items() if name not in _ROOT | _ROOT_IRRELEVANT}
        return text, {name: value for name, value in values.items() if name in _ROOT | _ROOT_IRRELEVANT}, ""
    root = {}
    for name, value in values.items():
        if name not in nested or name in _ROOT | _ROOT_IRRELEVANT or name in ("model_type", "architectures"):
            root[name] = value
        elif _plain(value) != _plain(nested[name]) and name not in IRRELEVANT:
            given = f"{json.dumps(value)} at the root and {json.dumps(nested[name])} in text_config"
            report.log(f"{name} = {given}; keep the one that is right")
    return dict(nested), root, "text_config."


def _plain(value: Any) -> Any:
    """A field's value for comparisons: `rope_scaling` without its type, which versions spell differently."""
    return {k: v for k, v in value.items() if k not in ("type", "rope_type")} if isinstance(value, dict) else value


def _language(
    kind: str, text: dict[str, Any], filled: dict[str, Any], prefix: str, report: Report
) -> DecoderConfig | None:
    """The decoder. Without its positions of three axes it is a Qwen2 or Qwen3, and is read as that."""
    rope = dict(filled.get("rope_parameters") or {})
    section = rope.pop("mrope_section", None)
    rope.pop("mrope_interleaved", None)  # no switch: Qwen3-VL always interleaves
    if rope.get("type") == "mrope":
        del rope["type"]
    if not (isinstance(section, list) and len(section) == AXES and all(isinstance(n, int) for n in section)):
        report.add(f"{prefix}rope_scaling.mrope_section", section, "three numbers of frequencies (time, row, column)")
        return None
    # The family's defaults, since those of a plain Qwen2 differ.
    skipped = {"model_type", "rope_parameters", "rope_theta", "rope_scaling", *_TEXT_IRRELEVANT}
    whole = {name: value for name, value in {**text, **filled}.items() if name not in skipped}
    whole |= {name: filled[name] for name in ("sliding_window", "use_sliding_window") if name in filled}
    config = decoder_config(HF_KINDS[kind].architecture, whole | {"rope_parameters": rope}, prefix, report)
    if config is None:
        return None
    axes = rope_axes((section[0], section[1], section[2]), interleaved=kind == "qwen3_vl")
    if len(axes) != config.head_dim // 2:
        report.add(f"{prefix}rope_scaling.mrope_section", section, f"a sum of {config.head_dim // 2}, half a head")
    return dataclasses.replace(config, rope_axes=axes)


def _tower(
    kind: str, values: Mapping[str, Any], filled: dict[str, Any], pixels: tuple[Any, Any], report: Report
) -> TowerConfig | None:
    """The encoder."""
    known = HF_KINDS[kind]
    common = {"depth", "num_heads", "patch_size", "spatial_patch_size", "spatial_merge_size", "hidden_act"}
    own = {
        "qwen2_vl": {"embed_dim", "hidden_size", "mlp_ratio"},
        "qwen2_5_vl": {"hidden_size", "intermediate_size", "out_hidden_size", "window_size", "fullatt_block_indexes"},
        "qwen3_vl": {"hidden_size", "intermediate_size", "out_hidden_size"}
        | {"num_position_embeddings", "deepstack_visual_indexes"},
    }[kind]
    check_fields(
        known.config.sub_configs_defaults["vision_config"].config_class,
        values,
        filled,
        "vision_config.",
        report,
        mapped=common | own,
        required=_VISION_REQUIRED,
        irrelevant=_VISION_IRRELEVANT,
    )
    if filled.get("spatial_patch_size", filled["patch_size"]) != filled["patch_size"]:
        report.add("vision_config.spatial_patch_size", filled["spatial_patch_size"], str(filled["patch_size"]))
    activation = _ACTIVATIONS.get(filled["hidden_act"])
    if activation is None:
        report.add("vision_config.hidden_act", filled["hidden_act"], ", ".join(_ACTIVATIONS))
        return None
    mean, std = pixels
    made = TowerConfig(
        embed_dim=filled["embed_dim" if kind == "qwen2_vl" else "hidden_size"],
        mlp_dim=filled["embed_dim"] * filled["mlp_ratio"] if kind == "qwen2_vl" else filled["intermediate_size"],
        num_layers=filled["depth"],
        num_heads=filled["num_heads"],
        patch_size=filled["patch_size"],
        image_mean=(mean[0], mean[1], mean[2]),
        image_std=(std[0], std[1], std[2]),
        activation=activation,
        is_gated=known.is_gated,
        norm=known.norm,
        norm_epsilon=1e-6,
        patch_bias=known.patch_bias,
    )
    if kind == "qwen2_5_vl":
        merge = filled["spatial_merge_size"]
        window = filled["window_size"] // filled["patch_size"] // merge * merge  # whole tokens, as in the model's code
        return dataclasses.replace(made, window=window, full_layers=tuple(filled["fullatt_block_indexes"]))
    if kind == "qwen3_vl":
        rows = math.isqrt(filled["num_position_embeddings"])
        if rows**2 != filled["num_position_embeddings"]:
            report.add("vision_config.num_position_embeddings", filled["num_position_embeddings"], "a square number")
        layers = tuple(filled["deepstack_visual_indexes"])
        return dataclasses.replace(made, position_rows=rows, deepstack_layers=layers)
    return made


def _is_tied(values: Mapping[str, Any], text: Mapping[str, Any], filled: Mapping[str, Any], report: Report) -> bool:
    """Whether the head is the embedding; the root says it, or an old file's text_config."""
    root, nested = values.get("tie_word_embeddings"), (values.get("text_config") or {}).get("tie_word_embeddings")
    if root is not None and nested is not None and root != nested:
        given = f"{json.dumps(root)} at the root and {json.dumps(nested)} in text_config"
        report.log(f"tie_word_embeddings = {given}; keep the one that is right")
    return bool(filled["tie_word_embeddings"])


def _check_width(kind: str, vision: Mapping[str, Any], embed_dim: int, report: Report) -> None:
    name = "hidden_size" if kind == "qwen2_vl" else "out_hidden_size"
    if vision[name] != embed_dim:
        report.add(f"vision_config.{name}", vision[name], f"{embed_dim}, the decoder's hidden_size")


def hf_qwen_config(
    config: QwenVLConfig, tokenizer: Any, *, image_token_id: int, video_token_id: int, dtype: str, max_positions: int
) -> dict[str, Any]:
    """config.json, in the spelling that every reader of the kind knows: flat, or nested for Qwen3-VL.

    Args:
      config: of the whole model.
      tokenizer: of transformers; its BOS, EOS and padding ids are written.
      image_token_id, video_token_id: of the placeholders.
      dtype: of the weights in the same folder: "float32", "bfloat16" or "float16".
      max_positions: maximum sequence length for servers; the weights do not depend on it.

    Raises:
      UserError: the kind has no such encoder or decoder, or transformers refuses the sizes.
    """
    kind = HF_KINDS[config.kind]
    _check_kind(config)
    text = _hf_text(config, tokenizer, dtype=dtype, max_positions=max_positions)
    vision = _hf_vision(config)
    ids = {"image_token_id": image_token_id, "video_token_id": video_token_id}
    tied = {"tie_word_embeddings": config.language.tie_embeddings}
    # As a check that transformers takes it.
    make(kind.config, text_config=dict(text), vision_config=dict(vision), dtype=dtype, **ids, **tied)
    for name, token in (("vision_start_token_id", "<|vision_start|>"), ("vision_end_token_id", "<|vision_end|>")):
        if (found := tokenizer.get_vocab().get(token)) is not None:
            ids[name] = found
    root = {"architectures": [kind.model], "model_type": config.kind, "torch_dtype": dtype, "vision_config": vision}
    if config.kind == "qwen3_vl":
        return root | tied | ids | {"text_config": text}
    return {**text, **root, **tied, **ids}


def _check_kind(config: QwenVLConfig) -> None:
    """Raises `UserError` if transformers' class of the kind has no such model."""
    kind, vision, language = HF_KINDS[config.kind], config.vision, config.language
    wanted = {
        "model.vision.norm": (vision.norm, kind.norm),
        "model.vision.is_gated": (vision.is_gated, kind.is_gated),
        "model.vision.patch_bias": (vision.patch_bias, kind.patch_bias),
        "model.vision.norm_epsilon": (vision.norm_epsilon, 1e-6),
        "model.language.architecture": (language.architecture, kind.architecture),
        "model.language.rope_axes": (
            language.rope_axes,
            rope_axes(section_of(language.rope_axes), interleaved=config.kind == "qwen3_vl"),
        ),
    }
    if config.kind != "qwen3_vl":
        wanted["model.vision.position_rows"] = (vision.position_rows, 0)
        wanted["model.vision.deepstack_layers"] = (vision.deepstack_layers, ())
    if config.kind != "qwen2_5_vl":
        wanted["model.vision.window"] = (vision.window, 0)
    if config.kind == "qwen2_vl":
        wanted["model.vision.mlp_dim"] = (vision.mlp_dim, vision.mlp_dim // vision.embed_dim * vision.embed_dim)
    problems = [
        f"config.{name} = {found!r}, expected {value!r}" for name, (found, value) in wanted.items() if found != value
    ]
    if problems:
        raise UserError(f"{kind.model} of transformers has no such model: {'; '.join(problems)}")


def _hf_text(config: QwenVLConfig, tokenizer: Any, *, dtype: str, max_positions: int) -> dict[str, Any]:
    c = config.language
    rope: dict[str, Any] = {"mrope_section": list(section_of(c.rope_axes))}
    if config.kind == "qwen3_vl":
        rope |= {"rope_type": "default", "mrope_interleaved": True}
    else:
        rope |= {"type": "mrope"}
    text = {
        "vocab_size": c.vocab_size,
        "hidden_size": c.embed_dim,
        "intermediate_size": c.mlp_dim,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": c.norm_epsilon,
        "rope_theta": c.rope_theta,
        "rope_scaling": rope,
        "max_position_embeddings": max_positions,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if config.kind == "qwen3_vl":
        # Transformers 5 reads rope_parameters, 4 the older two.
        parameters = rope | {"rope_theta": c.rope_theta}
        return text | {
            "model_type": "qwen3_vl_text",
            "head_dim": c.head_dim,
            "attention_bias": c.out_bias,
            "rope_parameters": parameters,
        }
    return text | {"use_sliding_window": False}


def _hf_vision(config: QwenVLConfig) -> dict[str, Any]:
    c, width = config.vision, config.language.embed_dim
    activation = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}[c.activation]
    shared = {
        "depth": c.num_layers,
        "num_heads": c.num_heads,
        "patch_size": c.patch_size,
        "spatial_merge_size": config.projector.merge_size,
        "temporal_patch_size": 2,
        "hidden_act": activation,
        "in_channels": 3,
        "model_type": config.kind,
    }
    own: dict[str, Any]
    if config.kind == "qwen2_vl":
        ratio = c.mlp_dim // c.embed_dim
        own = {
            "embed_dim": c.embed_dim,
            "hidden_size": width,
            "mlp_ratio": ratio,
            "spatial_patch_size": c.patch_size,
            "in_chans": 3,
        }
    else:
        own = {"hidden_size": c.embed_dim, "intermediate_size": c.mlp_dim, "out_hidden_size": width}
    if config.kind == "qwen2_5_vl":
        own |= {
            "window_size": c.window * c.patch_size,
            "fullatt_block_indexes": list(c.full_layers),
            "tokens_per_second": config.tokens_per_second,
            "spatial_patch_size": c.patch_size,
            "in_chans": 3,
        }
    if config.kind == "qwen3_vl":
        own |= {"num_position_embeddings": c.position_rows**2, "deepstack_visual_indexes": list(c.deepstack_layers)}
    return shared | own
