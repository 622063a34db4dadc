"""LLaVA: the tables of its parts under the prefixes of each spelling.

Source: HF models/llava/modeling_llava.py, LlavaForConditionalGeneration; the original LLaVA's `llava_arch.py` and
`multimodal_projector/builder.py`.
"""

from __future__ import annotations

import functools

from jaxvlm.config import PARTS
from jaxvlm.families.llava.config import LlavaConfig
from jaxvlm.models.projector import projector_depth
from jaxvlm.weights.codec import AdapterNames
from jaxvlm.weights.hf.decoder import decoder_rules
from jaxvlm.weights.hf.vision import vision_rules, vision_sizes
from jaxvlm.weights.rules import Rule
from jaxvlm.weights.spelling import Known, Spelling, numbered

HUB = Spelling(
    vision="vision_tower.vision_model.",
    projector="multi_modal_projector.linear_{i}.",
    language="language_model.model.",
    head="language_model.lm_head.",
)
MEMORY = Spelling(  # the module of transformers 5
    vision="model.vision_tower.",
    projector="model.multi_modal_projector.linear_{i}.",
    language="model.language_model.",
    head="lm_head.",
)

# All known spellings of each part, longest first, with a tensor that identifies the part.
KNOWN: Known = {
    "vision": (
        ("model.vision_tower.vision_tower.vision_model.", "vision_tower.vision_tower.vision_model.")
        + ("model.vision_tower.vision_model.", "vision_tower.vision_model.", "model.vision_tower.", "vision_tower.")
        + ("vision_model.", ""),
        "embeddings.patch_embedding.weight",
    ),
    "projector": (
        ("model.multi_modal_projector.linear_{i}.", "multi_modal_projector.linear_{i}.")
        + ("model.mm_projector.{2i}.", "mm_projector.{2i}.", "model.mm_projector.", "mm_projector."),
        "weight",
    ),
    "language": (("model.language_model.", "language_model.model.", "model.", ""), "embed_tokens.weight"),
    "head": (("language_model.lm_head.", "lm_head."), "weight"),
}


def llava_rules(config: LlavaConfig, spelling: Spelling = MEMORY) -> tuple[Rule, ...]:
    """The table of the parts that `spelling` has, with our paths of the whole model."""
    rules = [*vision_rules(spelling)]
    if spelling.projector is not None:
        for i in range(1, projector_depth(config.projector.kind) + 1):
            name = numbered(spelling.projector, i)
            rules += [
                Rule(f"{name}weight", f"projector/fc{i}/w", "D E -> E D"),
                Rule(f"{name}bias", f"projector/fc{i}/bias"),
            ]
    return (*rules, *decoder_rules(config.language, spelling))


def llava_sizes(config: LlavaConfig) -> dict[str, int]:
    """The `sizes` of the engine."""
    return vision_sizes(config.vision)


def is_of_transformers(spelling: Spelling) -> bool:
    """Whether transformers loads a whole model of this spelling.

    Version 5 saves an encoder without "vision_model.", and version 4 then takes a random one, with a warning.
    """
    is_whole = set(spelling.prefixes()) == set(PARTS) and "mm_projector" not in str(spelling.projector)
    return is_whole and str(spelling.vision).endswith("vision_tower.vision_model.")


def adapter_names(config: LlavaConfig) -> AdapterNames:
    """Module names of adapters: `LlavaForConditionalGeneration` now and before, the original LLaVA, a part alone."""
    return AdapterNames(
        MEMORY,
        functools.partial(llava_rules, config),
        llava_sizes(config),
        module=r"((?P<vision>(model\.)?(vision_tower\.)*(vision_model\.)?)encoder\.|(model\.|language_model\.)*)"
        r"layers\.(?P<layer>\d+)\.(?P<name>.+)",
        known=KNOWN,
        projector=("multi_modal_projector",),
    )
