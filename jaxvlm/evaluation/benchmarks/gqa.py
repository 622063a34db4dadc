"""GQA: compositional questions on scenes, generated from scene graphs, with one answer each.

Source: arXiv:1902.09506 and its eval.py; LLaVA's scripts/v1_5/eval/gqa.sh and scripts/convert_gqa_for_eval.py;
lmms-eval 0.7.3, tasks/gqa; VLMEvalKit (ms-vlmeval 0.0.20), dataset/image_vqa.py.
"""

from __future__ import annotations

import json
import string
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxvlm.evaluation.benchmarks.benchmark import LLAVA, LMMS_EVAL, VLMEVALKIT, Benchmark, Item, Published, Scores
from jaxvlm.evaluation.benchmarks.files import (
    Images,
    Layouts,
    Row,
    RowError,
    find_layout,
    json_rows,
    make_items,
    parquet_rows,
)
from jaxvlm.evaluation.benchmarks.prompts import MODEL_ZOO, SHORT, with_images
from jaxvlm.evaluation.metrics.averages import mean_scores
from jaxvlm.media import Medium

_LAYOUTS: Layouts = {
    "official": {"questions": ("testdev_balanced_questions.json", "**/testdev_balanced_questions.json")},
    "parquet": {
        "rows": ("testdev_balanced_instructions/testdev-*.parquet", "**/testdev_balanced_instructions*.parquet"),
        "images": ("testdev_balanced_images/testdev-*.parquet", "**/testdev_balanced_images*.parquet"),
    },
}
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Gqa(Benchmark):
    """GQA testdev-balanced in the dialects of LLaVA, lmms-eval and VLMEvalKit."""

    name = "gqa"
    title = "GQA"
    about = "compositional questions on photos, with one answer each"
    files = """testdev  testdev_balanced_questions.json, images/*.jpg; or of lmms-lab-encoder/GQA
         testdev_balanced_instructions/testdev-*.parquet, testdev_balanced_images/testdev-*.parquet"""
    source = "https://cs.stanford.edu/people/dorarad/gqa/download.html, or lmms-lab-encoder/GQA on Hugging Face"
    metric = "accuracy, percent"
    splits = {"testdev": 12_578}
    dialects = (LLAVA, LMMS_EVAL, VLMEVALKIT)
    max_new_tokens = {"": 128, LMMS_EVAL: 16, VLMEVALKIT: 512}
    published = (
        Published("LLaVA-1.5 7B", 62.0, LLAVA, MODEL_ZOO),
        Published("LLaVA-1.5 13B", 63.3, LLAVA, MODEL_ZOO),
        Published("LLaVA-1.5 7B LoRA", 63.0, LLAVA, MODEL_ZOO),
        Published("LLaVA-1.5 13B LoRA", 63.3, LLAVA, MODEL_ZOO),
    )

    def load(self, folder: Path, split: str) -> list[Item]:
        """The questions of testdev-balanced."""
        layout, files = find_layout(folder, _LAYOUTS, f"{self.title} {split}", self.source)
        images = Images(folder / "images", folder / "data" / "images", folder)
        if layout == "official":
            rows = json_rows(files["questions"][0])
            return make_items(rows, lambda row: _item(row, images.find(f"{row.id('imageId')}.jpg")), images)
        by_name = {row.id("id"): images.of(row.any("image")) for row in parquet_rows(files["images"])}

        def make(row: Row) -> Item:
            if row.id("imageId") not in by_name:
                raise RowError(f"image {row.id('imageId')} is not in {files['images'][0].parent}")
            return _item(row, by_name[row.id("imageId")])

        return make_items(parquet_rows(files["rows"]), make, images)

    def prompt(self, item: Item, dialect: str) -> str:
        """The question and LLaVA's sentence; all dialects ask so."""
        return with_images(item, f"{item.question}\n{SHORT}")

    def parse(self, item: Item, text: str, dialect: str) -> str:
        """The answer as the dialect compares it."""
        return _normalised(text, dialect)

    def score(self, items: Sequence[Item], values: Sequence[Any], dialect: str) -> Scores:
        """Exact match; as `distribution` how far the answers' frequencies are from the truths' (0 is best)."""
        truths = [item.truth if dialect == LLAVA else _normalised(item.truth, dialect) for item in items]
        pairs = zip(values, truths, strict=True)
        scores = mean_scores(items, [float(value == truth) for value, truth in pairs], "accuracy")
        if dialect == LLAVA and (distance := _distribution(items, values)) is not None:
            scores.numbers["distribution"] = distance
        return scores

    def submission(self, items: Sequence[Item], texts: Sequence[str], values: Sequence[Any]) -> Mapping[str, str]:
        """The predictions that the official eval.py reads."""
        rows = [{"questionId": item.id, "prediction": value} for item, value in zip(items, values, strict=True)]
        return {"testdev_balanced_predictions.json": json.dumps(rows)}


def _normalised(text: str, dialect: str) -> str:
    if dialect == LMMS_EVAL:
        return text.lower().translate(_NO_PUNCTUATION)
    return text.strip().rstrip(".").lower() if dialect == LLAVA else text.strip().lower()


def _item(row: Row, image: Medium) -> Item:
    types = row.get("types", {})
    groups = {f"{axis} type": str(types[axis]) for axis in ("structural", "semantic") if types.get(axis)}
    if "structural type" in groups:
        groups["answer"] = "open" if groups["structural type"] == "query" else "binary"
    extra = {"global": kind} if (kind := row.get("groups", {}).get("global")) else {}
    return Item(
        row.id("id", "question_id"),
        (image,),
        row.text("question"),
        row.text("answer"),
        groups=groups,
        cluster=row.id("imageId"),
        origin=row.origin,
        extra=extra,
    )


def _distribution(items: Sequence[Item], values: Sequence[Any]) -> float | None:
    """The chi-square statistic of the answers of each global group, weighted by its size; None: there are no groups."""
    wanted: dict[str, Counter[str]] = defaultdict(Counter)
    given: dict[str, Counter[str]] = defaultdict(Counter)
    for item, value in zip(items, values, strict=True):
        if group := item.extra.get("global"):
            wanted[group][item.truth] += 1
            given[group][value] += 1
    total = sum(sum(counts.values()) for counts in wanted.values())
    if not total:
        return None
    weighted = sum(
        sum(counts.values()) * sum((given[group][answer] - n) ** 2 / n for answer, n in counts.items())
        for group, counts in wanted.items()
    )
    return weighted / total / 100
