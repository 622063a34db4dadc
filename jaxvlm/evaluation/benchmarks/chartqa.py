"""ChartQA: questions on charts, half written by people, half generated; numbers may be 5 percent off.

Source: arXiv:2203.10244; lmms-eval 0.7.3, tasks/chartqa; VLMEvalKit (ms-vlmeval 0.0.20), dataset/image_vqa.py.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxvlm.evaluation.benchmarks.benchmark import LMMS_EVAL, VLMEVALKIT, Benchmark, Item, Scores
from jaxvlm.evaluation.benchmarks.files import (
    Images,
    Layouts,
    Row,
    find_layout,
    image_name,
    json_rows,
    make_items,
    parquet_rows,
)
from jaxvlm.evaluation.benchmarks.prompts import SHORT, with_images
from jaxvlm.evaluation.metrics.averages import mean_scores
from jaxvlm.evaluation.metrics.relaxed import relaxed
from jaxvlm.media import Medium

_HUMAN, _AUGMENTED = "human_test", "augmented_test"
_LAYOUTS: Layouts = {
    "official": {
        _HUMAN: ("test_human.json", "test/test_human.json"),
        _AUGMENTED: ("test_augmented.json", "test/test_augmented.json"),
    },
    "parquet": {"rows": ("data/test-*.parquet", "test-*.parquet")},
}


class ChartQa(Benchmark):
    """ChartQA test in the dialects of lmms-eval and VLMEvalKit; LLaVA has none."""

    name = "chartqa"
    title = "ChartQA"
    about = "questions on charts, human and generated"
    files = """test  test_human.json, test_augmented.json, png/*.png (or these in test/);
      or data/test-*.parquet of lmms-lab-encoder/ChartQA"""
    source = "https://github.com/vis-nlp/ChartQA, or lmms-lab-encoder/ChartQA on Hugging Face"
    metric = "relaxed accuracy, percent"
    splits = {"test": 2_500}
    dialects = (LMMS_EVAL, VLMEVALKIT)
    max_new_tokens = {"": 16, VLMEVALKIT: 512}

    def load(self, folder: Path, split: str) -> list[Item]:
        """The questions of both halves, people's first; an id is the half and the number in it."""
        layout, files = find_layout(folder, _LAYOUTS, f"{self.title} {split}", self.source)
        images = Images(folder / "png", folder / "test" / "png", folder)
        if layout == "parquet":
            rows: Iterable[Row] = parquet_rows(files["rows"])
        else:
            rows = [_with_half(row, half) for half in (_HUMAN, _AUGMENTED) for row in json_rows(files[half][0])]
        numbers: dict[str, Iterator[int]] = defaultdict(itertools.count)
        return make_items(rows, lambda row: _item(row, next(numbers[row.text("type")]), images), images)

    def prompt(self, item: Item, dialect: str) -> str:
        """The question and a sentence on its length."""
        sentence = SHORT if dialect == VLMEVALKIT else "Answer the question with a single word."
        return with_images(item, f"{item.question}\n{sentence}")

    def parse(self, item: Item, text: str, dialect: str) -> str:
        """The answer; VLMEvalKit removes white space round it."""
        return text.strip() if dialect == VLMEVALKIT else text

    def score(self, items: Sequence[Item], values: Sequence[Any], dialect: str) -> Scores:
        """Relaxed accuracy; the mean of all questions, which is that of the halves where these are equal in size."""
        pairs = zip(items, values, strict=True)
        return mean_scores(items, [float(relaxed(value, item.truth)) for item, value in pairs], "relaxed_accuracy")


def _with_half(row: Row, half: str) -> Row:
    """A row of the original files with the column that Parquet's have."""
    return dataclasses.replace(row, values={**row.values, "type": half})


def _item(row: Row, number: int, images: Images) -> Item:
    half = row.text("type")
    image: Medium = images.find(row.text("imgname")) if "imgname" in row.values else images.of(row.any("image"))
    return Item(
        f"{half}-{number}",
        (image,),
        row.text("query", "question"),
        str(row.any("label", "answer")),
        groups={"half": "human" if half == _HUMAN else "augmented"},
        cluster=image_name(image),
        origin=row.origin,
    )
