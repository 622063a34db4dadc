"""The contract of a benchmark: files -> items -> prompts; answers -> values -> numbers. No JAX, no model.

A dialect is how one tool asks, parses and averages; it stands beside each number, since numbers of two dialects of one
benchmark cannot be compared.

Axis letters:
  R bootstrap draws   N items
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvlm.media import Medium

LLAVA, OFFICIAL, LMMS_EVAL, VLMEVALKIT = "llava", "official", "lmms_eval", "vlmevalkit"


@dataclasses.dataclass(frozen=True)
class Item:
    """One question of a benchmark.

    Attributes:
      id: as its files have it; no two items have the same.
      images: paths or bytes, in the order in which `question` has or implies them.
      question: as the files have it.
      truth: what `score` compares with, ready for JSON: a text, a letter, a list of texts; None: only a server knows.
      choices: texts of the options, "" if there are none.
      groups: axis -> value, such as {"question type": "yes/no"}.
      cluster: items that share it are drawn together by the bootstrap, such as the questions of one image.
      origin: its place for messages, such as "questions.jsonl[12]".
      extra: what else the benchmark needs of its files, ready for JSON.
    """

    id: str
    images: tuple[Medium, ...]
    question: str
    truth: Any
    choices: tuple[str, ...] = ()
    groups: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cluster: str = ""
    origin: str = ""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Scores:
    """The numbers of a set of answers.

    Attributes:
      numbers: name -> value; the first is the main one, the one that is compared with published numbers.
      credits: float64[N], what each item earned, 0 to 1; NaN: it is not scored by itself.
      groups: axis -> value -> main number of those items.
      counts: axis -> value -> how many items.
    """

    numbers: dict[str, float]
    credits: np.ndarray
    groups: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    counts: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Published:
    """A number that somebody printed."""

    model: str  # "LLaVA-1.5 7B"
    value: float  # on the scale of the main number
    dialect: str
    source: str  # who printed it
    split: str = ""  # "": the default


class Benchmark(abc.ABC):
    """One benchmark.

    Attributes:
      name: as `--suite` takes it: "pope".
      title: as a table shows it: "POPE".
      about: one line on what it tests.
      files: the tree that `load` reads, one line for each file, with what it is.
      source: where the files come from, for people.
      metric: name and scale of the main number: "F1, mean of three, percent".
      splits: name -> number of items of the whole split, 0 if it is not known; the first is the default.
      dialects: the first is the default.
      max_new_tokens: dialect -> length limit of an answer; "" holds for the others.
      published: numbers of others.
      packages: of the extra `evaluate`, that its scores or its submission need.
    """

    name: str
    title: str
    about: str
    files: str
    source: str
    metric: str
    splits: Mapping[str, int]
    dialects: tuple[str, ...] = (LLAVA,)
    max_new_tokens: Mapping[str, int]
    published: Sequence[Published] = ()
    packages: tuple[str, ...] = ()

    @abc.abstractmethod
    def load(self, folder: Path, split: str) -> list[Item]:
        """The items of a split, in the order of the files.

        Raises:
          UserError: files are missing (all are named, with where they come from) or broken; items are doubled, or name
            images that are not there (ten at most are named).
        """

    @abc.abstractmethod
    def prompt(self, item: Item, dialect: str) -> str:
        """The user turn, with a placeholder `<image>` for each image."""

    @abc.abstractmethod
    def parse(self, item: Item, text: str, dialect: str) -> Any:
        """The value that an answer gives, ready for JSON; None if it cannot be parsed, which scores 0."""

    @abc.abstractmethod
    def score(self, items: Sequence[Item], values: Sequence[Any], dialect: str) -> Scores:
        """The numbers of a set of values of `parse`, one for each item."""

    def resample(
        self, items: Sequence[Item], values: Sequence[Any], dialect: str, draws_RN: np.ndarray
    ) -> np.ndarray | None:
        """The main number of each bootstrap draw; None if it is the mean of the credits times a constant.

        Args:
          draws_RN: int32[R, N], how often each item is in each draw.

        Returns:
          float64[R].
        """
        return None

    def continuations(self, item: Item, dialect: str) -> tuple[str, ...]:
        """The answers that are ranked by likelihood, such as the letters of the options; () if that makes no sense."""
        return ()

    def submission(
        self, items: Sequence[Item], texts: Sequence[str], values: Sequence[Any]
    ) -> Mapping[str, str | bytes]:
        """Files that a server scores, name -> content; {} if there is no server."""
        return {}
