"""Compares free answers with reference texts: equal after normalisation, or contained."""

from __future__ import annotations

import re
import string
import unicodedata

_ARTICLES = ("a", "an", "the")
_EDGES = string.punctuation + "\u201c\u201d\u2018\u2019\u00ab\u00bb\u3002\uff0c\u3001\uff01\uff1f"
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?:\D|$))")


def normalised(text: str) -> str:
    """A text without case, articles, punctuation at the edges of words, and repeated white space.

    "The  Answer, is: -1,500.5!"  -> "answer is -1500.5"
    "The answer is A."            -> "answer is a", for an article has a word after it
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = [bare for word in folded.split() if (bare := _bare(word))]
    return " ".join([*(word for word in words[:-1] if word not in _ARTICLES), *words[-1:]])


def contains(text: str, part: str) -> bool:
    """Whether the words of `part` stand one after another in `text`, both normalised; an empty part only in nothing."""
    whole, wanted = normalised(text), normalised(part)
    return f" {wanted} " in f" {whole} " if wanted else not whole


def _bare(word: str) -> str:
    """A word without punctuation at its edges, a number without commas between thousands; a sign stays."""
    bare = word.strip(_EDGES)
    at = word.find(bare) if bare else 0
    sign = "-" if bare[:1].isdigit() and at > 0 and word[at - 1] in "-\u2212" else ""
    return sign + _THOUSANDS.sub("", bare)
