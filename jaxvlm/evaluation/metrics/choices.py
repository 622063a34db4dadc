"""Choices: which option a free answer means, by the parsers of the published scorers; shares of right answers.

Each parser gives the letter of an option, or None where its tool finds none. Some tools then draw an option at random;
here nothing is drawn.

Source: haotian-liu/LLaVA llava/eval/eval_science_qa.py and scripts/convert_seed_for_submission.py; MMMU-Benchmark/MMMU
eval/eval_utils.py; lmms-eval 0.7.3 tasks/scienceqa/utils.py, tasks/seedbench/utils.py, tasks/mmbench/mmbench_evals.py,
tasks/_task_utils/mcq_extract.py and mmmu_mcq_utils.py; ms-vlmeval 0.0.20 utils/matching_util.py.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping

import numpy as np

LETTERS = string.ascii_uppercase
_THE_ANSWER_IS = re.compile(r"The answer is ([A-Z]).")
_SEPARATORS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_MARKS = (  # what may stand around a letter in lmms-eval's MMBench, in the order in which it is tried
    *((("", after)) for after in (".", ",", ":", ")", ").")),
    *((("(", after)) for after in (")", ").")),
    *(((":", after)) for after in ("", ",", ".", ")", ").")),
)
_ANSWER_PHRASES = (
    *("the answer is", "answer is", "the correct answer is", "correct answer is", "the best answer is"),
    *("best answer is", "the correct option is", "correct option is", "the best option is", "best option is"),
    *("the choice is", "choice is", "the correct choice is", "correct choice is", "my answer is", "my choice is"),
    *("i choose", "i select", "i pick", "옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)


def lettered(choices: Iterable[str]) -> dict[str, str]:
    """Options under their letters: {"A": "red", "B": "blue"}."""
    return dict(zip(LETTERS, choices, strict=False))


def equal_letter(text: str, options: Mapping[str, str]) -> str | None:
    """LLaVA's for SEED-Bench: the answer is the letter and nothing else."""
    return text if text in options else None


def first_character(text: str, options: Mapping[str, str]) -> str | None:
    """lmms-eval's for SEED-Bench: the first character, in either case: "apple" is A."""
    letter = text.strip()[:1].upper()
    return letter if letter in options else None


def stated_letter(text: str, options: Mapping[str, str]) -> str | None:
    """LLaVA's for ScienceQA: "B", "B. ..." or exactly one "The answer is B" with a character after it."""
    if text in LETTERS[:5] and len(text) == 1:
        letter = text
    elif text[:1] in LETTERS[:5] and text[1:3] == ". ":
        letter = text[0]
    else:
        found = _THE_ANSWER_IS.findall(text)
        letter = found[0] if len(found) == 1 else ""
    return letter if letter in options else None


def letter_with_full_stop(text: str, options: Mapping[str, str]) -> str | None:
    """lmms-eval's for ScienceQA: the letter alone in either case, or a capital one and a full stop at the start."""
    answer = text.strip()
    if len(answer) != 1 and answer[1:2] != ".":
        return None
    letter = answer if len(answer) > 1 else answer.upper()
    return letter[0] if letter[0] in options else None


def lone_letter_or_text(text: str, options: Mapping[str, str]) -> str | None:
    """VLMEvalKit's exact matching: the one option letter among the last five words, or the one option's text within.

        "The answer is (B)."   -> B
        "A red cat"            -> A, its first word
        "it is a dog"          -> the option "dog"
        "A or B"               -> the one option whose text is within the answer, else None

    An answer of more than twice the options' total length is not searched for their texts.
    """
    if any(refusal in text for refusal in _REFUSALS):
        return None
    words = text.translate(_SEPARATORS).split()
    found = [letter for letter in options if letter in words]
    if len(found) == 1 and words.index(found[0]) > len(words) - 5:
        return found[0]
    if not found and "Z" in words:
        return None
    answer = text.lower()
    if len(answer) > 2 * sum(map(len, options.values())):
        return None
    return _one_within(answer, options)


def marked_letter_or_text(text: str, options: Mapping[str, str]) -> str | None:
    """lmms-eval's for MMBench without a judge: a lone letter, a marked one, an option's text, or `likely_letter`."""
    words = text.split()
    letter = _marked_letter(words)
    if letter is None:
        letter = _one_within(text.lower(), options) or likely_letter(text, options)
    return letter if letter in options else None


def likely_letter(text: str, options: Mapping[str, str]) -> str | None:
    """lmms-eval's `extract_mcq_answer`: the letter in the most telling place, the last of equally telling ones.

    From most to least telling: at the start, at the end, after "the answer is" and such, "(B)", "B.", "B:", "B)", "B ",
    anywhere.
    """
    answer = text.strip()
    for mark in ",.!?;:'\"":
        answer = answer.strip(mark)
    bare, answer = answer.strip(), f" {answer} "
    places: list[tuple[int, int, str]] = []  # (how telling, position, letter)
    for letter in options:
        for rank, form in (
            (6, f"({letter})"),
            (5, f"{letter}."),
            (4, f"{letter}:"),
            (3, f"{letter})"),
            (2, f"{letter} "),
        ):
            places.append((rank, answer.rfind(form), letter))
        places += [(7, answer.find(letter, after), letter) for after in _after_phrases(answer)]
        if bare.startswith(letter) and not bare[1:2].isalpha():
            places.append((10, 0, letter))
        if bare.endswith(letter) and not bare[-2:-1].isalpha():
            places.append((9, len(answer) - 1, letter))
        places.append((0, answer.rfind(letter), letter))
    found = [place for place in places if place[1] >= 0]
    return max(found, key=lambda place: place[:2])[2] if found else None


def last_letter_or_text(text: str, options: Mapping[str, str], *, glued: bool) -> str | None:
    """MMMU's: the last "(B)", else the last " B ", else in more than five words the last option's text.

    Args:
      glued: as lmms-eval, which accepts "B " at the end of a word (so "DNA is" means A), and then "B.".
    """
    answer = text
    for mark in ",.!?;:'":
        answer = answer.strip(mark)
    answer = f" {answer} "
    forms = (("({})", "({})"), *((("{} ", " {} "), ("{}.", " {} ")) if glued else ((" {} ", " {} "),)))
    for form, place in forms:
        found = [letter for letter in options if form.format(letter) in answer]
        if found:
            return max(found, key=lambda letter: answer.rfind(place.format(letter)))
    if len(answer.split()) > 5:
        lower = answer.lower()
        found = [letter for letter, option in options.items() if option.lower() in lower]
        if found:
            return max(found, key=lambda letter: lower.rfind(options[letter].lower()))
    return None


def equal_text(text: str, options: Mapping[str, str]) -> str | None:
    """The letter of the first option whose text is the answer, for tools that rank options by likelihood."""
    answer = text.strip()
    return next((letter for letter, option in options.items() if option.strip() == answer), None)


def percent(credits_N: np.ndarray) -> float:
    """100 times the mean of the credits that are no NaN; NaN if there is none."""
    known = credits_N[~np.isnan(credits_N)]
    return float(100 * known.mean()) if len(known) else float("nan")


def percent_of_draws(credits_N: np.ndarray, draws_RN: np.ndarray) -> np.ndarray:
    """`percent` of each bootstrap draw, float64[R]; `draws_RN` is how often each item is in each draw."""
    known_N = ~np.isnan(credits_N)
    weights_RN = np.asarray(draws_RN, np.float64) * known_N
    total_R, right_R = weights_RN.sum(1), weights_RN @ np.where(known_N, credits_N, 0)
    return 100 * np.divide(right_R, total_R, out=np.full(len(total_R), np.nan), where=total_R > 0)


def _one_within(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option whose text is within a lower-case answer, if it is only one."""
    found = [letter for letter, option in options.items() if option.lower() in answer]
    return found[0] if len(found) == 1 else None


def _marked_letter(words: list[str]) -> str | None:
    """A to E as the only letter among words, or the only one with a mark; among four words "A" is an article."""
    lone = [letter for letter in LETTERS[:5] if letter in words]
    if len(lone) == 1 and not ("A" in words and len(words) > 3):
        return lone[0]
    for before, after in _MARKS:
        marked = [letter for letter in LETTERS[:5] if before + letter + after in words]
        if len(marked) == 1:
            return marked[0]
    return None


def _after_phrases(answer: str) -> list[int]:
    """Where the text goes on after the first of each phrase such as "the answer is"."""
    lower = answer.lower()
    return [lower.find(phrase) + len(phrase) for phrase in _ANSWER_PHRASES if phrase in lower]
