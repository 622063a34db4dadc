"""LLaVA: the tables of its parts under the prefixes of each spelling.

Source: HF models/llava/modeling_llava.py, LlavaForConditionalGeneration.
"""

from __future__ import annotations

from jaxvlm.config import ModelConfig
from jaxvlm.models.projector import projector_depth
from jaxvlm.weights import clip, llama
from jaxvlm.weights.rules import Rule, prefixed

# What stands before a part's names: in the module in memory (transformers 5), and in the files on the hub.
MEMORY = {
    "vision": "model.vision_tower.",
    "projector": "model.multi_modal_projector.",
    "language": "model.language_model.",
    "head": "lm_head.",
}
HUB = {
    "vision": "vision_tower.vision_model.",
    "projector": "multi_modal_projector.",
    "language": "language_model.model.",
    "head": "language_model.lm_head.",
}


def llava_rules(config: ModelConfig, prefixes: dict[str, str] = MEMORY) -> tuple[Rule, ...]:
    """The table of a whole model."""
    depth = projector_depth(config.projector.kind)
    projector = []
    for i in range(1, depth + 1):
        projector.append(Rule(f"linear_{i}.weight", f"fc{i}/w", "D E -> E D"))
        projector.append(Rule(f"linear_{i}.bias", f"fc{i}/bias"))
    head = () if config.language.tie_embeddings else llama.HEAD
    return (
        *prefixed(clip.RULES, prefixes["vision"], "vision/"),
        *prefixed(projector, prefixes["projector"], "projector/"),
        *prefixed(llama.RULES, prefixes["language"], "language/"),
        *prefixed(head, prefixes["head"], "language/"),
    )


def llava_sizes(config: ModelConfig) -> dict[str, int]:
    """The `sizes` of the engine."""
    return {"Y": config.vision.patch_size, "X": config.vision.patch_size, "C": 3}
