"""The vision encoders of CLIP and SigLIP, alone or with their text encoders: tensor names and config.json.

Source: HF models/clip/modeling_clip.py, CLIPVisionModel; models/siglip/modeling_siglip.py, SiglipVisionModel (names of
transformers 5; older files have `vision_model.` in front); both configuration_*.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

from jaxvlm.config import VisionConfig
from jaxvlm.errors import UserError
from jaxvlm.weights.codec import Codec, Export
from jaxvlm.weights.hf.strict import CONFIG_FILE, Report, check_fields, fill, make, read_config, read_json, unknown
from jaxvlm.weights.reading import open_tensors
from jaxvlm.weights.rules import Rule, prefixed
from jaxvlm.weights.source import WeightSource, part_source
from jaxvlm.weights.spelling import Known, Spelling


@dataclasses.dataclass(frozen=True)
class Encoder:
    """One kind of encoder."""

    config: type  # transformers' config class
    model: str  # transformers' model class
    whole: str  # `model_type` of a pair with a text encoder, which is not used
    whole_config: type
    choices: Mapping[str, bool]  # fields of `VisionConfig`
    pixels: tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation if a folder has none


ENCODERS = {
    "clip_vision_model": Encoder(
        transformers.CLIPVisionConfig,
        "CLIPVisionModel",
        "clip",
        transformers.CLIPConfig,
        {"class_token": True, "pre_norm": True, "patch_bias": False},
        ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    ),
    "siglip_vision_model": Encoder(
        transformers.SiglipVisionConfig,
        "SiglipVisionModel",
        "siglip",
        transformers.SiglipConfig,
        {"class_token": False, "pre_norm": False, "patch_bias": True},
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ),
}
_WHOLE = {encoder.whole: kind for kind, encoder in ENCODERS.items()}
MODEL_TYPES = (*ENCODERS, *_WHOLE)

_FEATURE_LAYER = -2  # LLaVA's choice, for encoders without a decoder
_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "silu": "silu"}

# Ours on the left, Hugging Face's on the right.
_FIELDS = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "embed_dim": "hidden_size",
    "mlp_dim": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "norm_epsilon": "layer_norm_eps",
}

_IRRELEVANT = frozenset({"projection_dim", "vocab_size", "tie_word_embeddings"})  # of the pooled output, of text

# Required values of fields, each with the reason; a field absent from file and class passes.
_REQUIRED: dict[str, tuple[Any, str]] = {
    "num_channels": (3, "RGB"),
    "is_decoder": (False, ""),
    "add_cross_attention": (False, ""),
    "pruned_heads": ({}, ""),
}

# Buffers that old versions of transformers saved, and the text encoders, which we do not use.
IGNORED = (
    r".*\.position_ids",
    r"(text_model|text_projection|visual_projection)\..*",
    r"logit_scale|logit_bias",
)
ALONE = Spelling(vision="vision_model.")
KNOWN: Known = {"vision": (("vision_model.", ""), "embeddings.patch_embedding.weight")}

_BLOCK = "encoder.layers.{i}."

# Letters: D embed, F mlp, N heads, H head_dim, Y X C a patch's rows, columns and channels, P positions.
# `sizes` of the engine: Y, X and C, which our shapes do not show.
RULES = (
    Rule("embeddings.class_embedding", "class_token"),
    Rule("embeddings.patch_embedding.weight", "patch/w", "D C Y X -> (Y X C) D"),
    Rule("embeddings.patch_embedding.bias", "patch/bias"),  # SigLIP
    Rule("embeddings.position_embedding.weight", "positions", "P D -> P D"),
    Rule("pre_layrnorm.weight", "pre_norm/scale"),  # HF's spelling
    Rule("pre_layrnorm.bias", "pre_norm/bias"),
    Rule(_BLOCK + "layer_norm1.weight", "blocks/attention_norm/scale"),
    Rule(_BLOCK + "layer_norm1.bias", "blocks/attention_norm/bias"),
    Rule(_BLOCK + "self_attn.q_proj.weight", "blocks/attention/q/w", "(N H) D -> D N H"),
    Rule(_BLOCK + "self_attn.q_proj.bias", "blocks/attention/q/bias", "(N H) -> N H"),
    Rule(_BLOCK + "self_attn.k_proj.weight", "blocks/attention/k/w", "(N H) D -> D N H"),
    Rule(_BLOCK + "self_attn.k_proj.bias", "blocks/attention/k/bias", "(N H) -> N H"),
    Rule(_BLOCK + "self_attn.v_proj.weight", "blocks/attention/v/w", "(N H) D -> D N H"),
    Rule(_BLOCK + "self_attn.v_proj.bias", "blocks/attention/v/bias", "(N H) -> N H"),
    Rule(_BLOCK + "self_attn.out_proj.weight", "blocks/attention/out/w", "D (N H) -> N H D"),
    Rule(_BLOCK + "self_attn.out_proj.bias", "blocks/attention/out/bias"),
    Rule(_BLOCK + "layer_norm2.weight", "blocks/mlp_norm/scale"),
    Rule(_BLOCK + "layer_norm2.bias", "blocks/mlp_norm/bias"),
    Rule(_BLOCK + "mlp.fc1.weight", "blocks/mlp/up/w", "F D -> D F"),
    Rule(_BLOCK + "mlp.fc1.bias", "blocks/mlp/up/bias"),
    Rule(_BLOCK + "mlp.fc2.weight", "blocks/mlp/down/w", "D F -> F D"),
    Rule(_BLOCK + "mlp.fc2.bias", "blocks/mlp/down/bias"),
    Rule("post_layernorm.weight", "post_norm/scale"),
    Rule("post_layernorm.bias", "post_norm/bias"),
    # SigLIP's pooling, which LLaVA does not compute; E is queries, keys and values.
    Rule("head.probe", "pool/probe"),
    Rule("head.attention.in_proj_weight", "pool/qkv/w", "E D -> D E"),
    Rule("head.attention.in_proj_bias", "pool/qkv/bias"),
    Rule("head.attention.out_proj.weight", "pool/out/w", "D E -> E D"),
    Rule("head.attention.out_proj.bias", "pool/out/bias"),
    Rule("head.layernorm.weight", "pool/norm/scale"),
    Rule("head.layernorm.bias", "pool/norm/bias"),
    Rule("head.mlp.fc1.weight", "pool/mlp/up/w", "F D -> D F"),
    Rule("head.mlp.fc1.bias", "pool/mlp/up/bias"),
    Rule("head.mlp.fc2.weight", "pool/mlp/down/w", "D F -> F D"),
    Rule("head.mlp.fc2.bias", "pool/mlp/down/bias"),
)


def vision_rules(spelling: Spelling) -> tuple[Rule, ...]:
    """The encoder's rules with paths of the whole model; empty if the files do not have it."""
    return () if spelling.vision is None else prefixed(RULES, spelling.vision, "vision/")


def vision_sizes(config: VisionConfig) -> dict[str, int]:
    """The `sizes` of the engine."""
    return {"Y": config.patch_size, "X": config.patch_size, "C": 3}


def read_vision(folder: str | Path, feature_layer: int = _FEATURE_LAYER) -> VisionConfig:
    """The encoder of a CLIP or SigLIP folder, with or without its text encoder.

    Mean and standard deviation of the pixels come from the folder's preprocessor_config.json, or are the family's own
    if there is none. How images are resized is the recipe's choice (config.data.media.aspect), not the file's.

    Args:
      folder: with config.json.
      feature_layer: whose output is the feature, which the file does not state: -1 the last block, -2 the one before.

    Raises:
      UserError: no config.json, another model, or unsupported fields, all in one message.
    """
    values = read_config(folder)
    report = Report(str(Path(folder) / CONFIG_FILE))
    config = vision_config(values, feature_layer, read_pixels(folder), report)
    return report.finish(config)


def vision_kind(values: Mapping[str, Any], where: str) -> str:
    """The row of `ENCODERS` for a `model_type`; CLIP's if there is none, as in LLaVA's `vision_config`.

    Raises:
      UserError: another model.
    """
    kind = values.get("model_type", "clip_vision_model")
    if kind not in MODEL_TYPES:
        raise unknown(kind, MODEL_TYPES, where)
    return _WHOLE.get(kind, kind)


def vision_config(
    values: Mapping[str, Any],
    feature_layer: int,
    pixels: tuple[tuple[float, ...], tuple[float, ...]] | None,
    report: Report,
    prefix: str = "",
) -> VisionConfig | None:
    """The encoder that a file describes; None, and a problem, if transformers refuses it."""
    encoder = ENCODERS[vision_kind(values, report.where)]
    if values.get("model_type") in _WHOLE:
        # Its class also knows the old double spelling, "vision_config_dict".
        whole = fill(encoder.whole_config, values, prefix, report)
        if values.get("quantization_config") is not None:
            report.add(f"{prefix}quantization_config", values["quantization_config"], "weights as they are (null)")
        if whole is None:
            return None
        values, prefix = whole.get("vision_config") or {}, f"{prefix}vision_config."
    filled = fill(encoder.config, values, prefix, report)
    if filled is None:
        return None
    check_fields(
        encoder.config,
        values,
        filled,
        prefix,
        report,
        mapped={*_FIELDS.values(), "hidden_act", "vision_use_head"},
        required=_REQUIRED,
        irrelevant=_IRRELEVANT,
    )
    for name in ("image_size", "patch_size"):
        if not isinstance(filled[name], int):
            report.add(prefix + name, filled[name], "one number (squares)")
    if filled["hidden_act"] not in _ACTIVATIONS:
        report.add(prefix + "hidden_act", filled["hidden_act"], ", ".join(_ACTIVATIONS))
    mean, std = pixels or encoder.pixels
    fields = {ours: filled[theirs] for ours, theirs in _FIELDS.items()}
    return VisionConfig(
        **fields | {"norm_epsilon": float(fields["norm_epsilon"])},
        feature_layer=feature_layer,
        image_mean=(mean[0], mean[1], mean[2]),
        image_std=(std[0], std[1], std[2]),
        **encoder.choices,
        pool=bool(filled.get("vision_use_head")),  # CLIP has no such field
        activation=_ACTIVATIONS.get(filled["hidden_act"], ""),
    )


def read_image_processor(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    """The file of a folder that has the settings of its image processor, and these; {} if there are none."""
    path = Path(folder) / "preprocessor_config.json"
    if path.is_file() and (values := read_json(path, "fix or remove it")):
        return path, values
    path = path.with_name("processor_config.json")  # where transformers 5 writes it
    return path, (read_json(path, "fix or remove it") if path.is_file() else {}).get("image_processor") or {}


def read_pixels(folder: str | Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation in the folder's preprocessor_config.json, None if there is none."""
    path, values = read_image_processor(folder)
    if not values:
        return None
    report = Report(str(path))
    for name in ("do_normalize", "do_rescale"):
        if values.get(name, True) is not True:
            report.add(name, values[name], "true")
    if abs(values.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-6:
        report.add("rescale_factor", values["rescale_factor"], "1/255")
    pixels = []
    for name in ("image_mean", "image_std"):
        value = values.get(name)
        if not (isinstance(value, list) and len(value) == 3 and all(isinstance(x, (int, float)) for x in value)):
            report.add(name, value, "three numbers")
            continue
        pixels.append(tuple(float(x) for x in value))
    report.check()
    return pixels[0], pixels[1]


def hf_vision_config(config: VisionConfig, *, dtype: str) -> dict[str, Any]:
    """config.json of a `CLIPVisionModel` or `SiglipVisionModel`.

    It has no field for the feature layer; the pixels' mean and deviation belong to preprocessor_config.json.

    Args:
      config: of an encoder.
      dtype: of the weights in the same folder: "float32", "bfloat16" or "float16".

    Raises:
      UserError: no encoder of transformers has these fields, or it refuses the sizes.
    """
    encoder = next((x for x in ENCODERS.values() if all(getattr(config, k) == v for k, v in x.choices.items())), None)
    if encoder is None:
        known = "; ".join(f"{kind}: {dict(x.choices)}" for kind, x in ENCODERS.items())
        found = {name: getattr(config, name) for name in next(iter(ENCODERS.values())).choices}
        raise UserError(f"config.model.vision with {found} is not an encoder of transformers, which has {known}")
    activation = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}[config.activation]
    has_head = "vision_use_head" in encoder.config().to_dict()
    if config.pool and not has_head:
        raise UserError(f"config.model.vision.pool = True, but {encoder.model} of transformers has no pooling head")
    return make(
        encoder.config,
        architectures=[encoder.model],
        dtype=dtype,
        **{theirs: getattr(config, ours) for ours, theirs in _FIELDS.items()},
        hidden_act=activation,
        **({"vision_use_head": config.pool} if has_head else {}),
    )


def open_vision(spec: str, path: Path, feature_layer: int = _FEATURE_LAYER) -> WeightSource:
    """Opens a folder of an encoder; arguments as of `Codec.open` and `read_vision`."""
    source = part_source(CODEC, spec, path, open_tensors(path), {"vision": read_vision(path, feature_layer)})
    return with_stored_vision(source)


def with_stored_vision(source: WeightSource) -> WeightSource:
    """`source` without what the files of its encoder lack and features do not need: SigLIP's pooling head, last blocks.

    LLaVA-NeXT deletes both from its towers before it saves them: of 27 blocks with feature layer -2 it keeps 26, which
    is the same as 26 blocks with feature layer -1.
    """
    piece, config = source.pieces[0], source.configs.get("vision")
    prefix, tensors = piece.spelling.vision, piece.tensors
    if not isinstance(config, VisionConfig) or prefix is None:
        return source
    if f"{prefix}head.probe" not in tensors:
        config = dataclasses.replace(config, pool=False)
    first = f"{prefix}{_BLOCK}layer_norm1.weight"
    stored = sum(first.replace("{i}", str(i)) in tensors for i in range(config.num_layers))
    needed = config.num_layers + 1 + config.feature_layer
    if needed <= stored < config.num_layers:
        config = dataclasses.replace(config, num_layers=stored, feature_layer=needed - 1 - stored)
    return dataclasses.replace(source, configs={**source.configs, "vision": config})


def _write(folder: Path, export: Export) -> tuple[dict[str, Any], list[str]]:
    return hf_vision_config(export.config.vision, dtype=export.dtype), []


CODEC = Codec(
    name="vision",
    open=open_vision,
    hub=ALONE,
    known=KNOWN,
    rules=lambda config, spelling: vision_rules(spelling),
    sizes=lambda config: vision_sizes(config.vision),
    ignored=IGNORED,
    write=_write,
)
