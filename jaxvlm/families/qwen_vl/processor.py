"""The processor of a Qwen-VL folder: the limits of images and videos, read and written in both spellings.

Old files have `min_pixels` and `max_pixels`, new ones `size` with `shortest_edge` and `longest_edge`; both are areas.

Source: transformers models/qwen2_vl and qwen3_vl, image_processing_*.py, video_processing_*.py and processing_*.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxvlm.errors import UserError
from jaxvlm.families.qwen_vl.config import QwenVLConfig, QwenVLMedia, VideoConfig
from jaxvlm.weights.hf.strict import Report, read_json
from jaxvlm.weights.hf.vision import read_image_processor

IMAGE_TOKEN, VIDEO_TOKEN = "<|image_pad|>", "<|video_pad|>"
_BICUBIC = 3  # Pillow's number
_PROCESSORS = {"qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen3_vl": "Qwen3VLProcessor"}
_VIDEO_PROCESSORS = {"qwen2_vl": "Qwen2VLVideoProcessor", "qwen2_5_vl": "Qwen2VLVideoProcessor"}
_VIDEO_PROCESSORS |= {"qwen3_vl": "Qwen3VLVideoProcessor"}
_VIDEO_FILE = "video_preprocessor_config.json"


def read_limits(folder: Path, patch_size: int, merge_size: int) -> dict[str, Any]:
    """`min_pixels` and `max_pixels` of the folder's image processor; {} if it has none.

    Args:
      patch_size, merge_size: of the model, which the file must agree with.

    Raises:
      UserError: a file without limits, with limits that contradict each other, or with other patches.
    """
    path, values = read_image_processor(folder)
    if not values:
        return {}
    report = Report(str(path))
    found = _limits(values, report)
    wanted = {"patch_size": patch_size, "merge_size": merge_size, "temporal_patch_size": 2, "do_resize": True}
    for name, expected in (wanted | {"resample": _BICUBIC}).items():
        if values.get(name, expected) != expected:
            report.add(name, values[name], json.dumps(expected))
    _check(report)
    return found


def _limits(values: Mapping[str, Any], report: Report) -> dict[str, int]:
    size = values.get("size") if isinstance(values.get("size"), dict) else {}
    assert isinstance(size, dict)
    found = {}
    for old, new in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        given = [values.get(old), size.get(old), size.get(new)]
        numbers = {value for value in given if value is not None}
        if len(numbers) > 1:
            report.log(f"{old} = {values.get(old, size.get(old))} and size.{new} = {size.get(new)} are the same limit")
        elif not numbers:
            report.log(f"it has neither {old} nor size.{new}, the limit of an image's area in pixels")
        elif not isinstance(limit := numbers.pop(), int) or limit < 1:
            report.add(old, limit, "a number of pixels")
        else:
            found[old] = limit
    if len(found) == 2 and found["min_pixels"] > found["max_pixels"]:
        report.add("min_pixels", found["min_pixels"], f"at most max_pixels, {found['max_pixels']}")
    return found


def _check(report: Report) -> None:
    """Raises `UserError` if a file of a processor has problems."""
    if report.problems:
        raise UserError(f"{report.where} cannot be used: {'; '.join(report.problems)}; correct the file")


def read_video(folder: Path) -> VideoConfig | None:
    """How the folder's video processor samples frames; None if it has none."""
    path = folder / _VIDEO_FILE
    values = read_json(path, "fix or remove it") if path.is_file() else {}
    if not values:
        return None
    report = Report(str(path))
    limits = _limits(values, report)
    _check(report)
    fps, fewest, most = values.get("fps") or 2.0, values.get("min_frames") or 4, values.get("max_frames") or 768
    return VideoConfig(float(fps), int(fewest), int(most), limits["min_pixels"], limits["max_pixels"])


def write_processor(folder: Path, config: QwenVLConfig, media: QwenVLMedia) -> None:
    """Writes the files of the image, the video and the whole processor into a folder that exists.

    Servers then resize images as the training did.

    Args:
      config: of the model.
      media: `data.media` of the stage whose result is exported.
    """
    shared = {
        "processor_class": _PROCESSORS[config.kind],
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": _BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.vision.image_mean),
        "image_std": list(config.vision.image_std),
        "patch_size": config.vision.patch_size,
        "temporal_patch_size": 2,
        "merge_size": config.projector.merge_size,
    }
    image = shared | _areas(media.min_pixels, media.max_pixels) | {"image_processor_type": "Qwen2VLImageProcessor"}
    _write(folder / "preprocessor_config.json", image)
    video = media.video
    limits = _areas(media.min_pixels, media.max_pixels) if video is None else _areas(video.min_pixels, video.max_pixels)
    frames = {} if video is None else {"fps": video.fps, "min_frames": video.min_frames, "max_frames": video.max_frames}
    kind = {"video_processor_type": _VIDEO_PROCESSORS[config.kind], "do_sample_frames": True}
    kind |= {"cap_pixels_per_frame": False}  # no limits but those above; transformers plans to change its default
    _write(folder / _VIDEO_FILE, shared | limits | frames | kind)


def _areas(least: int, most: int) -> dict[str, Any]:
    """The limits in both spellings."""
    return {"min_pixels": least, "max_pixels": most, "size": {"shortest_edge": least, "longest_edge": most}}


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
