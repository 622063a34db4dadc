"""config.json of Hugging Face folders <-> our configs.

Reading is strict. The config class of transformers fills in what a file leaves out; then every field is one that we
have, one that must have a certain value, one on which no feature or logit depends, or at the class's default. Any
other is an error, so that a checkpoint never becomes another model in silence. All problems of a file come in one
message.

Source: transformers models/{clip,siglip,llama,mistral,qwen2,qwen3,llava}/configuration_*.py; LLaVA's own
llava/model/llava_arch.py and llava/model/language_model/llava_llama.py for the fields that begin with "mm_".
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

from jaxvlm.config import DecoderConfig, ProjectorConfig, RopeScaling, VisionConfig
from jaxvlm.errors import UserError
from jaxvlm.families.llava.config import LlavaConfig
from jaxvlm.models.projector import projector_depth

CONFIG_FILE = "config.json"

_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
_VISION = {"clip_vision_model": transformers.CLIPVisionConfig, "siglip_vision_model": transformers.SiglipVisionConfig}
_WHOLE_VISION = {"clip": transformers.CLIPConfig, "siglip": transformers.SiglipConfig}  # with a text encoder, unused
_LANGUAGE = {
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
}
# Of the original LLaVA code, and whose decoder each has. "llava" is what that code wrote before version 1.2.
_ORIGINAL = {"llava_llama": "llama", "llava": "llama", "llava_mistral": "mistral", "llava_qwen": "qwen2"}
_FEATURE_LAYER = -2  # LLaVA's choice, for encoders that come without a decoder
_PIXELS = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}

# Ours on the left, Hugging Face's on the right.
_VISION_FIELDS = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "embed_dim": "hidden_size",
    "mlp_dim": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "norm_epsilon": "layer_norm_eps",
}
_DECODER_FIELDS = {
    "vocab_size": "vocab_size",
    "embed_dim": "hidden_size",
    "mlp_dim": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "norm_epsilon": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}
_ROPE_FIELDS = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_positions": "original_max_position_embeddings",
}

# On these neither features nor logits depend: bookkeeping of transformers 4 and 5, token ids, dropout and
# initialisation, and the length of rows, since rotary positions go on for ever (windows are checked otherwise).
_IRRELEVANT_NAMES = """
_name_or_path name_or_path _commit_hash _attn_implementation_autoset attn_implementation architectures auto_map dtype
torch_dtype transformers_version transformers.js_config model_type is_llama_config unsloth_fixed use_cache return_dict
output_attentions output_hidden_states torchscript use_bfloat16 tf_legacy_loss tokenizer_class prefix id2label label2id
num_labels problem_type finetuning_task task_specific_params chunk_size_feed_forward is_encoder_decoder
tie_encoder_decoder cross_attention_hidden_size bos_token_id eos_token_id pad_token_id sep_token_id
decoder_start_token_id attention_dropout dropout initializer_range initializer_factor pretraining_tp
max_position_embeddings max_sequence_length max_window_layers use_sliding_window
"""
_IRRELEVANT = frozenset(_IRRELEVANT_NAMES.split()) | frozenset(transformers.GenerationConfig().to_dict())
_VISION_IRRELEVANT = frozenset({"projection_dim", "vocab_size", "tie_word_embeddings"})  # of the pooled output, of text
# `image_seq_length` only counts placeholders, and in old files stands at its default whatever the encoder is.
_LLAVA_IRRELEVANT = frozenset({"ignore_index", "vocab_size", "image_seq_length"})
_ORIGINAL_IRRELEVANT_NAMES = """
freeze_mm_mlp_adapter tune_mm_mlp_adapter freeze_mm_vision_resampler tune_mm_vision_resampler pretrain_mm_mlp_adapter
mm_projector_lr mm_vision_tower_lr tokenizer_model_max_length tokenizer_padding_side version
"""
_ORIGINAL_IRRELEVANT = frozenset(_ORIGINAL_IRRELEVANT_NAMES.split())

# What a field must be, and in brackets why; a field that is not in the file and not in the class passes.
_DECODER_REQUIRED: dict[str, tuple[Any, str]] = {
    "hidden_act": ("silu", "the gate of the MLP"),
    "attention_bias": (False, "biases at queries, keys and values only, as Qwen2 has them"),
    "mlp_bias": (False, "no biases in the MLP"),
    "sliding_window": (None, "full attention"),
    "rope_interleaved": (False, "halves are rotated, not pairs"),
    "use_mrope": (False, "one position for each token"),
    "is_decoder": (False, ""),
    "add_cross_attention": (False, ""),
    "pruned_heads": ({}, ""),
}
_VISION_REQUIRED: dict[str, tuple[Any, str]] = {
    "num_channels": (3, "RGB"),
    "vision_use_head": (True, "SigLIP with its pooling head"),
    "is_decoder": (False, ""),
    "add_cross_attention": (False, ""),
    "pruned_heads": ({}, ""),
}
_LLAVA_REQUIRED: dict[str, tuple[Any, str]] = {
    "projector_hidden_act": ("gelu", "exact GELU"),
    "multimodal_projector_bias": (True, "a projector with biases"),
}
_ORIGINAL_REQUIRED: dict[str, tuple[Any, str]] = {
    "use_mm_proj": (True, "a model with a projector"),
    "mm_vision_select_feature": ("patch", "patches without the class token"),
    "mm_use_im_start_end": (False, "no tokens round an image"),
    "mm_use_im_patch_token": (False, "no tokens of patches"),
    "mm_resampler_type": (None, "no resampler"),
    "mm_patch_merge_type": ("flat", "one view of each image; LLaVA-NeXT's tiles are another model"),
    "s2": (False, "one scale"),
}


@dataclasses.dataclass(frozen=True)
class Llava:
    """What config.json of a LLaVA in transformers' form says."""

    vision: VisionConfig
    projector: ProjectorConfig
    language: DecoderConfig
    image_token_id: int


@dataclasses.dataclass(frozen=True)
class OriginalLlava:
    """What config.json of a LLaVA in the original project's form says; its encoder is another folder."""

    projector: ProjectorConfig
    language: DecoderConfig
    vision_tower: str  # a name on the hub or a folder
    vision_embed_dim: int | None  # of the encoder, if the file says so
    feature_layer: int  # for `read_vision` of that folder
    aspect: str  # as in config.data.media.aspect
    tower_trained: bool  # the encoder was trained too: its weights are in this folder, not in that


def read_config(folder: str | Path) -> dict[str, Any]:
    """The dict in config.json.

    Raises:
      UserError: there is no such file, or it is not a JSON object.
    """
    return _read_json(Path(folder) / CONFIG_FILE, "point at a folder that `save_pretrained` of a model wrote")


def hf_folder_kind(folder: str | Path) -> str:
    """What a folder holds: "llava", "llava_original", "vision" or "language".

    Raises:
      UserError: no config.json, or a `model_type` that we do not have.
    """
    values = read_config(folder)
    kind = values.get("model_type")
    if kind == "llava":
        original = "mm_vision_tower" in values or "LlavaLlamaForCausalLM" in (values.get("architectures") or ())
        return "llava_original" if original else "llava"
    kinds = (
        [(name, "llava_original") for name in _ORIGINAL]
        + [(name, "vision") for name in (*_VISION, *_WHOLE_VISION)]
        + [(name, "language") for name in _LANGUAGE]
    )
    for name, found in kinds:
        if kind == name:
            return found
    raise _unknown(kind, [name for name, _ in kinds], str(Path(folder) / CONFIG_FILE))


def read_vision(folder: str | Path, feature_layer: int = _FEATURE_LAYER) -> VisionConfig:
    """The encoder of a folder of CLIP or SigLIP, with its text encoder or without.

    Mean and standard deviation of the pixels come from the folder's preprocessor_config.json, or are the family's own
    where there is none. How images are resized is the recipe's choice (config.data.media.aspect), not the file's.

    Args:
      folder: with config.json.
      feature_layer: whose output is the feature, which such a file does not say: -1 the last block, -2 the one before.

    Raises:
      UserError: no config.json, another model, or fields that we cannot do; all of them.
    """
    values = read_config(folder)
    report = _Report(str(Path(folder) / CONFIG_FILE))
    config = _vision_config(values, feature_layer, _read_pixels(folder), report)
    return report.finish(config)


def read_language(folder: str | Path) -> DecoderConfig:
    """The decoder of a folder of LLaMA, Mistral, Qwen2 or Qwen3 (SmolLM2 and Vicuna are LLaMAs).

    Raises:
      UserError: no config.json, another model, or fields that we cannot do; all of them.
    """
    values = read_config(folder)
    report = _Report(str(Path(folder) / CONFIG_FILE))
    kind = values.get("model_type")
    if kind not in _LANGUAGE:
        raise _unknown(kind, _LANGUAGE, report.where)
    return report.finish(_decoder_config(_LANGUAGE[kind], values, "", report))


def read_llava(folder: str | Path) -> Llava:
    """The parts of a folder of `LlavaForConditionalGeneration`.

    Raises:
      UserError: no config.json, another model, or fields that we cannot do; all of them.
    """
    values = read_config(folder)
    report = _Report(str(Path(folder) / CONFIG_FILE))
    if values.get("model_type") != "llava":
        raise _unknown(values.get("model_type"), ["llava"], report.where)
    text = values.get("text_config") or {}
    text_kind = text.get("model_type", "llama")
    if text_kind not in _LANGUAGE:
        raise _unknown(text_kind, _LANGUAGE, f"{report.where}, text_config")
    vision = values.get("vision_config") or {}
    if (vision_kind := vision.get("model_type", "clip_vision_model")) not in (*_VISION, *_WHOLE_VISION):
        raise _unknown(vision_kind, [*_VISION, *_WHOLE_VISION], f"{report.where}, vision_config")

    parts = {"text_config", "vision_config"}
    mapped = {"image_token_index", "image_token_id", "vision_feature_layer", "vision_feature_select_strategy"}
    filled = _fill(transformers.LlavaConfig, values, "", report)
    if filled is None:
        raise report.error()
    _check(
        transformers.LlavaConfig,
        values,
        filled,
        "",
        report,
        mapped=mapped | parts | {"tie_word_embeddings"},
        required=_LLAVA_REQUIRED,
        irrelevant=_LLAVA_IRRELEVANT,
    )
    # A hub file holds a part's own fields only; those that LLaVA's class gives an encoder are then CLIP-L/336's.
    encoder = _vision_config(vision or filled["vision_config"], 0, _read_pixels(folder), report, "vision_config.")
    decoder = _decoder_config(_LANGUAGE[text_kind], text, "text_config.", report)
    if encoder is not None:
        layer = _negative_layer(filled["vision_feature_layer"], encoder.num_layers, report)
        encoder = dataclasses.replace(encoder, feature_layer=layer)
        strategy = "default" if encoder.family == "clip" else "full"
        if filled["vision_feature_select_strategy"] != strategy:
            report.add(
                "vision_feature_select_strategy",
                filled["vision_feature_select_strategy"],
                f'"{strategy}" for {encoder.family} (all patches and no class token)',
            )
    if decoder is not None and filled["tie_word_embeddings"]:  # the class has taken it from either place
        decoder = dataclasses.replace(decoder, tie_embeddings=True)
    report.check()
    assert encoder is not None and decoder is not None  # else there was something to report
    return Llava(encoder, ProjectorConfig("mlp2x_gelu"), decoder, filled["image_token_index"])


def read_original_llava(folder: str | Path) -> OriginalLlava:
    """The parts of a folder that the original LLaVA code wrote: a decoder's config with "mm_" fields.

    Raises:
      UserError: no config.json, another model, or fields that we cannot do; all of them.
    """
    values = read_config(folder)
    report = _Report(str(Path(folder) / CONFIG_FILE))
    kind = values.get("model_type")
    if kind not in _ORIGINAL:
        raise _unknown(kind, _ORIGINAL, report.where)
    own = set(_ORIGINAL_REQUIRED) | {
        "mm_vision_tower",
        "mm_projector_type",
        "mm_vision_select_layer",
        "mm_hidden_size",
        "unfreeze_mm_vision_tower",
        "image_aspect_ratio",
        "image_grid_pinpoints",
    }
    irrelevant = _ORIGINAL_IRRELEVANT
    text = {name: value for name, value in values.items() if name not in own | irrelevant}
    decoder = _decoder_config(_LANGUAGE[_ORIGINAL[kind]], text, "", report)
    for name, (expected, why) in _ORIGINAL_REQUIRED.items():
        if name in values and values[name] != expected:
            report.add(name, values[name], _expected(expected, why))
    aspect = values.get("image_aspect_ratio") or "square"  # LLaVA leaves it out where it does nothing
    if aspect not in ("pad", "square"):
        report.add("image_aspect_ratio", aspect, '"pad" or "square" (one view of each image)')
    tower, layer = values.get("mm_vision_tower"), values.get("mm_vision_select_layer")
    if not isinstance(tower, str) or not tower:
        report.add("mm_vision_tower", tower, "the name or folder of the encoder")
    if not isinstance(layer, int) or layer >= 0:
        report.add("mm_vision_select_layer", layer, "a negative number (-2 is the block before the last)")
    projector = values.get("mm_projector_type", "linear")  # as in LLaVA 1.0
    try:
        projector_depth(str(projector))
    except UserError:
        report.add("mm_projector_type", projector, '"linear", "mlp2x_gelu", "mlp3x_gelu", ...')
    report.check()
    assert decoder is not None and isinstance(tower, str) and isinstance(layer, int)
    return OriginalLlava(
        ProjectorConfig(str(projector)),
        decoder,
        vision_tower=tower,
        vision_embed_dim=values.get("mm_hidden_size"),
        feature_layer=layer,
        aspect=aspect,
        tower_trained=bool(values.get("unfreeze_mm_vision_tower")),
    )


def hf_vision_config(config: VisionConfig, *, dtype: str) -> dict[str, Any]:
    """config.json of a `CLIPVisionModel` or `SiglipVisionModel`.

    The feature layer has no place in it, and the pixels' mean and deviation belong to preprocessor_config.json.

    Args:
      config: of an encoder.
      dtype: of the weights beside it: "float32", "bfloat16" or "float16".

    Raises:
      UserError: transformers refuses the sizes.
    """
    kind, architecture = f"{config.family}_vision_model", {"clip": "CLIPVisionModel", "siglip": "SiglipVisionModel"}
    activation = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}[config.activation]
    return _make(
        _VISION[kind],
        architectures=[architecture[config.family]],
        dtype=dtype,
        **{theirs: getattr(config, ours) for ours, theirs in _VISION_FIELDS.items()},
        hidden_act=activation,
    )


def hf_language_config(config: DecoderConfig, tokenizer: Any, *, dtype: str, max_positions: int) -> dict[str, Any]:
    """config.json of a `LlamaForCausalLM`, `Qwen2ForCausalLM` or `Qwen3ForCausalLM`.

    Biases make it a Qwen2, norms of queries and keys a Qwen3; all others are written as LLaMA. So a Mistral comes back
    as LLaMA: without its window it is the same function.

    Args:
      config: of a decoder.
      tokenizer: of transformers; its BOS, EOS and padding ids are written.
      dtype: of the weights beside it: "float32", "bfloat16" or "float16".
      max_positions: tokens that servers allow in a row; the function does not depend on it.

    Raises:
      UserError: no family has both biases and norms, or transformers refuses the sizes.
    """
    if config.qkv_bias and config.qk_norm:
        raise UserError(
            "a decoder with both qkv_bias and qk_norm is no model of transformers; "
            "Qwen2 has the first and Qwen3 the second (config.model.language)"
        )
    kind = "qwen2" if config.qkv_bias else "qwen3" if config.qk_norm else "llama"
    scaling = config.rope_scaling
    rope: dict[str, Any] = {"rope_type": "default"}
    if scaling is not None:
        rope = {theirs: getattr(scaling, ours) for ours, theirs in _ROPE_FIELDS.items()} | {"rope_type": "llama3"}
    made = _make(
        _LANGUAGE[kind],
        architectures=[{"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[kind] + "ForCausalLM"],
        dtype=dtype,
        **{theirs: getattr(config, ours) for ours, theirs in _DECODER_FIELDS.items()},
        rope_parameters=rope | {"rope_theta": config.rope_theta},
        max_position_embeddings=max_positions,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # Transformers 4 does not know `rope_parameters` and would take 10,000 without a word.
    return made | {"rope_theta": config.rope_theta, "rope_scaling": None if scaling is None else rope}


def hf_llava_config(
    config: LlavaConfig, tokenizer: Any, *, image_token_id: int, dtype: str, max_positions: int
) -> dict[str, Any]:
    """config.json of a `LlavaForConditionalGeneration`.

    Args:
      config: of the whole model.
      tokenizer: of transformers; its BOS, EOS and padding ids are written.
      image_token_id: of "<image>" (`processor.ensure_image_token`).
      dtype: of the weights beside it: "float32", "bfloat16" or "float16".
      max_positions: tokens that servers allow in a row; the function does not depend on it.

    Raises:
      UserError: a projector that transformers has not, no row for the image token, and what the parts raise.
    """
    if config.projector.kind != "mlp2x_gelu":
        raise UserError(
            f'config.model.projector.kind = "{config.projector.kind}", LLaVA of transformers has only "mlp2x_gelu"; '
            "train with it to export in this form"
        )
    if not 0 <= image_token_id < config.language.vocab_size:
        raise UserError(
            f"the image token has id {image_token_id} and the model {config.language.vocab_size} rows of embeddings; "
            f"{image_token_id + 1} are needed: resize the embeddings"
        )
    vision = hf_vision_config(config.vision, dtype=dtype)
    text = hf_language_config(config.language, tokenizer, dtype=dtype, max_positions=max_positions)
    made = _make(
        transformers.LlavaConfig,
        architectures=["LlavaForConditionalGeneration"],
        dtype=dtype,
        vision_config=copy.deepcopy(vision),
        text_config=copy.deepcopy(text),
        image_token_index=image_token_id,
        image_seq_length=config.vision.features_per_image,
        vision_feature_layer=config.vision.feature_layer,
        vision_feature_select_strategy="default" if config.vision.family == "clip" else "full",
        projector_hidden_act="gelu",
        multimodal_projector_bias=True,
        tie_word_embeddings=config.language.tie_embeddings,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return made | {"vision_config": vision, "text_config": text}


class _Report:
    """The problems of one file."""

    def __init__(self, where: str):
        self.where = where
        self._problems: list[str] = []

    def add(self, name: str, value: Any, expected: str) -> None:
        """`value` as in JSON."""
        self._problems.append(f"{name} = {json.dumps(value, default=str)}, supported: {expected}")

    def say(self, problem: str) -> None:
        self._problems.append(problem)

    def error(self) -> UserError:
        return UserError(f"{self.where} is not a model that we have: " + "; ".join(self._problems))

    def check(self) -> None:
        if self._problems:
            raise self.error()

    def finish(self, config: Any) -> Any:
        self.check()
        assert config is not None  # else there was something to report
        return config


def _unknown(kind: Any, known: Any, where: str) -> UserError:
    hint = ""
    if str(kind).startswith("siglip2"):
        hint = (
            " (siglip2 is NaFlex, for images of any shape; SigLIP 2 of a fixed size, such as "
            'google/siglip2-base-patch16-224, has model_type "siglip")'
        )
    return UserError(f"{where}: model_type {json.dumps(kind)} is not supported{hint}; known: {', '.join(known)}")


def _read_json(path: Path, advice: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; {advice}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); {advice}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}, expected a JSON object; {advice}")
    return values


def _read_pixels(folder: str | Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation in the folder's preprocessor_config.json, None if there is none."""
    path = Path(folder) / "preprocessor_config.json"
    if path.is_file():
        values = _read_json(path, "mend or remove it")
    else:
        path = path.with_name("processor_config.json")  # where transformers 5 writes it
        values = _read_json(path, "mend or remove it").get("image_processor", {}) if path.is_file() else {}
    if not values:
        return None
    report = _Report(str(path))
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


def _fill(cls: type, values: Mapping[str, Any], prefix: str, report: _Report) -> dict[str, Any] | None:
    """The values with the class's defaults; None, and a problem, if it refuses them."""
    try:
        # A copy, since the class writes into the dicts that it gets.
        given = {name: value for name, value in copy.deepcopy(dict(values)).items() if name != "model_type"}
        return cls(**given).to_dict()
    except Exception as error:  # its checks raise a dozen unrelated types
        what = prefix.rstrip(".") or "it"
        report.say(f"{what} is refused by transformers ({type(error).__name__}: {' '.join(str(error).split())})")
        return None


def _check(
    cls: type,
    values: Mapping[str, Any],
    filled: Mapping[str, Any],
    prefix: str,
    report: _Report,
    *,
    mapped: set[str],
    required: Mapping[str, tuple[Any, str]],
    irrelevant: frozenset[str],
) -> None:
    """Reports every field that is not accounted for.

    Args:
      cls: the config class.
      values: what the file says, where a class may have dropped a field.
      filled: what the class made of it.
      prefix: of the fields' names, for messages.
      report: for the problems.
      mapped: fields that the caller reads.
      required: what a field must be, and why.
      irrelevant: fields of this kind of part that change nothing, beside those of all.
    """
    defaults = cls().to_dict()
    for name, value in {**values, **filled}.items():
        if name in mapped or name in _IRRELEVANT | irrelevant:
            continue
        if name in required:
            expected, why = required[name]
            if value != expected:
                report.add(prefix + name, value, _expected(expected, why))
        elif value is not None and not (name in defaults and value == defaults[name]):
            report.say(f"{prefix}{name} = {json.dumps(value, default=str)}, a field that we do not know")


def _expected(expected: Any, why: str) -> str:
    return json.dumps(expected) + (f" ({why})" if why else "")


def _vision_config(
    values: Mapping[str, Any],
    feature_layer: int,
    pixels: tuple[tuple[float, ...], tuple[float, ...]] | None,
    report: _Report,
    prefix: str = "",
) -> VisionConfig | None:
    kind = values.get("model_type", "clip_vision_model")
    if kind in _WHOLE_VISION:
        # Its class also knows the old double spelling, "vision_config_dict".
        whole = _fill(_WHOLE_VISION[kind], values, prefix, report)
        if values.get("quantization_config") is not None:
            report.add(f"{prefix}quantization_config", values["quantization_config"], "weights as they are (null)")
        values = (whole or {}).get("vision_config") or {}
        kind, prefix = f"{kind}_vision_model", f"{prefix}vision_config."
        if whole is None:
            return None
    if kind not in _VISION:
        raise _unknown(kind, [*_VISION, *_WHOLE_VISION], report.where)
    cls, family = _VISION[kind], kind.partition("_")[0]
    filled = _fill(cls, values, prefix, report)
    if filled is None:
        return None
    _check(
        cls,
        values,
        filled,
        prefix,
        report,
        mapped={*_VISION_FIELDS.values(), "hidden_act"},
        required=_VISION_REQUIRED,
        irrelevant=_VISION_IRRELEVANT,
    )
    for name in ("image_size", "patch_size"):
        if not isinstance(filled[name], int):
            report.add(prefix + name, filled[name], "one number (squares)")
    if filled["hidden_act"] not in _ACTIVATIONS:
        report.add(prefix + "hidden_act", filled["hidden_act"], ", ".join(_ACTIVATIONS))
    mean, std = pixels or _PIXELS[family]
    fields = {ours: filled[theirs] for ours, theirs in _VISION_FIELDS.items()}
    return VisionConfig(
        **fields | {"norm_epsilon": float(fields["norm_epsilon"])},
        feature_layer=feature_layer,
        image_mean=(mean[0], mean[1], mean[2]),
        image_std=(std[0], std[1], std[2]),
        family=family,
        activation=_ACTIVATIONS.get(filled["hidden_act"], ""),
    )


def _decoder_config(cls: type, values: Mapping[str, Any], prefix: str, report: _Report) -> DecoderConfig | None:
    filled = _fill(cls, values, prefix, report)
    if filled is None:
        return None
    rope = {"rope_parameters", "rope_theta", "rope_scaling", "partial_rotary_factor"}
    mapped = {*_DECODER_FIELDS.values(), "layer_types"} | rope
    # Qwen2 and Qwen3 write a window and do not use it: the class has then put None in its place.
    _check(cls, values, filled, prefix, report, mapped=mapped, required=_DECODER_REQUIRED, irrelevant=frozenset())
    kinds = sorted(set(filled.get("layer_types") or ["full_attention"]))
    if kinds != ["full_attention"]:
        report.add(f"{prefix}layer_types", kinds, '"full_attention" in every layer')
    theta, scaling = _rope(filled.get("rope_parameters") or {}, prefix, report)
    # Qwen2's class has no field for it.
    filled["head_dim"] = filled.get("head_dim") or filled["hidden_size"] // filled["num_attention_heads"]
    fields = {ours: filled[theirs] for ours, theirs in _DECODER_FIELDS.items()}
    return DecoderConfig(
        **fields | {"norm_epsilon": float(fields["norm_epsilon"])},
        rope_theta=theta,
        rope_scaling=scaling,
        qkv_bias=cls is transformers.Qwen2Config,
        qk_norm=cls is transformers.Qwen3Config,
    )


def _rope(rope: Mapping[str, Any], prefix: str, report: _Report) -> tuple[float, RopeScaling | None]:
    """Reads `rope_parameters`, into which the class has put the older `rope_theta` and `rope_scaling` too."""
    kind, theta = rope.get("rope_type", "default"), rope.get("rope_theta")
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    numbers = tuple(_ROPE_FIELDS.values())
    if kind == "llama3":
        known |= set(numbers)
    if kind not in ("default", "llama3"):
        report.add(f"{prefix}rope_type", kind, "default, llama3")
        return 0.0, None
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        report.add(f"{prefix}partial_rotary_factor", rope["partial_rotary_factor"], "1.0 (all of a head is rotated)")
    for name in sorted(set(rope) - known):
        if rope[name] is not None:
            report.say(f"{prefix}rope_parameters.{name} = {json.dumps(rope[name])}, a field that we do not know")
    missing = [name for name in (*(numbers if kind == "llama3" else ()), "rope_theta") if rope.get(name) is None]
    if missing:
        report.say(f"{prefix}rope_parameters lacks {', '.join(missing)}")
        return 0.0, None
    if kind == "default":
        return float(theta), None  # type: ignore[arg-type]
    scaling = {ours: float(rope[theirs]) for ours, theirs in _ROPE_FIELDS.items() if ours != "original_max_positions"}
    positions = int(rope["original_max_position_embeddings"])
    return float(theta), RopeScaling(**scaling, original_max_positions=positions)  # type: ignore[arg-type]


def _negative_layer(layer: Any, num_layers: int, report: _Report) -> int:
    """Counted from the end, as ours is. Hugging Face's 0 is what enters the first block, -1 the last block's output."""
    if not isinstance(layer, int):
        report.add("vision_feature_layer", layer, "one layer (features of several cannot be joined)")
        return -1
    negative = layer - (num_layers + 1) if layer >= 0 else layer
    if not -num_layers <= negative <= -1:
        report.add("vision_feature_layer", layer, f"-{num_layers} to -1, or 1 to {num_layers}")
    return negative


def _make(cls: type, **values: Any) -> dict[str, Any]:
    """The config's dict, without what says nothing: fields at None, and labels of classifiers."""
    try:
        made = cls(**values).to_dict()
    except Exception as error:  # its checks raise a dozen unrelated types
        raise UserError(f"{cls.__name__} of transformers refuses the model ({' '.join(str(error).split())})") from error
    noise = {"id2label", "label2id", "_name_or_path"}
    return {name: value for name, value in made.items() if value is not None and name not in noise}
