"""Yes/no answers: parsers of the published scorers, and counts of right and wrong ones.

Each parser gives "yes", "no", or None where its tool reads neither.

Axis letters:
  R draws   N items

Source: AoiDragon/POPE evaluate.py and LLaVA's llava/eval/eval_pope.py (the same parser); MME's calculation.py;
lmms-eval 0.7.3 tasks/pope/utils.py and tasks/mme/utils.py; ms-vlmeval 0.0.20 dataset/utils/yorn.py and smp/misc.py.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

YES, NO = "yes", "no"
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"(?<!\d)\.(?!\d)")
_FULL_STOPS = int(re.UNICODE)  # their call passes the flag as the count, so only the first 32 are removed


def first_sentence_yes_no(text: str) -> str:
    """POPE's and LLaVA's: "no" if the first sentence has the word No, no or not, else "yes", even for an empty answer.

    "Not at all" -> yes     "yes, not here" -> no     "NO" -> yes     "" -> yes
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return NO if {"No", "not", "no"} & set(words) else YES


def equal_yes_no(text: str) -> str | None:
    """lmms-eval's for POPE: the answer is yes or no, apart from case and white space at both ends."""
    answer = text.lower().strip()
    return answer if answer in (YES, NO) else None


def leading_yes_no(text: str) -> str | None:
    """MME's: yes or no within the first four characters, yes before no; "nothing" is no, "The yes" is neither."""
    start = text.lower()[:4]
    return YES if YES in start else NO if NO in start else None


def leading_yes_no_or_initial(text: str) -> str | None:
    """lmms-eval's for MME: as MME's after full stops and white space at both ends are removed; "y" and "n" count."""
    answer = text.lower().strip().replace(".", "")
    if len(answer) == 1:
        return {"y": YES, "n": NO}.get(answer)
    return leading_yes_no(answer)


def word_yes_no(text: str) -> str | None:
    """VLMEvalKit's: the word yes without the word no, or no without yes, after it removed punctuation."""
    lower = answer = text.lower()
    thousands = _DIGIT_COMMA_DIGIT.search(lower) is not None
    for mark in _MARKS:
        beside_space = mark + " " in lower or " " + mark in lower
        answer = answer.replace(mark, "" if beside_space or thousands else " ")
    words = _FULL_STOP.sub("", answer, count=_FULL_STOPS).split()
    if (YES in words) == (NO in words):
        return None
    return YES if YES in words else NO


@dataclasses.dataclass(frozen=True)
class Confusion:
    """Weighted counts of answers, one of each kind for each draw; yes is positive.

    Attributes:
      tp: float64[R], truth yes, answer yes.
      fp: float64[R], truth no, answer yes.
      tn: float64[R], truth no, answer no.
      fn: float64[R], truth yes, answer no.
      total: float64[R], all answers, with those that are neither.
    """

    tp: np.ndarray
    fp: np.ndarray
    tn: np.ndarray
    fn: np.ndarray
    total: np.ndarray

    @staticmethod
    def of(
        truths: Sequence[str], values: Sequence[str | None], weights_RN: np.ndarray, *, neither_is_no: bool
    ) -> Confusion:
        """Counts.

        Args:
          truths: "yes" or "no", one for each item.
          values: "yes", "no" or None, one for each item.
          weights_RN: how often each item counts in each draw.
          neither_is_no: whether None with truth yes is a false negative, which lowers recall; it is wrong in any case.
        """
        true_N = np.array([truth == YES for truth in truths], bool)
        yes_N = np.array([value == YES for value in values], bool)
        no_N = np.array([value == NO for value in values], bool)
        missed_N = true_N & (~yes_N if neither_is_no else no_N)
        kinds_N4 = np.stack([true_N & yes_N, ~true_N & yes_N, ~true_N & no_N, missed_N], axis=1)
        tp, fp, tn, fn = np.asarray(weights_RN, np.float64).dot(kinds_N4).T
        return Confusion(tp, fp, tn, fn, np.asarray(weights_RN, np.float64).sum(1))

    def __add__(self, other: Confusion) -> Confusion:
        """The counts of both together."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Confusion(*(one + two for one, two in pairs))

    @property
    def accuracy(self) -> np.ndarray:
        """float64[R], the share of right answers."""
        return _ratio(self.tp + self.tn, self.total)

    @property
    def precision(self) -> np.ndarray:
        """float64[R], the share of right ones among the answers yes; 0 if there is none."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> np.ndarray:
        """float64[R], the share of answers yes among the truths yes; 0 if there is none."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> np.ndarray:
        """float64[R], the harmonic mean of precision and recall; 0 if both are."""
        return _ratio(2 * self.precision * self.recall, self.precision + self.recall)

    @property
    def yes_ratio(self) -> np.ndarray:
        """float64[R], the share of yes among the answers."""
        return _ratio(self.tp + self.fp, self.total)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
