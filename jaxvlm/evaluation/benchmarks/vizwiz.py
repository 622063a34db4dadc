"""VizWiz: questions that blind people asked about their photos, compared with ten answers; many cannot be answered.

Source: arXiv:1802.08218; LLaVA's scripts/v1_5/eval/vizwiz.sh and scripts/convert_vizwiz_for_submission.py; lmms-eval
0.7.3, tasks/vizwiz_vqa.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxvlm.evaluation.benchmarks.benchmark import LLAVA, LMMS_EVAL, Item, Published
from jaxvlm.evaluation.benchmarks.files import (
    Images,
    Layouts,
    Row,
    find_layout,
    json_line_rows,
    json_rows,
    make_items,
    parquet_rows,
)
from jaxvlm.evaluation.benchmarks.prompts import MODEL_ZOO, SHORT, with_images
from jaxvlm.evaluation.benchmarks.soft_vqa import SoftVqa, human_answers
from jaxvlm.evaluation.metrics import vqa_accuracy
from jaxvlm.media import Medium

_SENTENCES = f"When the provided information is insufficient, respond with 'Unanswerable'.\n{SHORT}"
_LAYOUTS: Mapping[str, Layouts] = {
    "val": {
        "official": {"questions": ("val.json", "Annotations/val.json", "annotations/val.json")},
        "parquet": {"rows": ("data/val-*.parquet", "val-*.parquet")},
    },
    "test": {
        "llava": {"questions": "llava_test.jsonl"},
        "official": {"questions": ("test.json", "Annotations/test.json", "annotations/test.json")},
        "parquet": {"rows": ("data/test-*.parquet", "test-*.parquet")},
    },
}


class VizWiz(SoftVqa):
    """VizWiz-VQA in the dialects of LLaVA and lmms-eval."""

    name = "vizwiz"
    title = "VizWiz"
    about = "questions of blind people on their own photos, some unanswerable"
    files = """val   val.json or Annotations/val.json, val/*.jpg; or data/val-*.parquet of lmms-lab-encoder/VizWiz-VQA
test  llava_test.jsonl (LLaVA's eval.zip) or test.json, test/*.jpg; or data/test-*.parquet"""
    source = "https://vizwiz.org/tasks-and-datasets/vqa, or lmms-lab-encoder/VizWiz-VQA on Hugging Face"
    splits = {"val": 4_319, "test": 8_000}
    dialects = (LLAVA, LMMS_EVAL)
    max_new_tokens = {"": 128}
    published = (
        Published("LLaVA-1.5 7B", 50.0, LLAVA, MODEL_ZOO, "test"),
        Published("LLaVA-1.5 13B", 53.6, LLAVA, MODEL_ZOO, "test"),
        Published("LLaVA-1.5 7B LoRA", 47.8, LLAVA, MODEL_ZOO, "test"),
        Published("LLaVA-1.5 13B LoRA", 58.9, LLAVA, MODEL_ZOO, "test"),
    )
    normalisers = {LLAVA: vqa_accuracy.evalai, LMMS_EVAL: vqa_accuracy.evalai}

    def load(self, folder: Path, split: str) -> list[Item]:
        """The questions of a split, those of val with the ten answers."""
        layout, files = find_layout(folder, _LAYOUTS[split], f"{self.title} {split}", self.source)
        images = Images(folder / split, folder)
        if layout == "parquet":
            table = parquet_rows(files["rows"])
            return make_items(
                table, lambda row: _item(row, images.of(row.any("image")), _file_name(row), split), images
            )
        path = files["questions"][0]
        rows = json_line_rows(path) if layout == "llava" else json_rows(path)
        return make_items(
            rows, lambda row: _item(row, images.find(row.text("image")), row.text("image"), split), images
        )

    def prompt(self, item: Item, dialect: str) -> str:
        """The question and LLaVA's two sentences; lmms-eval writes only the question's first letter as a capital."""
        question = item.question.capitalize() if dialect == LMMS_EVAL else item.question
        return with_images(item, f"{question}\n{_SENTENCES}")

    def submission(self, items: Sequence[Item], texts: Sequence[str], values: Sequence[Any]) -> Mapping[str, str]:
        """The results file of EvalAI, for test."""
        if not items or items[0].truth is not None:
            return {}
        rows = [{"image": item.extra["image"], "answer": value} for item, value in zip(items, values, strict=True)]
        return {"vizwiz_results.json": json.dumps(rows)}


def _file_name(row: Row) -> str:
    return f"{row.id('question_id').removesuffix('.jpg')}.jpg"


def _item(row: Row, image: Medium, name: str, split: str) -> Item:
    """An item; `name` is that of its image file, which stands for the question in the results file."""
    kind = row.get("answer_type") or row.get("category")
    return Item(
        row.id("question_id") if "question_id" in row.values else name.removesuffix(".jpg"),
        (image,),
        row.text("question", "text").removesuffix(f"\n{_SENTENCES}"),
        human_answers(row, required=split == "val"),
        groups={"answer type": kind} if isinstance(kind, str) else {},
        cluster=name,
        origin=row.origin,
        extra={"image": name},
    )
