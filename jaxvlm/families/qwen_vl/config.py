"""Settings of a Qwen-VL in addition to those that all families share."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from jaxvlm.config import Choices, MediaConfig, ModelConfig

KINDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """The vision encoder; patches are the unit of all its sizes."""

    embed_dim: int
    mlp_dim: int
    num_layers: int
    num_heads: int
    patch_size: int  # pixels along each side
    image_mean: tuple[float, float, float]  # of red, green and blue in 0..1, subtracted from the pixels
    image_std: tuple[float, float, float]  # by which the difference is divided
    activation: Annotated[str, Choices(("quick_gelu", "silu", "gelu_tanh"))]  # of the MLP
    is_gated: bool  # the MLP is gate * up, as in SwiGLU
    norm: Annotated[str, Choices(("layer", "rms"))]  # LayerNorm or RMSNorm
    norm_epsilon: float
    patch_bias: bool
    position_rows: int = 0  # rows, and columns, of the table of learned positions; 0: there is none
    window: int = 0  # patches along each side of an attention window; 0: blocks attend to whole frames
    full_layers: tuple[int, ...] = ()  # blocks that attend to whole frames although there are windows
    deepstack_layers: tuple[int, ...] = ()  # blocks whose output also enters the decoder (DeepStack, arXiv:2406.04334)


@dataclasses.dataclass(frozen=True)
class MergerConfig:
    """From patches to token embeddings: a square of neighbouring patches is one token."""

    merge_size: int  # patches along each side of a token


@dataclasses.dataclass(frozen=True)
class QwenVLConfig(ModelConfig):
    """`config.model` of the family "qwen_vl"."""

    kind: Annotated[
        str, Choices(KINDS)
    ]  # it decides positions of videos, timestamps and the names in Hugging Face's files
    vision: TowerConfig
    projector: MergerConfig
    tokens_per_second: int = 2  # of qwen2_5_vl: steps of a video's time axis for a second


@dataclasses.dataclass(frozen=True)
class VideoConfig:
    """How a video becomes frames, and how large they may be."""

    fps: float  # frames to take for each second
    min_frames: int
    max_frames: int
    min_pixels: int  # area of a frame; of qwen3_vl the volume of all frames
    max_pixels: int


@dataclasses.dataclass(frozen=True)
class QwenVLMedia(MediaConfig):
    """`config.stage.NAME.data.media` of the family "qwen_vl"; a unit is a patch."""

    min_pixels: int  # area to which a smaller image is enlarged
    max_pixels: int  # area to which a larger image is reduced
    video: VideoConfig | None = None  # None: videos are refused, and a patch is one frame deep instead of two


MODEL = QwenVLConfig
MEDIA = QwenVLMedia
