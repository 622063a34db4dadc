"""What the recipes of Qwen2-VL, Qwen2.5-VL and Qwen3-VL share, and the published sizes.

Source: the official training code (QwenLM/Qwen3-VL, qwen-vl-finetune/scripts/sft*.sh): encoder frozen, merger and
decoder trained at one rate, cosine to 0, warm-up 0.03, no decay, clipping at 1, half an epoch, 4 x 4 samples on each of
8 chips; images of 16 to 576 tokens as in its README. With LoRA rank 64, alpha 128 at the decoder's q, k, v and out.

Where we differ on purpose:
  rows    The scripts join the samples of a batch into one row of any length. Here rows have one size in tokens and one
          in patches (data.tokens, data.media.units), and samples share a row where they fit under both.
  labels  The scripts find answers by looking for the token "assistant", also in what a user wrote, and train the
          newline after an answer. Here labels are made where the answer is written, up to its end token.
  merger  With Qwen3-VL the scripts leave the DeepStack mergers frozen, since their option names one module. Here they
          are part of the projector.
  limits  What an image is resized to is written into an export, so that servers resize as the training did.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from configs import base
from jaxvlm.families.qwen_vl.rope_axes import rope_axes
from jaxvlm.models import variants

_CLIP = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
_HALF = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
_PLAIN = {"position_rows": 0, "window": 0, "full_layers": (), "deepstack_layers": (), "norm_epsilon": 1e-6}


def _tower(embed_dim: int, mlp_dim: int, num_layers: int, patch_size: int, **own: Any) -> dict[str, Any]:
    sizes = {"embed_dim": embed_dim, "mlp_dim": mlp_dim, "num_layers": num_layers, "num_heads": 16}
    return sizes | {"patch_size": patch_size, "patch_bias": False, "is_gated": False, "norm": "layer"} | _PLAIN | own


_TOWER2 = _tower(1280, 5120, 32, 14, activation="quick_gelu", **_CLIP)
_TOWER25 = _tower(
    *(1280, 3420, 32, 14),
    **{"activation": "silu", "is_gated": True, "norm": "rms", "window": 8, "full_layers": (7, 15, 23, 31)},
    **_CLIP,
)
_NEW = {"activation": "gelu_tanh", "patch_bias": True, "position_rows": 48} | _HALF
_TOWER3_S = _tower(1024, 4096, 24, 16, deepstack_layers=(5, 11, 17), **_NEW)
_TOWER3_L = _tower(1152, 4304, 27, 16, deepstack_layers=(8, 16, 24), **_NEW)

# Name -> kind, encoder, decoder (jaxvlm/models/variants.py), its theta, name on the hub.
_MODELS = {
    "qwen2_vl_2b": ("qwen2_vl", _TOWER2, "qwen25_1_5b", 1e6, "Qwen/Qwen2-VL-2B-Instruct"),
    "qwen2_vl_7b": ("qwen2_vl", _TOWER2, "qwen25_7b", 1e6, "Qwen/Qwen2-VL-7B-Instruct"),
    "qwen25_vl_3b": ("qwen2_5_vl", _TOWER25, "qwen25_3b", 1e6, "Qwen/Qwen2.5-VL-3B-Instruct"),
    "qwen25_vl_7b": ("qwen2_5_vl", _TOWER25, "qwen25_7b", 1e6, "Qwen/Qwen2.5-VL-7B-Instruct"),
    "qwen3_vl_2b": ("qwen3_vl", _TOWER3_S, "qwen3_1_7b", 5e6, "Qwen/Qwen3-VL-2B-Instruct"),
    "qwen3_vl_4b": ("qwen3_vl", _TOWER3_S, "qwen3_4b", 5e6, "Qwen/Qwen3-VL-4B-Instruct"),
    "qwen3_vl_8b": ("qwen3_vl", _TOWER3_L, "qwen3_8b", 5e6, "Qwen/Qwen3-VL-8B-Instruct"),
}
_SECTIONS = {"qwen2_vl": (16, 24, 24), "qwen2_5_vl": (16, 24, 24), "qwen3_vl": (24, 20, 20)}


def get_base() -> ConfigDict:
    """`configs.base.get_config` with the options of this family; `stage` has those of its data."""
    c = base.get_config()
    c.model.family = "qwen_vl"
    c.model.kind = "qwen2_vl"  # qwen2_vl, qwen2_5_vl or qwen3_vl
    c.model.tokens_per_second = 2  # of qwen2_5_vl: steps of a video's time axis for a second
    c.model.vision = ConfigDict(_TOWER2)
    c.model.projector = ConfigDict({"merge_size": 2})  # patches along each side of a token
    return c


def stage() -> ConfigDict:
    """`configs.base.stage` with the options of this family's images."""
    c = base.stage()
    c.data.media = ConfigDict()
    c.data.media.units = 12288  # patches of a row: three for each of 4,096 tokens, of which an image's take four
    c.data.media.min_pixels = 16 * 28**2  # area to which a smaller image is enlarged
    c.data.media.max_pixels = 576 * 28**2  # area to which a larger image is reduced
    c.data.media.video = None  # or video(c.model.kind): then a patch is two frames deep, and takes twice the memory
    c.data.update(template="tokenizer", tokens=4096, workers=8)
    return c


def video(kind: str = "qwen2_vl") -> ConfigDict:
    """How videos are sampled: at the rate of the files on the hub, up to 32 frames of 256 tokens a frame pair.

    Args:
      kind: of the model; the limits of "qwen3_vl" are of all frames together.
    """
    limits = {"min_pixels": 128 * 28**2, "max_pixels": 256 * 28**2}
    if kind == "qwen3_vl":
        limits = {"min_pixels": 4 * 32**2, "max_pixels": 32 * 256 * 32**2}
    return ConfigDict({"fps": 2.0, "min_frames": 4, "max_frames": 32} | limits)


def finetune(name: str) -> ConfigDict:
    """Merger and decoder train, the encoder is frozen.

    Args:
      name: of a published model, such as "qwen2_vl_7b".
    """
    kind, tower, decoder, theta, hub = _MODELS[name]
    c = get_base()
    c.model.kind = kind
    c.model.vision.update(tower)
    c.model.language.update(variants.language(decoder))
    section = _SECTIONS[kind]
    c.model.language.update(rope_theta=theta, rope_axes=rope_axes(section, interleaved=kind == "qwen3_vl"))
    c.init.model = c.tokenizer.source = hub
    c.stages, c.stage.finetune = ("finetune",), stage()
    c.stage.finetune.parts.vision = "frozen"
    factor = tower["patch_size"] * 2
    c.stage.finetune.data.media.update(min_pixels=16 * factor**2, max_pixels=576 * factor**2)
    c.stage.finetune.data.update(source="data/train.json", image_folder="data")
    c.stage.finetune.update(global_batch_size=32, epochs=0.5)
    c.stage.finetune.optimizer.learning_rate = 1e-5 if kind == "qwen3_vl" else 2e-7
    return c


def lora(name: str) -> ConfigDict:
    """Adapters at the decoder's attention, and a merger that trains as a whole."""
    c = finetune(name)
    c.stage.finetune.parts.language = "lora"
    c.stage.finetune.parts.lora.language.update(rank=64, alpha=128.0, targets="blocks/attention/.*")
    c.stage.finetune.optimizer.learning_rate = 1e-4
    c.stage.finetune.optimizer.groups = (("projector/.*", {"learning_rate": 1e-5}),)
    return c
