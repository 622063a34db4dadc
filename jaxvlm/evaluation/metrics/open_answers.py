"""Open answers of MMMU: the parts of an answer that may be it, and whether one equals or contains the truth.

Source: MMMU-Benchmark/MMMU eval/eval_utils.py, and the same functions in lmms-eval 0.7.3 tasks/mmmu/utils.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_SENTENCES = re.compile(r"\.\s(?=[A-Z])|\n")
_CUES = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NOTHING = ("", ":", ",", ".", "!", "?", ";", "'")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # 1,234
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),  # 1.2e3
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),  # -1.2
)


def open_candidates(text: str) -> list[str]:
    """The shortest text after a cue word in each sentence, or else the whole answer; and all numbers in these.

        "The result is 3.14 cm"  -> ["3.14 cm", "3.14"]
        "blue"                   -> ["blue"]

    Their pattern looks for a capital letter after the full stop of a sentence, but in lower-case text, so that only
    new lines end one.
    """
    answer = text.strip().strip(".").lower()
    sentences = _SENTENCES.split(answer)
    parts = []
    for number, sentence in enumerate(sentences, 1):
        cues = (*_CUES, "=") if number == len(sentences) else _CUES
        shortest = ""
        for cue in cues:
            if cue in sentence:
                tail = sentence.split(cue)[-1].strip()
                if not shortest or len(tail) < len(shortest):
                    shortest = tail  # an empty one gives way to the next, however long that is
        if shortest not in _NOTHING:
            parts.append(shortest)
    parts = parts or [answer]
    numbers = [number for part in parts for pattern in _NUMBERS for number in pattern.findall(part)]
    return [part for part in dict.fromkeys(parts + numbers) if part]


def matches(truths: Iterable[str], candidates: Iterable[str]) -> bool:
    """Whether a candidate is the number that a truth is, to two decimals, or a text that contains it.

    A single letter must stand beside a space.
    """
    wanted = [form for truth in truths for form in _forms(truth)]
    numbers = {form for form in wanted if isinstance(form, float)}
    texts = [form for form in wanted if isinstance(form, str)]
    for candidate in (form for text in candidates for form in _forms(text)):
        if isinstance(candidate, float):
            if candidate in numbers:
                return True
        elif any(text in candidate for text in texts):
            return True
    return False


def _forms(text: str) -> list[str] | list[float]:
    """A number rounded to two decimals, or a text in lower case; a single letter with a space before or after it."""
    bare = text.strip()
    try:
        return [round(float(bare.replace(",", "")), 2)]
    except ValueError:
        lower = bare.lower()
        return [f" {lower}", f"{lower} "] if len(lower) == 1 else [lower]
