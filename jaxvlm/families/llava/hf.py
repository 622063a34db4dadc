"""LLaVA's config.json, in transformers' form and in the original project's: read, written, opened.

Source: transformers models/llava/configuration_llava.py; LLaVA's own llava/model/llava_arch.py and
llava/model/language_model/llava_llama.py for the fields that begin with "mm_".
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

from jaxvlm.config import PARTS, DecoderConfig, ProjectorConfig, VisionConfig
from jaxvlm.data.media.images import decode
from jaxvlm.errors import UserError
from jaxvlm.families.llava.config import LlavaConfig
from jaxvlm.families.llava.image_processor import read_aspect
from jaxvlm.families.llava.processor import ensure_image_token, write_processor
from jaxvlm.families.llava.weights import HUB, KNOWN, adapter_names, is_of_transformers, llava_rules, llava_sizes
from jaxvlm.models.projector import projector_depth
from jaxvlm.weights.codec import Codec, Export, Reference
from jaxvlm.weights.hf.decoder import CODEC as DECODER
from jaxvlm.weights.hf.decoder import decoder_config, decoder_kind, hf_language_config
from jaxvlm.weights.hf.strict import CONFIG_FILE, Report, check_fields, fill, make, read_config, requirement, unknown
from jaxvlm.weights.hf.vision import CODEC as VISION
from jaxvlm.weights.hf.vision import (
    hf_vision_config,
    open_vision,
    read_pixels,
    read_vision,
    vision_config,
    vision_kind,
    with_stored_vision,
)
from jaxvlm.weights.hub import find_source
from jaxvlm.weights.reading import open_tensors
from jaxvlm.weights.saved_tokenizer import write_text_files
from jaxvlm.weights.source import WeightSource, part_source
from jaxvlm.weights.spelling import Spelling
from jaxvlm.weights.tensors import TensorSource
from jaxvlm.weights.writing import write_pickle

# `model_type` of the original LLaVA code -> its decoder. The code wrote "llava" before version 1.2.
# "llava_qwen2" is another name of "llava_qwen"; "share4v" is ShareGPT4V.
_ORIGINAL = {"llava_llama": "llama", "llava": "llama", "share4v": "llama", "llava_mistral": "mistral"}
_ORIGINAL |= dict.fromkeys(["llava_qwen", "llava_qwen2"], "qwen2")
# A processor of transformers gets an image that something else has opened, so no file of a folder can say it.
_OTHER_READERS = (
    "transformers drops the transparency of a file and clips 16-bit values at 255, where this model was trained on "
    "images over white and on scaled values; open such files yourself and give it RGB images (docs/weights.md)"
)
PROJECTOR = ProjectorConfig("mlp2x_gelu")  # the only one of transformers

# `image_seq_length` only counts placeholders, and in old files has its default whatever the encoder is.
_IRRELEVANT = frozenset({"ignore_index", "vocab_size", "image_seq_length"})
_ORIGINAL_IRRELEVANT_NAMES = """
freeze_mm_mlp_adapter tune_mm_mlp_adapter freeze_mm_vision_resampler tune_mm_vision_resampler pretrain_mm_mlp_adapter
mm_projector_lr mm_vision_tower_lr tokenizer_model_max_length tokenizer_padding_side version
image_crop_resolution image_split_resolution add_faster_video faster_token_stride add_time_instruction force_sample
mm_spatial_pool_stride mm_spatial_pool_mode mm_newline_position use_pos_skipping pos_skipping_range
vision_tower_pretrained
"""  # the last three lines: LLaVA-NeXT's, of crops, tiles and videos only
_ORIGINAL_IRRELEVANT = frozenset(_ORIGINAL_IRRELEVANT_NAMES.split())

# Required values of fields, each with the reason; a field absent from file and class passes.
_REQUIRED: dict[str, tuple[Any, str]] = {
    "projector_hidden_act": ("gelu", "exact GELU"),
    "multimodal_projector_bias": (True, "a projector with biases"),
}
_ORIGINAL_REQUIRED: dict[str, tuple[Any, str]] = {
    "use_mm_proj": (True, "a model with a projector"),
    "mm_vision_select_feature": ("patch", "patches without the class token"),
    "mm_use_im_start_end": (False, "no tokens around an image"),
    "mm_use_im_patch_token": (False, "no tokens of patches"),
    "mm_resampler_type": (None, "no resampler"),
    "mm_patch_merge_type": ("flat", "one view of each image; LLaVA-NeXT's tiles are another model"),
    "s2": (False, "one scale"),
}


@dataclasses.dataclass(frozen=True)
class Llava:
    """The config.json of a LLaVA in transformers' form."""

    vision: VisionConfig
    projector: ProjectorConfig
    language: DecoderConfig
    image_token_id: int


@dataclasses.dataclass(frozen=True)
class OriginalLlava:
    """The config.json of a LLaVA in the original project's form; its encoder is another folder."""

    projector: ProjectorConfig
    language: DecoderConfig
    vision_tower: str  # a name on the hub or a folder
    vision_embed_dim: int | None  # of the encoder, if the file has it
    feature_layer: int  # for `read_vision` of that folder
    aspect: str  # as in config.data.media.aspect
    tower_trained: bool  # the encoder was trained too: its weights are in this folder, not in that


def is_original(values: Mapping[str, Any]) -> bool:
    """Whether the config.json of a LLaVA is in the original project's form."""
    marks = "mm_vision_tower" in values or "LlavaLlamaForCausalLM" in (values.get("architectures") or ())
    return marks or values.get("model_type") != "llava"


def read_llava(folder: str | Path) -> Llava:
    """The parts of a folder of `LlavaForConditionalGeneration`.

    Raises:
      UserError: no config.json, another model, or unsupported fields, all in one message.
    """
    values = read_config(folder)
    report = Report(str(Path(folder) / CONFIG_FILE))
    if values.get("model_type") != "llava":
        raise unknown(values.get("model_type"), ["llava"], report.where)
    text = {"model_type": "llama"} | (values.get("text_config") or {})
    text_kind = decoder_kind(text, f"{report.where}, text_config")
    vision = values.get("vision_config") or {}
    vision_kind(vision, f"{report.where}, vision_config")

    parts = {"text_config", "vision_config"}
    mapped = {"image_token_index", "image_token_id", "vision_feature_layer", "vision_feature_select_strategy"}
    filled = fill(transformers.LlavaConfig, values, "", report)
    if filled is None:
        raise report.error()
    check_fields(
        transformers.LlavaConfig,
        values,
        filled,
        "",
        report,
        mapped=mapped | parts | {"tie_word_embeddings", "hidden_size"},
        required=_REQUIRED,
        irrelevant=_IRRELEVANT,
    )
    # A hub file has only a part's own fields; the defaults of LLaVA's class for an encoder are CLIP-L/336's.
    encoder = vision_config(vision or filled["vision_config"], 0, read_pixels(folder), report, "vision_config.")
    decoder = decoder_config(text_kind, text, "text_config.", report)
    if encoder is not None:
        layer = _negative_layer(filled["vision_feature_layer"], encoder.num_layers, report)
        encoder = dataclasses.replace(encoder, feature_layer=layer)
        strategy, name = _strategy(encoder), vision_kind(vision, report.where).partition("_")[0]
        if filled["vision_feature_select_strategy"] != strategy:
            report.add(
                "vision_feature_select_strategy",
                filled["vision_feature_select_strategy"],
                f'"{strategy}" for {name} (all patches and no class token)',
            )
    if decoder is not None and filled["tie_word_embeddings"]:  # the class has taken it from either place
        decoder = dataclasses.replace(decoder, tie_embeddings=True)
    width = values.get("hidden_size")  # LLaMA-Factory writes the decoder's
    if decoder is not None and width not in (None, decoder.embed_dim):
        report.add("hidden_size", width, f"{decoder.embed_dim}, as in text_config")
    report.check()
    assert encoder is not None and decoder is not None  # else there was something to report
    return Llava(encoder, PROJECTOR, decoder, filled["image_token_index"])


def read_original_llava(folder: str | Path) -> OriginalLlava:
    """The parts of a folder written by the original LLaVA code: a decoder's config with "mm_" fields.

    Raises:
      UserError: no config.json, another model, or unsupported fields, all in one message.
    """
    values = read_config(folder)
    report = Report(str(Path(folder) / CONFIG_FILE))
    kind = values.get("model_type")
    if kind not in _ORIGINAL:
        raise unknown(kind, _ORIGINAL, report.where)
    own = set(_ORIGINAL_REQUIRED) | {
        "mm_vision_tower",
        "mm_projector_type",
        "mm_vision_select_layer",
        "mm_hidden_size",
        "unfreeze_mm_vision_tower",
        "mm_tunable_parts",
        "image_aspect_ratio",
        "image_grid_pinpoints",
    }
    irrelevant = _ORIGINAL_IRRELEVANT
    text = {name: value for name, value in values.items() if name not in own | irrelevant}
    decoder = decoder_config(_ORIGINAL[kind], text, "", report)
    for name, (expected, why) in _ORIGINAL_REQUIRED.items():
        if name in values and values[name] != expected:
            report.add(name, values[name], requirement(expected, why))
    aspect = values.get("image_aspect_ratio") or "square"  # LLaVA omits it where it has no effect
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
        tower_trained=bool(values.get("unfreeze_mm_vision_tower"))
        or "mm_vision_tower" in str(values.get("mm_tunable_parts")),
    )


def hf_llava_config(
    config: LlavaConfig, tokenizer: Any, *, image_token_id: int, dtype: str, max_positions: int
) -> dict[str, Any]:
    """config.json of a `LlavaForConditionalGeneration`.

    Args:
      config: of the whole model.
      tokenizer: of transformers; its BOS, EOS and padding ids are written.
      image_token_id: of "<image>" (`processor.ensure_image_token`).
      dtype: of the weights in the same folder: "float32", "bfloat16" or "float16".
      max_positions: maximum sequence length for servers; the weights do not depend on it.

    Raises:
      UserError: a projector that transformers does not have, no row for the image token, or an error of the parts.
    """
    if config.projector != PROJECTOR:
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
    made = make(
        transformers.LlavaConfig,
        architectures=["LlavaForConditionalGeneration"],
        dtype=dtype,
        vision_config=copy.deepcopy(vision),
        text_config=copy.deepcopy(text),
        image_token_index=image_token_id,
        image_seq_length=config.vision.features_per_image,
        vision_feature_layer=config.vision.feature_layer,
        vision_feature_select_strategy=_strategy(config.vision),
        projector_hidden_act="gelu",
        multimodal_projector_bias=True,
        tie_word_embeddings=config.language.tie_embeddings,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return made | {"vision_config": vision, "text_config": text}


def _negative_layer(layer: Any, num_layers: int, report: Report) -> int:
    """The layer counted from the end. Hugging Face's 0 is the first block's input, -1 the last block's output."""
    if not isinstance(layer, int):
        report.add("vision_feature_layer", layer, "one layer (features of several cannot be joined)")
        return -1
    negative = layer - (num_layers + 1) if layer >= 0 else layer
    if not -num_layers <= negative <= -1:
        report.add("vision_feature_layer", layer, f"-{num_layers} to -1, or 1 to {num_layers}")
    return negative


def _strategy(config: VisionConfig) -> str:
    """transformers' word for all patches and no class token; "default" takes the first position away."""
    return "default" if config.class_token else "full"


def _open(spec: str, path: Path) -> WeightSource:
    """Opens a folder in either form."""
    tensors = open_tensors(path)
    if is_original(read_config(path)):
        return _open_original(spec, path)
    llava = read_llava(path)
    configs = {part: getattr(llava, part) for part in PARTS}
    aspect, notes = read_aspect(path, llava.vision.image_size)
    media = {} if aspect is None else {"aspect": aspect}
    settings = {"family": "llava", "media": media, "image_token_id": llava.image_token_id, "notes": tuple(notes)}
    return with_stored_vision(part_source(CODEC, spec, path, tensors, configs, **settings))


def _open_original(spec: str, path: Path) -> WeightSource:
    """A folder of the original LLaVA: perhaps only a projector; the encoder is a folder or a name in its config.

    Raises:
      UserError: the encoder was trained and its weights are missing, or it has another width than config.json states.
    """
    llava = read_original_llava(path)
    configs: dict[str, Any] = {"projector": llava.projector, "language": llava.language}
    # Its code names a conversation of its own in place of a chat template; that of LLaVA-1.5 is "v1".
    settings = {"family": "llava", "template": "vicuna_v1", "media": {"aspect": llava.aspect}}
    source = part_source(CODEC, spec, path, open_tensors(path), configs, **settings)
    if "language" not in source.configs:
        return source
    # A path in the config is relative to its folder, if it exists there.
    inside = path / llava.vision_tower
    tower = find_source(str(inside) if inside.is_dir() else llava.vision_tower)
    config, inside_too = read_vision(tower, llava.feature_layer), "vision" in source.pieces[0].spelling.prefixes()
    if llava.vision_embed_dim not in (None, config.embed_dim):
        raise UserError(
            f"{path / CONFIG_FILE}: mm_hidden_size = {llava.vision_embed_dim} must be the encoder's width, and "
            f"{llava.vision_tower} has {config.embed_dim}; name the encoder of the training as mm_vision_tower"
        )
    if llava.tower_trained and not inside_too:
        raise UserError(
            f"{path / CONFIG_FILE}: the vision tower was trained (unfreeze_mm_vision_tower, mm_tunable_parts), so its "
            f"weights must be in this folder, and it has none; add them, or remove the field to take the encoder of "
            f"{llava.vision_tower}"
        )
    if inside_too:
        return with_stored_vision(dataclasses.replace(source, configs={**source.configs, "vision": config}))
    encoder = open_vision(spec, tower, llava.feature_layer)
    configs = {**source.configs, **encoder.configs}
    return dataclasses.replace(source, pieces=source.pieces + encoder.pieces, configs=configs)


def _write(folder: Path, export: Export) -> tuple[dict[str, Any], list[str]]:
    values = hf_llava_config(
        export.config,
        export.tokenizer,
        image_token_id=export.image_token_id,
        dtype=export.dtype,
        max_positions=export.max_positions,
    )
    write_text_files(folder, export)
    write_processor(folder, export.config.vision, export.media.aspect)
    return values, [_OTHER_READERS]


def _save_projector(folder: Path, tensors: TensorSource, shard_bytes: int) -> None:
    write_pickle(folder / "mm_projector.bin", tensors)


def _write_projector(folder: Path, export: Export) -> tuple[dict[str, Any], list[str]]:
    """config.json of the original LLaVA, which its first training stage saves together with mm_projector.bin."""
    config = export.config
    kinds = {decoder: kind for kind, decoder in reversed(_ORIGINAL.items())}
    if config.language.architecture not in kinds:
        raise UserError(
            f'config.model.language.architecture = "{config.language.architecture}", the original LLaVA has only '
            f"{', '.join(sorted(kinds))}; export the whole model instead"
        )
    values = hf_language_config(
        config.language, export.tokenizer, dtype=export.dtype, max_positions=export.max_positions
    )
    tower = "vision"
    values |= {
        "model_type": kinds[config.language.architecture],
        "mm_vision_tower": tower,
        "mm_projector_type": config.projector.kind,
        "mm_hidden_size": config.vision.embed_dim,
        "mm_vision_select_layer": config.vision.feature_layer,
        "mm_vision_select_feature": "patch",
        "image_aspect_ratio": "pad" if export.media.aspect == "pad" else None,
        "use_mm_proj": True,
    }
    return values, [f'config.json names the encoder "{tower}": put its name there, or its folder (--part vision)']


def _inputs(processor: Any, text: str, images: list[Path]) -> Mapping[str, Any]:
    opened = [decode(str(image), "--image") for image in images]
    bos = processor.tokenizer.bos_token  # as in `apply_chat_template` of a processor
    special = bos is None or not text.startswith(bos)
    return processor(text=text, images=opened or None, return_tensors="pt", add_special_tokens=special)


_PROJECTOR_ALONE = Codec(
    name="projector",
    open=_open,
    hub=Spelling(projector="model.mm_projector.{2i}."),
    known=KNOWN,
    rules=lambda config, spelling: llava_rules(config, Spelling(projector=spelling.projector)),
    sizes=llava_sizes,
    ignored=(),
    write=_write_projector,
    save=_save_projector,
)
CODEC = Codec(
    name="llava",
    parts={"projector": _PROJECTOR_ALONE},
    open=_open,
    hub=HUB,
    known=KNOWN,
    rules=llava_rules,
    sizes=llava_sizes,
    ignored=(*VISION.ignored, *DECODER.ignored),
    write=_write,
    loads=is_of_transformers,
    extend_tokenizer=ensure_image_token,
    adapters=adapter_names,
    reference=Reference(transformers.AutoModelForImageTextToText, transformers.AutoProcessor, _inputs),
)
