"""CIDEr-D, BLEU and ROUGE-L of captions: a tokenizer like the one of COCO's tools, and pycocoevalcap's scorers.

COCO's tools tokenize with Stanford's PTBTokenizer 3.4.1, which needs Java. `tokenize` follows its rules as far as
captions need them:

    A man's dog isn't on the TV (left), at 3:00 p.m.   ->   a man 's dog is n't on the tv -lrb- left -rrb- at 3:00 p.m.

It differs on rare things: smileys, tags, mail addresses, URLs, some abbreviations at the end of a caption.

Source: CIDEr (arXiv:1411.5726); COCO captions (arXiv:1504.00325); pycocoevalcap 1.2, tokenizer and scorers.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

_SIGNS = {"’": "'", "‘": "`", "“": '"', "”": '"', "…": "...", "–": "--", "—": "--", "½": "1/2", "¼": "1/4", "¾": "3/4"}
_SIGNS |= {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "€": "$", "£": "#"}
_ABBREVIATIONS = "mr|mrs|ms|dr|st|jr|sr|vs|etc|inc|co|corp|ltd|ave|blvd|rd|prof|gen|sen|rep|lt|col|sgt|capt|ft|mt|jan"
_ABBREVIATIONS += "|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec"
_TOKENS = re.compile(
    rf"""
    n't(?!\w) | '(?:s|m|d|re|ve|ll)(?!\w) | y'(?=all)
  | (?:[a-z]\.){{2,}}                                 # u.s., p.m.
  | (?:{_ABBREVIATIONS})\.(?![a-z])
  | no\.(?=\s*[\d,])                                  # no. 5
  | [a-z]\.(?!\w)                                     # j. smith
  | '(?:\d\ds?|n(?=\b)|t(?=is\b|was\b))               # '90s, 'n, 't is
  | \d+(?:[.,:/-]\d+)*\w*(?:[-/]\w+)*                 # 1,000, 3:00, 2nd, 10-foot
  | \.\d+
  | o'clock | ma'am | o'\w+ | d'ye
  | \w+(?:[-/&]\w+)*                                  # black-and-white, his/her
  | \.\.\. | --+ | [?!]+ | [^\w\s]
    """,
    re.VERBOSE,
)
_CLITIC = re.compile(r"(?<=\w)n't(?!\w)|'(?:s|m|d|re|ve|ll)(?!\w)")
_TWO_WORDS = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "wanna": ("wan", "na"),
    "gimme": ("gim", "me"),
    "lemme": ("lem", "me"),
}
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
# COCO's list, without its "-LRB-" and the like: they are never found, since the tokens are in lower case.
_DROPPED = {"''", "'", "``", "`", '"', ".", "?", "!", ",", ":", "-", "--", "...", ";"}


def tokenize(caption: str) -> str:
    """The tokens of a caption, in lower case, without punctuation, joined by spaces."""
    text = caption.lower()
    for sign, plain in _SIGNS.items():
        text = text.replace(sign, plain)
    tokens: list[str] = []
    for token in _split(text):
        tokens += _TWO_WORDS.get(token, (_BRACKETS.get(token, token),))
    return " ".join(token for token in tokens if token not in _DROPPED)


def _split(text: str) -> list[str]:
    """The tokens, with contractions and possessives apart: "isn't" is "is n't", "dog's" is "dog 's"."""
    return _TOKENS.findall(_CLITIC.sub(lambda found: f" {found[0]} ", text))


@dataclasses.dataclass(frozen=True)
class CaptionScores:
    """Scores of captions.

    Attributes:
      bleu: BLEU-1 to BLEU-4 of all captions, 0 to 1.
      rouge_l: mean ROUGE-L, 0 to 1.
      cider: mean CIDEr-D, 0 to 10.
      ciders: float64[N], CIDEr-D of each caption.
    """

    bleu: tuple[float, ...]
    rouge_l: float
    cider: float
    ciders: np.ndarray


def score_captions(captions: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Scores tokenized captions.

    CIDEr weighs words by how rare they are in these references, so that of a subset is another number.

    Args:
      references: of each caption, one or more.
    """
    from pycocoevalcap.bleu.bleu import Bleu  # of the extra `evaluate`
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    truths = {place: list(given) for place, given in enumerate(references)}
    answers = {place: [caption] for place, caption in enumerate(captions)}
    bleu, _ = Bleu(4).compute_score(truths, answers, verbose=0)
    rouge_l, _ = Rouge().compute_score(truths, answers)
    cider, ciders = Cider().compute_score(truths, answers)
    return CaptionScores(tuple(map(float, bleu)), float(rouge_l), float(cider), ciders)
