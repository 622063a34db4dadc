"""The processor of an exported LLaVA folder: the token that stands for an image, and the settings of pixels.

With the tokenizer of `exported_settings.py` transformers' `AutoProcessor` gives the ids and pixels of
`data/text/conversation.py` and `data/media/images.py`.

Source: transformers models/llava/processing_llava.py, image_processing_llava.py and processing_utils.py.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from jaxvlm.config import VisionConfig
from jaxvlm.data.records import IMAGE
from jaxvlm.families.llava.image_processor import image_processor


def ensure_image_token(tokenizer: Any) -> tuple[Any, int, list[str]]:
    """Returns a tokenizer with "<image>" as one special token, as `LlavaProcessor` needs.

    The caller checks that the model has a row for its id (`hf.hf_llava_config` does): Vicuna's 32,000
    rows have no free one, Qwen's tokenizers have fewer tokens than the model has rows.

    Args:
      tokenizer: of transformers; it is not changed.

    Returns:
      The tokenizer or an extended copy of it, the token's id, and the tokens that were added ([] or ["<image>"]).
    """
    known = tokenizer.get_vocab().get(IMAGE)
    if known is not None and IMAGE in tokenizer.all_special_tokens:
        return tokenizer, known, []
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens(
        {"extra_special_tokens": [AddedToken(IMAGE, normalized=False, special=True)]},
        replace_extra_special_tokens=False,
    )
    return tokenizer, tokenizer.convert_tokens_to_ids(IMAGE), [] if known is not None else [IMAGE]


def write_processor(folder: Path, vision: VisionConfig, aspect: str) -> None:
    """Writes preprocessor_config.json and processor_config.json into a folder that exists.

    The image processor is LLaVA's for aspect "pad", CLIP's for "square" and SigLIP's for "squeeze", with the encoder's
    own mean and standard deviation.

    Args:
      vision: of the model.
      aspect: `data.media.aspect` of the stage whose result is exported.
    """
    _write(folder / "preprocessor_config.json", image_processor(vision, aspect))
    _write(
        folder / "processor_config.json",
        {
            "processor_class": "LlavaProcessor",
            "image_token": IMAGE,
            "patch_size": vision.patch_size,
            "vision_feature_select_strategy": "default" if vision.class_token else "full",
            "num_additional_image_tokens": int(vision.class_token),  # the class token, which "default" removes
        },
    )


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
