"""Operations of LLaVA's encoder and projector; `jaxvlm/planning/flops.py` explains what is counted."""

from __future__ import annotations

from jaxvlm.config import PartsConfig, VisionConfig
from jaxvlm.families.llava.config import LlavaConfig
from jaxvlm.flops import Flops, Segments, Work
from jaxvlm.models.projector import projector_depth


def media_flops(model: LlavaConfig, parts: PartsConfig, work: Work) -> list[Flops]:
    """Operations of one step before the decoder."""
    images = work.rows * work.units
    if not images:
        return []
    gradients_enter = parts.vision != "frozen"  # the projector
    return _vision(model.vision, parts.policies["vision"], images) + _projector(
        model, images, gradients_enter, parts.projector != "frozen"
    )


def vision_positions(model: LlavaConfig, work: Work) -> float:
    """Positions at which the encoder's projections are applied, as a share of all its blocks; for adapters."""
    seen = model.vision.features_per_image + model.vision.class_token
    return work.rows * work.units * seen * _blocks(model.vision) / model.vision.num_layers


def vision_segments(model: LlavaConfig, work: Work) -> list[Segments]:
    """None: a row of the encoder is one image."""
    return []


def _vision(c: VisionConfig, policy: str, images: float) -> list[Flops]:
    P, E, blocks = c.features_per_image, c.embed_dim, _blocks(c)
    seen = P + c.class_token
    trained, is_full = float(policy != "frozen"), float(policy == "full")
    of_patches, of_blocks = 3 * c.patch_size**2 * E, blocks * vision_block_weights(c)
    scope = f"{blocks} of {c.num_layers} blocks, {seen} positions an image"
    return [  # nothing comes before the patches
        Flops("vision: patches", 2 * images * P * of_patches, is_full, f"{images:g} images of {P} patches"),
        Flops("vision: blocks", 2 * images * seen * of_blocks, trained + is_full, scope),
        Flops("vision: attention", 4 * images * blocks * E * seen**2, 2 * trained, "all pairs of an image's positions"),
    ]


def _projector(model: LlavaConfig, images: float, gradients_enter: bool, is_trained: bool) -> list[Flops]:
    E, D, features = model.vision.embed_dim, model.language.embed_dim, images * model.vision.features_per_image
    rest = (projector_depth(model.projector.kind) - 1) * D * D
    between = float(gradients_enter or is_trained)
    return [
        Flops("projector: first", 2 * features * E * D, float(gradients_enter) + is_trained, "every feature"),
        Flops("projector: rest", 2 * features * rest, between + is_trained, "every feature"),
    ]


def _blocks(c: VisionConfig) -> int:
    """Blocks of the encoder that are run."""
    return c.num_layers + 1 + c.feature_layer


def vision_block_weights(c: VisionConfig) -> int:
    """Weights of the matrix products of an encoder's block."""
    return c.embed_dim * (4 * c.embed_dim + 2 * c.mlp_dim)
