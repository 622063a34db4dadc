"""The processor of a Qwen-VL folder by transformers' own parts, of which none needs torchvision.

`AutoProcessor` also makes a video processor, which does. Equal to it for text and images.

Source: transformers models/qwen2_vl/processing_qwen2_vl.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from jaxvlm.data.media.images import decode
from jaxvlm.errors import UserError
from jaxvlm.families.qwen_vl.processor import IMAGE_TOKEN
from jaxvlm.weights.hf.vision import read_image_processor


class ReferenceProcessor:
    """Tokenizer and image processor of a folder."""

    def __init__(self, tokenizer: Any, images: Any):
        self.tokenizer, self.images = tokenizer, images

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> ReferenceProcessor:
        """Loads both.

        Raises:
          UserError: the folder has no image processor.
        """
        path, values = read_image_processor(folder)
        if not values:
            raise UserError(
                f"{path.parent} has no image processor; copy the preprocessor_config.json of its base model"
            )
        images = Qwen2VLImageProcessorPil.from_pretrained(folder)
        return cls(transformers.AutoTokenizer.from_pretrained(folder), images)

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        """As transformers'."""
        return self.tokenizer.apply_chat_template(messages, **options)

    def inputs(self, text: str, images: list[Path]) -> Mapping[str, Any]:
        """What the model takes, as torch tensors of one row."""
        found: dict[str, Any] = {}
        counts = iter(())
        if images:
            opened = [decode(str(image), "--image") for image in images]
            found |= self.images(opened, return_tensors="pt")
            counts = iter((np.asarray(found["image_grid_thw"]).prod(axis=1) // self.images.merge_size**2).tolist())
        text = re.sub(re.escape(IMAGE_TOKEN), lambda _: IMAGE_TOKEN * next(counts), text)
        found |= self.tokenizer(text, return_tensors="pt")
        found["mm_token_type_ids"] = (found["input_ids"] == self.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)).int()
        return found
