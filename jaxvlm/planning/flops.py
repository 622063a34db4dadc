"""The model's own floating point operations: what a step must compute, however it is compiled.

Matrix products only, two operations a multiply-add. Counted are positions with a token (no padding), images
(no empty slots), the encoder's blocks up to the feature layer, the head at supervised positions,
and of causal attention the pairs within a sample that see each other. What a backward pass recomputes is not counted.

Backward: a trained weight takes one more forward for its own gradient, and one for the gradient that it passes on;
a frozen weight only the latter, and nothing where no trained weight comes before it. Attention's two products have no
weights: their backward takes two forwards wherever gradients pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from jaxvlm.config import DecoderConfig, ModelConfig, PartsConfig
from jaxvlm.families.registry import family_file
from jaxvlm.flops import Flops, Work
from jaxvlm.trees import paths


def model_flops(model: ModelConfig, parts: PartsConfig, trained: Mapping, work: Work) -> list[Flops]:
    """Floating point operations of one step, part by part.

    Args:
      trained: nested dict of the trained leaves, abstract; adapters are found in it.
    """
    family = family_file(model.family, "flops")
    # Whether gradients pass to its input.
    into_language = any(policy != "frozen" for part, policy in parts.policies.items() if part != "language")
    lines = family.media_flops(model, parts, work)
    lines += _language(model.language, parts.language, work, into_language)
    positions_of = {"vision": family.vision_positions(model, work), "language": work.rows * work.tokens}
    for part, positions in positions_of.items():
        weights = sum(leaf.size for path, leaf in paths(trained.get(part, {})).items() if "/lora/" in path)
        lines.append(Flops(f"{part}: adapters", 2 * positions * weights, 2.0, "at every position"))
    return [line for line in lines if line.forward]


def _language(c: DecoderConfig, policy: str, work: Work, gradients_enter: bool) -> list[Flops]:
    tokens, length = work.rows * work.tokens, work.tokens / work.samples
    supervised = work.rows * work.supervised
    through, is_full = float(gradients_enter or policy != "frozen"), float(policy == "full")
    of_blocks, pairs = c.num_layers * decoder_block_weights(c), tokens * (length + 1) / 2
    scope = f"causal, within samples of {length:,.0f} positions"
    products = 4 * pairs * c.num_layers * c.num_heads * c.head_dim
    head = 2 * supervised * c.vocab_size * c.embed_dim
    return [
        Flops(
            "language: blocks",
            2 * tokens * of_blocks,
            through + is_full,
            f"{tokens:,.0f} positions without padding",
        ),
        Flops("language: attention", products, 2 * through, scope),
        Flops("language: head", head, through + is_full, f"{supervised:,.0f} supervised positions"),
    ]


def decoder_block_weights(c: DecoderConfig) -> int:
    """Weights of the matrix products of a decoder's block."""
    heads = c.num_heads + c.num_kv_heads
    return c.embed_dim * (2 * heads * c.head_dim + 3 * c.mlp_dim)


def total_flops(lines: list[Flops]) -> float:
    """The sum over all parts, forward and backward."""
    return math.fsum(line.total for line in lines)
