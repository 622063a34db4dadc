"""Relaxed accuracy of ChartQA: numbers within 5 percent of the truth are right.

Source: ChartQA (arXiv:2203.10244), section 5.1; the code of pix2struct, which lmms-eval and VLMEvalKit have too.
"""

from __future__ import annotations

TOLERANCE = 0.05  # of the truth


def relaxed(answer: str, truth: str) -> bool:
    """Whether two numbers are near, or two texts equal without regard to case.

    "%" at the end divides by 100. A truth of 0 is compared as text, so "0.0" is not "0".
    """
    given, wanted = _number(answer), _number(truth)
    if given is not None and wanted:
        return abs(given - wanted) / abs(wanted) <= TOLERANCE
    return answer.lower() == truth.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
