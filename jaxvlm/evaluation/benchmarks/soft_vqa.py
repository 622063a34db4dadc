"""What the benchmarks with ten human answers for each question share: VQAv2, TextVQA and VizWiz."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxvlm.evaluation.benchmarks.benchmark import Benchmark, Item, Scores
from jaxvlm.evaluation.benchmarks.files import Row, RowError
from jaxvlm.evaluation.metrics.averages import mean_scores
from jaxvlm.evaluation.metrics.vqa_accuracy import soft_score

METRIC = "VQA accuracy, percent"


class SoftVqa(Benchmark):
    """A benchmark scored by VQA accuracy.

    Attributes:
      normalisers: dialect -> how it normalises answers and truths.
    """

    metric = METRIC
    normalisers: Mapping[str, Callable[[str], str]]

    def parse(self, item: Item, text: str, dialect: str) -> str:
        """The normalised answer; an empty one is an answer too."""
        return self.normalisers[dialect](text)

    def score(self, items: Sequence[Item], values: Sequence[Any], dialect: str) -> Scores:
        """VQA accuracy in percent; no number for a split whose answers only a server knows."""
        credits = [
            float("nan") if item.truth is None else soft_score(value, self.truths(item, dialect))
            for item, value in zip(items, values, strict=True)
        ]
        return mean_scores(items, credits, "accuracy")

    def truths(self, item: Item, dialect: str) -> list[str]:
        """The normalised answers of the ten people."""
        return [self.normalisers[dialect](truth) for truth in item.truth]


def human_answers(row: Row, *, required: bool) -> list[str] | None:
    """The answers in a row, texts or objects with "answer"; None: it has none, as in test splits.

    Raises:
      RowError: they are neither, or there is none where it is required.
    """
    answers = row.get("answers")
    if not answers and required:
        raise RowError('"answers" is missing or empty')
    if not answers:
        return None
    found = [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers]
    texts = [text for text in found if isinstance(text, str)]
    if len(texts) < len(found):
        raise RowError('"answers" is a list of texts, or of objects with "answer"')
    return texts
