"""The Hugging Face folder of a Qwen-VL: opened and written."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import transformers

from jaxvlm.errors import UserError
from jaxvlm.families.qwen_vl.hf_config import HF_KINDS, hf_qwen_config, read_qwen
from jaxvlm.families.qwen_vl.processor import IMAGE_TOKEN, VIDEO_TOKEN, read_limits, read_video, write_processor
from jaxvlm.families.qwen_vl.reference import ReferenceProcessor
from jaxvlm.families.qwen_vl.weights import KNOWN, MEMORY, adapter_names, hub_spelling, qwen_rules, qwen_sizes
from jaxvlm.weights.codec import Codec, Export, Reference
from jaxvlm.weights.hf.decoder import CODEC as DECODER
from jaxvlm.weights.hf.strict import CONFIG_FILE, read_config
from jaxvlm.weights.hf.vision import read_pixels
from jaxvlm.weights.reading import open_tensors
from jaxvlm.weights.saved_tokenizer import write_text_files
from jaxvlm.weights.source import WeightSource, part_source

_UNITS = 16384  # patches of a row of an imported run, which is only asked


def _open(spec: str, path: Path) -> WeightSource:
    """Opens a folder of any of the kinds."""
    found = read_qwen(read_config(path), str(path / CONFIG_FILE), read_pixels(path))
    media = read_limits(path, found.vision.patch_size, found.projector.merge_size)
    notes: tuple[str, ...] = ()
    if not media:
        least, most = HF_KINDS[found.kind].limits
        media = {"min_pixels": least, "max_pixels": most}
        notes = (
            f"an image processor, which {spec} lacks: images have {least} to {most} pixels, as the published ones",
        )
    video = read_video(path)
    media |= {"units": _UNITS, "video": video and dataclasses.asdict(video)}
    return part_source(
        CODEC,
        spec,
        path,
        open_tensors(path),
        {"vision": found.vision, "projector": found.projector, "language": found.language},
        family="qwen_vl",
        model={"kind": found.kind, "tokens_per_second": found.tokens_per_second},
        media=media,
        image_token_id=found.image_token_id,
        notes=notes,
    )


def _image_token(tokenizer: Any) -> tuple[Any, int, list[str]]:
    """The tokenizer as it is, and the id of its placeholder of images.

    Raises:
      UserError: it has none, so no processor of transformers could use it.
    """
    vocab = tokenizer.get_vocab()
    if missing := [token for token in (IMAGE_TOKEN, VIDEO_TOKEN) if token not in vocab]:
        raise UserError(
            f"the tokenizer has no {' and no '.join(missing)}, and a Qwen-VL of transformers needs them; add them to "
            "the tokenizer before training"
        )
    return tokenizer, vocab[IMAGE_TOKEN], []


def _write(folder: Path, export: Export) -> tuple[dict[str, Any], list[str]]:
    values = hf_qwen_config(
        export.config,
        export.tokenizer,
        image_token_id=export.image_token_id,
        video_token_id=export.tokenizer.get_vocab()[VIDEO_TOKEN],
        dtype=export.dtype,
        max_positions=export.max_positions,
    )
    write_text_files(folder, export)
    write_processor(folder, export.config, export.media)
    return values, []


CODEC = Codec(
    name="qwen_vl",
    open=_open,
    hub=MEMORY,
    known=KNOWN,
    written=hub_spelling,
    rules=qwen_rules,
    sizes=qwen_sizes,
    ignored=DECODER.ignored,
    write=_write,
    extend_tokenizer=_image_token,
    adapters=adapter_names,
    reference=Reference(
        transformers.AutoModelForImageTextToText, ReferenceProcessor, ReferenceProcessor.inputs, IMAGE_TOKEN
    ),
)
