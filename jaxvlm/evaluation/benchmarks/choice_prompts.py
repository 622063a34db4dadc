"""Words and order of the user turns that ask for a choice or for yes or no."""

from __future__ import annotations

import re
from collections.abc import Mapping

from jaxvlm.data.records import IMAGE
from jaxvlm.evaluation.benchmarks.benchmark import VLMEVALKIT, Item

LETTER_SUFFIX = "Answer with the option's letter from the given choices directly."
LETTER_SUFFIX_CN = "请直接回答选项字母。"
_CHINESE = re.compile("[\u4e00-\u9fff]")


def images_first(item: Item, text: str, dialect: str) -> str:
    """The images, then the text on a line of its own; VLMEvalKit's LLaVA class writes a space in place of the line."""
    if not item.images:
        return text
    placeholders = " ".join([IMAGE] * len(item.images))
    return f"{placeholders}{' ' if dialect == VLMEVALKIT else chr(10)}{text}"


def options_below(question: str, options: Mapping[str, str], hint: str = "") -> str:
    """LLaVA's form: hint, question, and "A. ..." for each option, one a line."""
    lines = [*([hint] if hint else []), question, *(f"{letter}. {text}" for letter, text in options.items())]
    return "\n".join(lines)


def letter_suffix(text: str) -> str:
    """VLMEvalKit's LLaVA class asks for the letter in Chinese if the text has a Chinese character."""
    return LETTER_SUFFIX_CN if _CHINESE.search(text) else LETTER_SUFFIX
