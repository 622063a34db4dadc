"""Operations of Qwen-VL's encoder and mergers; `jaxvlm/planning/flops.py` explains what is counted."""

from __future__ import annotations

from jaxvlm.config import PartsConfig
from jaxvlm.families.qwen_vl.config import QwenVLConfig, TowerConfig
from jaxvlm.flops import Flops, Segments, Work


def media_flops(model: QwenVLConfig, parts: PartsConfig, work: Work) -> list[Flops]:
    """Operations of one step before the decoder."""
    if not work.units:
        return []
    return _vision(model.vision, parts.policies["vision"], work) + _mergers(model, parts, work)


def vision_positions(model: QwenVLConfig, work: Work) -> float:
    """Patches in use."""
    return work.rows * work.units


def vision_segments(model: QwenVLConfig, work: Work) -> list[Segments]:
    """Images of equal size, and the windows of 2.5 in all blocks but a few."""
    c = model.vision
    windows = len(c.full_layers) < c.num_layers and c.window**2
    share = len(c.full_layers) / c.num_layers if windows else 1.0
    found = [Segments.equal(work.units, work.images, share)]
    return [*found, Segments.equal(work.units, work.units / windows, 1 - share)] if windows else found


def _vision(c: TowerConfig, policy: str, work: Work) -> list[Flops]:
    E, patches = c.embed_dim, work.rows * work.units
    trained, is_full = float(policy != "frozen"), float(policy == "full")
    of_image = work.units / work.images
    of_block = E * (4 * E + (3 if c.is_gated else 2) * c.mlp_dim)
    seen = [c.window**2 if c.window and block not in c.full_layers else of_image for block in range(c.num_layers)]
    pairs = patches * sum(min(count, of_image) for count in seen)
    return [  # nothing comes before the patches
        Flops("vision: patches", 2 * patches * 6 * c.patch_size**2 * E, is_full, f"{patches:,.0f} patches"),
        Flops("vision: blocks", 2 * patches * c.num_layers * of_block, trained + is_full, "every patch"),
        Flops("vision: attention", 4 * E * pairs, 2 * trained, f"within frames of {of_image:,.0f} patches, or windows"),
    ]


def _mergers(model: QwenVLConfig, parts: PartsConfig, work: Work) -> list[Flops]:
    joined, D = model.vision.embed_dim * model.projector.merge_size**2, model.language.embed_dim
    features = work.rows * work.units / model.projector.merge_size**2
    mergers = 1 + len(model.vision.deepstack_layers)
    backward = float(parts.vision != "frozen") + float(parts.projector != "frozen")
    return [Flops("projector", 2 * features * mergers * joined * (joined + D), backward, f"{mergers} mergers")]
