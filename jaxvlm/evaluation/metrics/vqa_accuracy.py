"""VQA accuracy: the soft score against ten human answers, and the four ways in which tools normalise answers.

An answer that k of the ten people gave scores 0, .3, .6, .9 for k = 0, 1, 2, 3, and 1 from 4 on.

    text       3.   U.S.   well-known   3,000   3,000-4   1,2/3   red,blue   what?no   John's car
    official   3    us     well known   3000    30004     123     red blue   what no   john's car
    evalai     3    us     well known   3000    3000 4    12 3    redblue    whatno    john 's car

Source: VQA (arXiv:1505.00468); the code of GT-Vision-Lab/VQA (a013f004), of MMF's EvalAI processor, which LLaVA and
lmms-eval use, and of VLMEvalKit, whose quirks are kept since published numbers have them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_DIGIT_COMMAS_DIGIT = re.compile(r"(?<=\d),+(?=\d)")
# The official pattern has a mistyped look-behind, so it also deletes the full stop of "3."; VLMEvalKit's has not.
_STOP = re.compile(r"\.(?!\d)")
_STOP_NOT_BY_DIGITS = re.compile(r"(?<!\d)\.(?!\d)")
_STOPS = 32  # only so many are deleted: the originals pass re.UNICODE, which is 32, in the place of `count`

_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
_CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've "
    "needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll "
    "that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've "
    "weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've "
    "why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're "
    "you've"
)
# A word that lacks one apostrophe gets it back: "dont", "couldn'tve". One entry of the original takes one away.
_MENDED = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTIONS.split()
    for place, sign in enumerate(word)
    if sign == "'"
} | {"somebody'd": "somebodyd"}


def soft_score(answer: str, truths: Sequence[str]) -> float:
    """The mean of min(1, matches / 3) over the sets that leave one truth out.

    Args:
      answer: normalised.
      truths: normalised; ten as a rule. A single truth scores 0, since the set without it is empty.
    """
    count, matches = len(truths), sum(truth == answer for truth in truths)
    return (matches * min(1, (matches - 1) / 3) + (count - matches) * min(1, matches / 3)) / count if matches else 0.0


def official(answer: str, truths: Sequence[str]) -> tuple[str, list[str]]:
    """Answer and truths as the official code compares them; they are not normalised where all truths are the same."""
    answer, cleaned = _one_line(answer), [_one_line(truth) for truth in truths]
    if len(set(cleaned)) == 1:
        return answer, cleaned
    return _official(answer), [_official(truth) for truth in cleaned]


@functools.lru_cache(1 << 16)
def evalai(text: str) -> str:
    """The answer processor of EvalAI that LLaVA and lmms-eval use."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return _words(_marks(_one_line(text.strip()), _DIGIT_COMMAS_DIGIT, _STOP))


@functools.lru_cache(1 << 16)
def lmms_vqav2(text: str) -> str:
    """`evalai` without its first step, as lmms-eval calls it for VQAv2."""
    return _words(_marks(_one_line(text), _DIGIT_COMMAS_DIGIT, _STOP))


@functools.lru_cache(1 << 16)
def vlmevalkit(text: str) -> str:
    """The normalisation of VLMEvalKit."""
    return _words(_marks(_one_line(text), _DIGIT_COMMA_DIGIT, _STOP_NOT_BY_DIGITS))


@functools.lru_cache(1 << 16)
def _official(text: str) -> str:
    return _words(_marks(text, _DIGIT_COMMA_DIGIT, _STOP))


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _marks(text: str, comma: re.Pattern[str], stop: re.Pattern[str]) -> str:
    """Deletes a mark that stands beside a space anywhere in the text, or any mark if digits have a comma between them.

    Other marks become spaces.
    """
    in_number = comma.search(text) is not None
    result = text
    for mark in _MARKS:
        deleted = in_number or f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if deleted else " ")
    return stop.sub("", result, count=_STOPS)


def _words(text: str) -> str:
    """Lower case; numbers up to ten as digits, no articles, contractions with their apostrophes."""
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_MENDED.get(word, word) for word in words if word not in _ARTICLES)
