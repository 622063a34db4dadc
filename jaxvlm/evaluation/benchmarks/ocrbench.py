"""OCRBench: a thousand questions on text in images; right if an answer of the files is contained in the model's.

Source: arXiv:2305.07895 and OCRBench/example.py of Yuliang-Liu/MultimodalOCR; lmms-eval 0.7.3, tasks/ocrbench;
VLMEvalKit (ms-vlmeval 0.0.20), dataset/image_vqa.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxvlm.evaluation.benchmarks.benchmark import LMMS_EVAL, OFFICIAL, VLMEVALKIT, Benchmark, Item, Scores
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
from jaxvlm.evaluation.benchmarks.prompts import with_images
from jaxvlm.evaluation.metrics.averages import mean_scores
from jaxvlm.media import Medium

_LAYOUTS: Layouts = {
    "official": {"questions": ("OCRBench.json", "json_files/OCRBench.json")},
    "parquet": {"rows": ("data/test-*.parquet", "test-*.parquet")},
}
_FORMULAS, _FORMULA_SET = "Handwritten Mathematical Expression Recognition", "HME100k"
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: " "}
_POINTS = 1000  # of the whole benchmark, which has as many questions


class OcrBench(Benchmark):
    """OCRBench in the official dialect and those of lmms-eval and VLMEvalKit; LLaVA has none."""

    name = "ocrbench"
    title = "OCRBench"
    about = "text recognition, scene text, documents, key information, formulas"
    files = """test  OCRBench.json, OCRBench_Images/*; or data/test-*.parquet of echo840/OCRBench"""
    source = "https://github.com/Yuliang-Liu/MultimodalOCR, or echo840/OCRBench on Hugging Face"
    metric = "right answers of 1,000"
    splits = {"test": 1_000}
    dialects = (OFFICIAL, LMMS_EVAL, VLMEVALKIT)
    max_new_tokens = {"": 128, VLMEVALKIT: 512}

    def load(self, folder: Path, split: str) -> list[Item]:
        """The thousand questions; their ids are their places."""
        layout, files = find_layout(folder, _LAYOUTS, f"{self.title} {split}", self.source)
        images = Images(folder / "OCRBench_Images", folder)
        rows = parquet_rows(files["rows"]) if layout == "parquet" else json_rows(files["questions"][0])
        return make_items(rows, lambda row: _item(row, images), images)

    def prompt(self, item: Item, dialect: str) -> str:
        """The question alone; lmms-eval removes white space round it."""
        return with_images(item, item.question.strip() if dialect == LMMS_EVAL else item.question)

    def parse(self, item: Item, text: str, dialect: str) -> str:
        """The answer in the form in which truths are looked for."""
        return _searched(text, _is_formula(item, dialect), dialect)

    def score(self, items: Sequence[Item], values: Sequence[Any], dialect: str) -> Scores:
        """Right answers of 1,000, in a subset scaled to 1,000, and of each of the five tasks, as counted."""
        credits = [
            float(any(_searched(t, _is_formula(item, dialect), dialect) in value for t in item.truth))
            for item, value in zip(items, values, strict=True)
        ]
        scores = mean_scores(items, credits, "score", _POINTS)
        for task in scores.counts.get("task", {}):
            pairs = zip(items, credits, strict=True)
            scores.numbers[task] = sum(credit for item, credit in pairs if item.groups["task"] == task)
        return scores


def _is_formula(item: Item, dialect: str) -> bool:
    """Whether an item is of the formulas: the data set says so, in VLMEvalKit the question type."""
    kind = item.groups["question type"] == _FORMULAS
    return kind if dialect == VLMEVALKIT else item.extra["dataset"] == _FORMULA_SET


def _searched(text: str, formula: bool, dialect: str) -> str:
    """Formulas without spaces, other texts in lower case."""
    if formula:
        return text.strip().replace("\n", " ").replace(" ", "")
    if dialect == LMMS_EVAL:
        text = text.translate(_FULL_WIDTH)
    return text.lower().strip().replace("\n", " ")


def _item(row: Row, images: Images) -> Item:
    kind = row.text("type", "question_type")
    image: Medium = images.find(row.text("image_path")) if "image_path" in row.values else images.of(row.any("image"))
    return Item(
        str(row.place),
        (image,),
        row.text("question"),
        row.texts("answers", "answer"),
        groups={"task": "Text Recognition" if kind.endswith("Recognition") and kind != _FORMULAS else kind}
        | {"question type": kind},
        cluster=image_name(image),
        origin=row.origin,
        extra={"dataset": row.text("dataset_name", "dataset")},
    )
