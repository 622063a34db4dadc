"""ANLS: the average normalised Levenshtein similarity, for answers that are read off a page.

Source: ST-VQA (arXiv:1905.13648); the packages anls 0.0.2, lmms-eval and VLMEvalKit.
"""

from __future__ import annotations

from collections.abc import Sequence


def anls(answer: str, truths: Sequence[str]) -> float:
    """1 minus the distance to the nearest truth, 0 from half of the longer text on.

    Case and runs of white space do not count.
    """
    given = _collapsed(answer)
    distance = min(_distance(given, truth, _longer(given, truth)) for truth in map(_collapsed, truths))
    return 1 - distance if distance < 0.5 else 0.0


def lmms_anls(answer: str, truths: Sequence[str]) -> float:
    """As lmms-eval and VLMEvalKit have it: a distance of exactly half scores .5, and spaces count for the length."""
    given = _collapsed(answer)
    similarity = 1 - min(_distance(given, _collapsed(truth), _longer(answer, truth)) for truth in truths)
    return similarity if similarity >= 0.5 else 0.0


def _collapsed(text: str) -> str:
    return " ".join(text.strip().lower().split())


def _distance(a: str, b: str, length: int) -> float:
    """The edit distance of two texts over a length; 0 for two empty texts."""
    if abs(len(a) - len(b)) > length / 2:  # the distance is more, and scores 0: long answers cost no time
        return 1.0
    return levenshtein(a, b) / length if length else 0.0


def _longer(a: str, b: str) -> int:
    return max(len(a.upper()), len(b.upper()))  # the originals count capitals: "ß" has two


def levenshtein(a: str, b: str) -> int:
    """The least number of characters to insert, delete or replace that makes one text the other."""
    previous = list(range(len(b) + 1))
    for row, letter in enumerate(a, 1):
        current, last, diagonal = [row], row, row - 1
        for other, above in zip(b, previous[1:], strict=True):
            if letter == other:
                last = diagonal
            else:  # min() of the three takes twice as long
                if diagonal < last:
                    last = diagonal
                last = 1 + (above if above < last else last)
            current.append(last)
            diagonal = above
        previous = current
    return previous[-1]
