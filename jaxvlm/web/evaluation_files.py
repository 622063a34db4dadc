"""Results of evaluations in a run's folder, read and compared.

  evaluation.json              the recipe's own test               {"answers": [{"right": ...}], "exact_match": ...}
  evaluation/NAME/evaluation.json  other data, the same form
  evaluations/NAME.json        benchmarks                          {"answers": [{"credit": ...}], "scores": {...}}

A result's name is its path below the run's folder, and is only ever looked up among those that are there.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxvlm.runs import RunFolder

_CACHED = 8  # results kept parsed; one of 10,000 answers takes some 10 MB
_Z = 1.959964  # of a normal distribution: 95 % lie within
_YES_NO = ("yes", "no")
_OTHER = "other"


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answered question.

    Attributes:
      index: place in the file.
      credit: 0 to 1; None: it is not scored by itself.
      groups: axis -> value.
      images: absolute paths; None: there is no image file. Files of older versions name none.
    """

    index: int
    id: str
    origin: str
    question: str
    answer: str
    truth: Any
    credit: float | None
    groups: Mapping[str, str]
    images: tuple[str | None, ...]

    @property
    def is_correct(self) -> bool | None:
        """Whether it has full credit; None: it is not scored by itself."""
        return None if self.credit is None else self.credit >= 1

    @property
    def truth_text(self) -> str:
        """The truth as text."""
        return self.truth if isinstance(self.truth, str) else json.dumps(self.truth, ensure_ascii=False)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A result.

    Attributes:
      scores: name -> number; the first is the main one.
      interval: low and high of the main one, 95 %; None: there is none.
      groups: axis -> value -> main number of its questions.
      about: data, stage, step, dialect, ... as the file has them.
      time: when the file was written, seconds since 1970.
    """

    name: str
    title: str
    scores: Mapping[str, float]
    interval: tuple[float, float] | None
    groups: Mapping[str, Mapping[str, float]]
    about: Mapping[str, Any]
    time: float
    answers: tuple[Answer, ...]

    def summary(self) -> dict[str, Any]:
        """What a list of results shows, ready for JSON."""
        low, high = self.interval or (None, None)
        return {
            "name": self.name,
            "title": self.title,
            "score": dict(self.scores),
            "low": low,
            "high": high,
            "count": len(self.answers),
            "groups": {axis: dict(numbers) for axis, numbers in self.groups.items()},
            "time": self.time,
            **self.about,
        }


def find_results(run: Path) -> dict[str, Path]:
    """The results of a run by name, its own test first."""
    folder = RunFolder(run)
    paths = [folder.evaluation_file, *sorted(run.glob("evaluation/*/evaluation.json"))]
    paths += sorted(folder.evaluations.glob("*.json"))
    return {str(path.relative_to(run)): path for path in paths if path.is_file()}


def read_result(name: str, path: Path) -> Evaluation:
    """Reads a result; one that has not changed is not read again.

    Raises:
      ValueError: the file is no result, or damaged.
      OSError: it cannot be read.
    """
    status = path.stat()
    return _read(name, path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(_CACHED)
def _read(name: str, path: Path, mtime_ns: int, size: int) -> Evaluation:
    found = json.loads(path.read_bytes())
    if not isinstance(found, dict) or not isinstance(found.get("answers"), list):
        raise ValueError(f"{path} is no result of an evaluation: it has no list of answers")
    try:
        return (_read_suite if "scores" in found else _read_test)(name, found, mtime_ns / 1e9)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no result of an evaluation ({type(error).__name__}: {error})") from error


def _read_test(name: str, found: dict[str, Any], time: float) -> Evaluation:
    answers = tuple(
        _answer(index, row, row["answer"], float(row["right"]), {"group": row["group"]} if row.get("group") else {})
        for index, row in enumerate(found["answers"])
    )
    right = sum(answer.is_correct or False for answer in answers)
    groups = {"group": {key: of["exact_match"] for key, of in found.get("by_group", {}).items()}}
    about = {key: found.get(key) for key in ("data", "stage", "step", "limit")}
    interval = wilson(right, len(answers)) if answers else None
    scores = {"exact_match": found["exact_match"]}
    return Evaluation(name, str(found["data"]), scores, interval, groups, about, time, answers)


def _read_suite(name: str, found: dict[str, Any], time: float) -> Evaluation:
    answers = tuple(
        _answer(index, row, row["text"], row.get("credit"), row.get("groups", {}))
        for index, row in enumerate(found["answers"])
    )
    given = found.get("interval")
    interval = (given["low"], given["high"]) if given else None
    about = {key: found.get(key) for key in ("benchmark", "split", "dialect", "metric", "scoring", "published")}
    about |= {key: found.get("model", {}).get(key) for key in ("stage", "step")}
    return Evaluation(name, found["title"], found["scores"], interval, found["groups"], about, time, answers)


def _answer(index: int, row: dict[str, Any], text: str, credit: Any, groups: Mapping[str, str]) -> Answer:
    number = credit if isinstance(credit, int | float) and math.isfinite(credit) else None
    images = tuple(path if isinstance(path, str) else None for path in row.get("images", ()))
    question, origin = row["question"], str(row.get("origin", ""))
    return Answer(index, str(row["id"]), origin, question, text, row["truth"], number, groups, images)


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share, `right` of `count` questions (Wilson 1927), which are taken as independent."""
    share, z2 = right / count, _Z * _Z
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count)) / (1 + z2 / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def choose(
    answers: Iterable[Answer], *, group: str = "", verdict: str = "", text: str = "", sort: str = ""
) -> list[Answer]:
    """Answers that pass all filters, sorted.

    Args:
      group: "AXIS=VALUE"; "": all.
      verdict: "right", "wrong" or "unscored"; "": all.
      text: in question, answer or truth, whatever the case.
      sort: "longest" or "shortest" answer first, "worst" credit first; "": as in the file.
    """
    axis, _, value = group.partition("=")
    wanted = {"right": True, "wrong": False, "unscored": None}
    words = text.casefold()
    chosen = [
        answer
        for answer in answers
        if (not group or answer.groups.get(axis) == value)
        and (not verdict or answer.is_correct is wanted[verdict])
        and (not words or words in f"{answer.question}\n{answer.answer}\n{answer.truth_text}".casefold())
    ]
    if sort in ("longest", "shortest"):
        chosen.sort(key=lambda answer: len(answer.answer), reverse=sort == "longest")
    elif sort == "worst":
        chosen.sort(key=lambda answer: 2.0 if answer.credit is None else answer.credit)
    return chosen


def confusion(answers: Sequence[Answer]) -> dict[str, dict[str, int]] | None:
    """truth -> answer -> number of questions, of those whose truth is yes or no; None: there are none."""
    counts = {truth: Counter[str]() for truth in _YES_NO}
    for answer in answers:
        truth = _yes_no(answer.truth) if isinstance(answer.truth, str) else _OTHER
        if truth in counts:
            counts[truth][_yes_no(answer.answer)] += 1
    if not any(counts.values()):
        return None
    return {truth: {given: of[given] for given in (*_YES_NO, _OTHER)} for truth, of in counts.items()}


def _yes_no(text: str) -> str:
    words = text.casefold().replace(",", " ").replace(".", " ").split()
    return words[0] if words and words[0] in _YES_NO else _OTHER


def flips(ours: Sequence[Answer], others: Sequence[Answer]) -> tuple[list[tuple[Answer, Answer]], ...]:
    """Questions that both results have and of which one alone is right: (ours is right), (the other's is right).

    Questions are the same if id, text and truth are.
    """

    def key(answer: Answer) -> tuple[str, str, str]:
        return answer.id, answer.question, answer.truth_text

    known = {key(other): other for other in others}
    pairs = [(answer, known[key(answer)]) for answer in ours if key(answer) in known]
    better = [pair for pair in pairs if pair[0].is_correct and pair[1].is_correct is False]
    worse = [pair for pair in pairs if pair[0].is_correct is False and pair[1].is_correct]
    return better, worse
