"""LLaVA: the tables of its parts under the prefixes of each spelling.

Source: HF models/llava/modeling_llava.py, LlavaForConditionalGeneration; the original LLaVA's `llava_arch.py` and
`multimodal_projector/builder.py`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from jaxvlm.config import ModelConfig
from jaxvlm.families.llava.config import LlavaConfig
from jaxvlm.models.projector import projector_depth
from jaxvlm.weights import clip, llama
from jaxvlm.weights.folder import RenamedSource, TensorSource
from jaxvlm.weights.rules import Rule, prefixed


@dataclasses.dataclass(frozen=True)
class Spelling:
    """What stands before the names of each part; None: the part is not in the files.

    `projector` says how layer i of the projector is called: `linear_{i}` in HF's files, and in the original ones its
    place in a `Sequential`, where every other place is a GELU.
    """

    vision: str | None
    projector: str | None
    language: str | None
    head: str | None


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
LANGUAGE = Spelling(vision=None, projector=None, language="model.", head="lm_head.")  # a decoder alone
VISION = Spelling(vision="vision_model.", projector=None, language=None, head=None)  # an encoder alone

# All spellings that were ever written, of each part by itself, with a tensor that shows it; the longest come first.
_KNOWN = {
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


def find_spelling(names: Iterable[str]) -> Spelling:
    """The spelling of a checkpoint, told from the names of its tensors."""
    names = set(names)

    def first(part: str) -> str | None:
        prefixes, marker = _KNOWN[part]
        return next((prefix for prefix in prefixes if _numbered(prefix, 1) + marker in names), None)

    return Spelling(**{part: first(part) for part in _KNOWN})


def respelled(tensors: TensorSource, spelling: Spelling) -> TensorSource:
    """A checkpoint's tensors under the names that they have in `HUB`; those of no part keep theirs."""
    pairs = [
        (_numbered(old, i), _numbered(getattr(HUB, part), i))
        for part, old in dataclasses.asdict(spelling).items()
        if old is not None
        for i in (range(1, 10) if part == "projector" else (1,))
    ]
    # The head before the language, of whose prefix its own may be a part; the longest first.
    pairs.sort(key=lambda pair: -len(pair[0]))

    def rename(name: str) -> str:
        return next((new + name.removeprefix(old) for old, new in pairs if name.startswith(old)), name)

    return RenamedSource(tensors, rename)


def llava_rules(config: ModelConfig, spelling: Spelling = MEMORY) -> tuple[Rule, ...]:
    """The table of the parts that `spelling` has, with our paths of the whole model."""
    assert isinstance(config, LlavaConfig)
    rules: list[Rule] = []
    if spelling.vision is not None:
        rules += prefixed(clip.RULES, spelling.vision, "vision/")
    if spelling.projector is not None:
        for i in range(1, projector_depth(config.projector.kind) + 1):
            name = _numbered(spelling.projector, i)
            rules += [
                Rule(f"{name}weight", f"projector/fc{i}/w", "D E -> E D"),
                Rule(f"{name}bias", f"projector/fc{i}/bias"),
            ]
    if spelling.language is not None:
        rules += prefixed(llama.RULES, spelling.language, "language/")
    if spelling.head is not None and not config.language.tie_embeddings:
        rules += prefixed(llama.HEAD, spelling.head, "language/")
    return tuple(rules)


def llava_sizes(config: ModelConfig) -> dict[str, int]:
    """The `sizes` of the engine."""
    assert isinstance(config, LlavaConfig)
    return {"Y": config.vision.patch_size, "X": config.vision.patch_size, "C": 3}


def _numbered(prefix: str, i: int) -> str:
    """The prefix of the projector's layer `i`, counted from 1."""
    return re.sub(r"\{(2?)i\}", lambda match: str(2 * (i - 1) if match[1] else i), prefix)
