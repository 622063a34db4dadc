"""One's own questions: a file in a form that `data.source` of a recipe takes, each record a question and an answer.

The dialects are metrics: exact_match, normalised, contains, and choice.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvlm.data.records import Record, has_videos, split_media
from jaxvlm.errors import UserError, listed
from jaxvlm.evaluation.benchmarks.benchmark import Benchmark, Item, Scores
from jaxvlm.evaluation.benchmarks.files import check_ids
from jaxvlm.evaluation.metrics.averages import mean_scores
from jaxvlm.evaluation.metrics.choices import LETTERS, lettered, lone_letter_or_text, percent
from jaxvlm.evaluation.metrics.matching import contains, normalised
from jaxvlm.evaluation.questions import load_questions

EXACT, NORMALISED, CONTAINS, CHOICE = "exact_match", "normalised", "contains", "choice"
_METRICS = {
    EXACT: lambda value, truth: value == truth,
    NORMALISED: lambda value, truth: normalised(value) == normalised(truth),
    CONTAINS: contains,
}
_LINES = re.compile(r"^[ \t]*\(?([A-Z])[.):][ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
_INLINE = re.compile(r"\(([A-Z])\)\s*(\S.*?)\s*(?=\([A-Z]\)|$)", re.DOTALL)
_MOST_CHOICES = len(LETTERS)


class OwnFile(Benchmark):
    """See the top of this file."""

    name = "own"
    title = "Own file"
    about = "your own questions with reference answers, each asked alone"
    files = (
        "test.jsonl or test.json, val.jsonl and so on; for test also the folder's only .json or .jsonl file;\n"
        "conversations as in data.source, which end with the reference answer; image paths relative to the folder"
    )
    source = "yourself"
    metric = "share of right answers, percent"
    splits = {"test": 0, "val": 0, "train": 0}
    dialects = (EXACT, NORMALISED, CONTAINS, CHOICE)
    max_new_tokens = {"": 128}

    def load(self, folder: Path, split: str) -> list[Item]:
        """As `Benchmark.load`; `folder` may be the file itself."""
        path = folder if folder.is_file() else _find(folder, split)
        records, _ = load_questions(str(path), str(path.parent))
        followed = [record.origin for record in records if _earlier(record)]
        if followed:
            raise UserError(
                f"{len(followed):,} questions of {path} follow earlier turns or a system message ({listed(followed)}), "
                f"and here each is asked alone; run evaluate with --data {path} and without --suite"
            )
        items = [_item(record, place, path) for place, record in enumerate(records)]
        check_ids(items)
        return _with_choices(items)

    def prompt(self, item: Item, dialect: str) -> str:
        """The user turn of the file."""
        return item.extra["user"]

    def parse(self, item: Item, text: str, dialect: str) -> str | None:
        """The answer without white space at its ends; of a choice the text of the one that it names, or None."""
        return _chosen(text, item) if dialect == CHOICE else text.strip()

    def score(self, items: Sequence[Item], values: Sequence[Any], dialect: str) -> Scores:
        """The share of right answers; beside it by the other metrics, unless the answers are choices.

        Raises:
          UserError: the answers are choices, and questions have none.
        """
        pairs = list(zip(items, values, strict=True))
        if dialect == CHOICE:
            _check_choices(items)
            credits = [float(value is not None and value == item.extra["choice"]) for item, value in pairs]
            return mean_scores(items, credits, CHOICE)
        by_metric = {
            metric: [float(value is not None and is_right(value, item.truth)) for item, value in pairs]
            for metric, is_right in _METRICS.items()
        }
        scores = mean_scores(items, by_metric[dialect], dialect)
        others = {metric: percent(np.array(credits)) for metric, credits in by_metric.items() if metric != dialect}
        return dataclasses.replace(scores, numbers=scores.numbers | others)

    def continuations(self, item: Item, dialect: str) -> tuple[str, ...]:
        """The letters of the options in the question, else all reference answers of the file; () if these are many."""
        return tuple(lettered(item.choices)) if item.extra["letters"] else item.choices


def _find(folder: Path, split: str) -> Path:
    """The file of a split.

    Raises:
      UserError: there is none, or there are several.
    """
    named = [path for end in ("jsonl", "json") if (path := folder / f"{split}.{end}").is_file()]
    others = [*folder.glob("*.jsonl"), *folder.glob("*.json")] if split == "test" else []
    found = named or others
    if len(found) == 1:
        return found[0]
    what = f"found {listed(sorted(path.name for path in found), ', ')}" if found else "found none"
    raise UserError(
        f"{folder} has one file {split}.jsonl or {split}.json, {what}; put your questions there, or name a file: "
        "--data FILE"
    )


def _earlier(record: Record) -> bool:
    return [turn.role for turn in record.turns] != ["user", "assistant"]


def _item(record: Record, place: int, path: Path) -> Item:
    user, truth = record.turns[0].text, record.turns[-1].text.strip()
    question = "".join(split_media(user, videos=has_videos(record.images))[::2]).strip()
    options = _options(question)
    choice = _right_option(truth, options) if options else truth
    # Options that do not include the answer are something else, such as a list in the question.
    letters = bool(options) and choice is not None
    return Item(
        id=record.id or f"{path.name}[{place}]",
        images=record.images,
        question=question,
        truth=truth,
        choices=options if letters else (),
        groups={"group": record.group} if record.group else {},
        cluster=next((image for image in record.images if isinstance(image, str)), ""),
        origin=record.origin,
        extra={"user": user, "letters": letters, "choice": choice if letters else truth},
    )


def _options(question: str) -> tuple[str, ...]:
    """The options that a question lists: lines "A. red" or "(A) red", or "(A) red (B) blue" in one line; or ()."""
    for pattern in (_LINES, _INLINE):
        found = pattern.findall(question)
        if len(found) > 1 and "".join(letter for letter, _ in found) == LETTERS[: len(found)]:
            return tuple(text for _, text in found)
    return ()


def _right_option(truth: str, options: Sequence[str]) -> str | None:
    """The text of the option that a reference answer names by its letter or text."""
    letter = truth.strip().strip("().:").upper()
    by_letter = lettered(options)
    if letter in by_letter:
        return by_letter[letter]
    wanted = normalised(truth)
    return next((option for option in options if normalised(option) == wanted), None)


def _with_choices(items: Sequence[Item]) -> list[Item]:
    """Items without options get all reference answers of such items as choices, if these are few."""
    truths = tuple(dict.fromkeys(item.truth for item in items if not item.choices))
    few = truths if 1 < len(truths) <= _MOST_CHOICES else ()
    return [item if item.choices else dataclasses.replace(item, choices=few) for item in items]


def _chosen(text: str, item: Item) -> str | None:
    """The choice that an answer names by its letter, equals, or contains as the only one."""
    by_letter = lettered(item.choices) if item.extra["letters"] else {}
    letter = text.strip().strip("().:").upper()
    if letter in by_letter:
        return by_letter[letter]
    answer = normalised(text)
    equal = [choice for choice in item.choices if normalised(choice) == answer]
    if equal:
        return equal[0]
    if by_letter:
        found = lone_letter_or_text(text, by_letter)
        return by_letter[found] if found else None
    within = [choice for choice in item.choices if contains(text, choice)]
    return within[0] if len(within) == 1 else None


def _check_choices(items: Sequence[Item]) -> None:
    bare = [item.origin for item in items if not item.choices]
    if bare:
        raise UserError(
            f"{len(bare):,} questions list no options A, B, ... that include their answer, and the file has more than "
            f"{_MOST_CHOICES} reference answers or only one ({listed(bare)}); take another metric than choice"
        )
