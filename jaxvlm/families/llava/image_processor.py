"""LLaVA's image processor in a folder of transformers: how images are resized, read and written.

Source: transformers models/clip, models/siglip and models/llava, image_processing_*.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxvlm.config import VisionConfig
from jaxvlm.weights.hf.vision import read_image_processor

_BICUBIC = 3  # Pillow's number
_CLASSES = {"pad": "LlavaImageProcessor", "square": "CLIPImageProcessor", "squeeze": "SiglipImageProcessor"}


def read_aspect(folder: Path, image_size: int) -> tuple[str | None, list[str]]:
    """The aspect of `config.data.media` that makes the pixels of a folder's image processor.

    Args:
      image_size: pixels along each side that the encoder takes.

    Returns:
      "pad", "square" or "squeeze", None if the folder has no image processor or one of another kind, and a line for
      each setting that is not used.
    """
    path, values = read_image_processor(folder)
    if not values:
        return None, []
    kind = str(values.get("image_processor_type") or values.get("feature_extractor_type") or _CLASSES["square"])
    found = _aspect(kind, values, image_size)
    notes = []
    if found is None:
        shown = {name: values[name] for name in ("size", "crop_size", "do_resize", "do_center_crop") if name in values}
        notes.append(
            f"{kind} with {shown} is not used: images of {image_size} pixels a side are made by padding ({path})"
        )
    if (resample := values.get("resample", _BICUBIC)) != _BICUBIC:
        notes.append(f"resample = {resample} is not used: images are resized bicubically, 3 ({path})")
    return found, notes


def _aspect(kind: str, values: dict[str, Any], image_size: int) -> str | None:
    sides = {"height": image_size, "width": image_size}
    size, crop = values.get("size", values.get("crop_size")), values.get("crop_size", values.get("size"))
    if not values.get("do_resize", True):
        return None
    if kind.startswith("Siglip") or not values.get("do_center_crop", True):
        return "squeeze" if size == sides and not values.get("do_center_crop") else None
    if size not in ({"shortest_edge": image_size}, image_size) or crop not in (sides, image_size):
        return None
    # CLIPImageProcessor never pads, whatever the file says.
    return "pad" if kind.startswith("Llava") and values.get("do_pad") else "square"


def image_processor(vision: VisionConfig, aspect: str) -> dict[str, Any]:
    """preprocessor_config.json of a processor that makes an aspect's pixels, with the encoder's mean and deviation."""
    size = vision.image_size
    sides = {"height": size, "width": size}
    values: dict[str, Any] = {
        "image_processor_type": _CLASSES[aspect],
        "processor_class": "LlavaProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": sides if aspect == "squeeze" else {"shortest_edge": size},
        "resample": _BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(vision.image_mean),
        "image_std": list(vision.image_std),
    }
    if aspect == "squeeze":
        return values
    return values | {"do_pad": aspect == "pad", "do_center_crop": True, "crop_size": sides}
