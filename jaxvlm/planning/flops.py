"""The model's own floating point operations: what a step must compute, however it is compiled.

Matrix products only, two operations a multiply-add. Counted are positions that hold a token (padding is not), images
that are there (empty slots are not), the encoder's blocks up to the feature layer, the head at supervised positions,
and of causal attention the pairs within a sample that see each other. What a backward pass recomputes is not counted.

Backward: a trained weight takes one forward more for its own gradient, and one for the gradient that is passed on;
a frozen weight only the latter, and nothing where no trained weight lies before it. Attention's two products have no
weights: their backward takes two forwards wherever gradients pass.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from jaxvlm.config import DecoderConfig, ModelConfig, PartsConfig, VisionConfig
from jaxvlm.models.projector import projector_depth
from jaxvlm.training.optimizer import paths


@dataclasses.dataclass(frozen=True)
class Work:
    """What a step of the recipe goes through, on average."""

    rows: int  # of all chips
    tokens: float  # positions of a row that are no padding, image features among them
    samples: float  # that share a row
    images: float  # of a row
    supervised: float  # positions of a row whose target counts


@dataclasses.dataclass(frozen=True)
class Flops:
    """Operations of one part of a step."""

    name: str
    forward: float
    backward: float  # in forwards
    how: str

    @property
    def total(self) -> float:
        """Forward and backward."""
        return self.forward * (1 + self.backward)


def model_flops(model: ModelConfig, parts: PartsConfig, trained: Mapping, work: Work) -> list[Flops]:
    """Floating point operations of one step, part by part.

    Args:
      trained: nested dict of the trained leaves, abstract; adapters are found in it.
    """
    images = work.rows * work.images
    # Whether gradients pass to what enters a part.
    into_projector = parts.vision != "frozen"
    into_language = into_projector or parts.projector != "frozen"
    lines = _vision(model.vision, parts.vision, images) if images else []
    lines += _projector(model, images, into_projector, parts.projector != "frozen") if images else []
    lines += _language(model.language, parts.language, work, into_language)
    seen = model.vision.features_per_image + (model.vision.family == "clip")
    used = _blocks(model.vision) / model.vision.num_layers
    for part, positions in (("vision", images * seen * used), ("language", work.rows * work.tokens)):
        weights = sum(leaf.size for path, leaf in paths(trained.get(part, {})).items() if "/lora/" in path)
        lines.append(Flops(f"{part}: adapters", 2 * positions * weights, 2.0, "at every position"))
    return [line for line in lines if line.forward]


def _vision(c: VisionConfig, policy: str, images: float) -> list[Flops]:
    P, E, blocks = c.features_per_image, c.embed_dim, _blocks(c)
    seen = P + (c.family == "clip")
    trained, is_full = float(policy != "frozen"), float(policy == "full")
    of_patches, of_blocks = 3 * c.patch_size**2 * E, blocks * vision_block_weights(c)
    said = f"{blocks} of {c.num_layers} blocks, {seen} positions an image"
    return [  # nothing lies before the patches
        Flops("vision: patches", 2 * images * P * of_patches, is_full, f"{images:g} images of {P} patches"),
        Flops("vision: blocks", 2 * images * seen * of_blocks, trained + is_full, said),
        Flops("vision: attention", 4 * images * blocks * E * seen**2, 2 * trained, "all pairs of an image's positions"),
    ]


def _projector(model: ModelConfig, images: float, gradients_enter: bool, is_trained: bool) -> list[Flops]:
    E, D, features = model.vision.embed_dim, model.language.embed_dim, images * model.vision.features_per_image
    rest = (projector_depth(model.projector.kind) - 1) * D * D
    between = float(gradients_enter or is_trained)
    return [
        Flops("projector: first", 2 * features * E * D, float(gradients_enter) + is_trained, "every feature"),
        Flops("projector: rest", 2 * features * rest, between + is_trained, "every feature"),
    ]


def _language(c: DecoderConfig, policy: str, work: Work, gradients_enter: bool) -> list[Flops]:
    tokens, length = work.rows * work.tokens, work.tokens / work.samples
    supervised = work.rows * work.supervised
    through, is_full = float(gradients_enter or policy != "frozen"), float(policy == "full")
    of_blocks, pairs = c.num_layers * decoder_block_weights(c), tokens * (length + 1) / 2
    said = f"causal, within samples of {length:,.0f} positions"
    products = 4 * pairs * c.num_layers * c.num_heads * c.head_dim
    head = 2 * supervised * c.vocab_size * c.embed_dim
    return [
        Flops(
            "language: blocks",
            2 * tokens * of_blocks,
            through + is_full,
            f"{tokens:,.0f} positions that are no padding",
        ),
        Flops("language: attention", products, 2 * through, said),
        Flops("language: head", head, through + is_full, f"{supervised:,.0f} supervised positions"),
    ]


def _blocks(c: VisionConfig) -> int:
    """Blocks of the encoder that are run."""
    return c.num_layers + 1 + c.feature_layer


def decoder_block_weights(c: DecoderConfig) -> int:
    """Weights of the matrix products of a decoder's block."""
    heads = c.num_heads + c.num_kv_heads
    return c.embed_dim * (2 * heads * c.head_dim + 3 * c.mlp_dim)


def vision_block_weights(c: VisionConfig) -> int:
    """Weights of the matrix products of an encoder's block."""
    return c.embed_dim * (4 * c.embed_dim + 2 * c.mlp_dim)


def total_flops(lines: list[Flops]) -> float:
    """Of all parts, forward and backward."""
    return math.fsum(line.total for line in lines)
