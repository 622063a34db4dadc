"""DocVQA: questions on pages of documents, scored by ANLS.

Source: arXiv:2007.00398; lmms-eval 0.7.3, tasks/docvqa; VLMEvalKit (ms-vlmeval 0.0.20), dataset/image_vqa.py; the
package anls 0.0.2 for the official formula.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxvlm.evaluation.benchmarks.benchmark import LMMS_EVAL, OFFICIAL, VLMEVALKIT, Benchmark, Item, Scores
from jaxvlm.evaluation.benchmarks.files import (
    Images,
    Layouts,
    Row,
    RowError,
    find_layout,
    image_name,
    json_rows,
    make_items,
    parquet_rows,
)
from jaxvlm.evaluation.benchmarks.prompts import SHORT, with_images
from jaxvlm.evaluation.metrics.anls import anls, lmms_anls
from jaxvlm.evaluation.metrics.averages import mean_scores


class DocVqa(Benchmark):
    """DocVQA in the dialects of lmms-eval, of the official formula, and of VLMEvalKit; LLaVA has none.

    Attributes:
      layouts: split -> the layouts of its files.
      image_folders: where images may be, relative to the folder.
      group_keys: axis -> key of the rows, a text or a list of texts.
    """

    name = "docvqa"
    title = "DocVQA"
    about = "questions on scanned pages"
    files = """val   val_v1.0_withQT.json or val_v1.0.json, documents/*.png;
      or DocVQA/validation-*.parquet of lmms-lab-encoder/DocVQA
test  test_v1.0.json, documents/*.png; or DocVQA/test-*.parquet"""
    source = "https://www.docvqa.org/datasets/docvqa, or lmms-lab-encoder/DocVQA on Hugging Face"
    metric = "ANLS, percent"
    splits = {"val": 5_349, "test": 5_188}
    dialects = (LMMS_EVAL, OFFICIAL, VLMEVALKIT)
    max_new_tokens = {"": 32, VLMEVALKIT: 512}
    layouts: Mapping[str, Layouts] = {
        "val": {
            "official": {"questions": ("val_v1.0_withQT.json", "val_v1.0.json", "val/val_v1.0.json")},
            "parquet": {"rows": ("DocVQA/validation-*.parquet", "data/validation-*.parquet", "validation-*.parquet")},
        },
        "test": {
            "official": {"questions": ("test_v1.0.json", "test/test_v1.0.json")},
            "parquet": {"rows": ("DocVQA/test-*.parquet", "data/test-*.parquet", "test-*.parquet")},
        },
    }
    image_folders: tuple[str, ...] = ("", "val", "test", "spdocvqa_images", "images")
    group_keys: Mapping[str, str] = {"question type": "question_types"}

    def load(self, folder: Path, split: str) -> list[Item]:
        """The questions of a split, those of val with their answers."""
        layout, files = find_layout(folder, self.layouts[split], f"{self.title} {split}", self.source)
        images = Images(*(folder / name for name in self.image_folders))
        rows = parquet_rows(files["rows"]) if layout == "parquet" else json_rows(files["questions"][0], "data")
        return make_items(rows, lambda row: self._item(row, images, split), images)

    def prompt(self, item: Item, dialect: str) -> str:
        """The question and LLaVA's sentence; all dialects ask so, the official one has no prompt of its own."""
        return with_images(item, f"{item.question}\n{SHORT}")

    def parse(self, item: Item, text: str, dialect: str) -> str:
        """The answer as it is."""
        return text

    def score(self, items: Sequence[Item], values: Sequence[Any], dialect: str) -> Scores:
        """Mean ANLS in percent; no number for test, whose answers only a server knows."""
        metric = anls if dialect == OFFICIAL else lmms_anls
        credits = [
            float("nan") if item.truth is None else metric(value, item.truth)
            for item, value in zip(items, values, strict=True)
        ]
        return mean_scores(items, credits, "anls")

    def submission(self, items: Sequence[Item], texts: Sequence[str], values: Sequence[Any]) -> Mapping[str, str]:
        """The results file of rrc.cvc.uab.es, for test."""
        if not items or items[0].truth is not None:
            return {}
        rows = [{"questionId": int(item.id), "answer": value} for item, value in zip(items, values, strict=True)]
        return {f"{self.name}_results.json": json.dumps(rows)}

    def _item(self, row: Row, images: Images, split: str) -> Item:
        answers = row.texts("answers") if row.get("answers") else None
        if answers is None and split == "val":
            raise RowError('"answers" is empty')
        image = images.of(row.get("image_local_name") or row.any("image"))
        groups = {axis: _joined(row.get(key)) for axis, key in self.group_keys.items() if row.get(key)}
        return Item(
            row.id("questionId"),
            (image,),
            row.text("question"),
            answers,
            groups=groups,
            cluster=image_name(image),
            origin=row.origin,
        )


def _joined(value: Any) -> str:
    return value if isinstance(value, str) else ", ".join(sorted(map(str, value)))
