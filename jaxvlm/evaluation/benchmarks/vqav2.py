"""VQAv2: short answers to questions on photos of COCO, compared with those of ten people.

Source: arXiv:1612.00837; LLaVA's scripts/v1_5/eval/vqav2.sh and scripts/convert_vqav2_for_submission.py;
PythonEvaluationTools of GT-Vision-Lab/VQA; lmms-eval 0.7.3, tasks/vqav2.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxvlm.evaluation.benchmarks.benchmark import LLAVA, LMMS_EVAL, OFFICIAL, Item, Published
from jaxvlm.evaluation.benchmarks.files import (
    Images,
    Layouts,
    Row,
    RowError,
    find_layout,
    image_name,
    json_line_rows,
    json_rows,
    make_items,
    parquet_rows,
)
from jaxvlm.evaluation.benchmarks.prompts import MODEL_ZOO, SHORT, with_images
from jaxvlm.evaluation.benchmarks.soft_vqa import SoftVqa, human_answers
from jaxvlm.evaluation.metrics import vqa_accuracy
from jaxvlm.media import Medium

_QUESTIONS = "v2_OpenEnded_mscoco_{}_questions.json"
_ALL_OF_TEST = ("llava_vqav2_mscoco_test2015.jsonl", _QUESTIONS.format("test2015"))
_LAYOUTS: Mapping[str, Layouts] = {
    "val": {
        "official": {"questions": _QUESTIONS.format("val2014"), "annotations": "v2_mscoco_val2014_annotations.json"},
        "parquet": {"rows": ("data/validation-*.parquet", "validation-*.parquet")},
    },
    "test-dev": {
        "llava": {"questions": "llava_vqav2_mscoco_test-dev2015.jsonl"},
        "official": {"questions": _QUESTIONS.format("test-dev2015")},
        "parquet": {"rows": ("data/testdev-*.parquet", "testdev-*.parquet")},
    },
    "test": {
        "llava": {"questions": _ALL_OF_TEST[0]},
        "official": {"questions": _ALL_OF_TEST[1]},
        "parquet": {"rows": ("data/test-*.parquet", "test-*.parquet")},
    },
}
_UNASKED = "unasked"  # in the first item of test-dev: ids of the other questions of test


class VqaV2(SoftVqa):
    """VQAv2 in the dialects of LLaVA, of the official evaluation and of lmms-eval."""

    name = "vqav2"
    title = "VQAv2"
    about = "short answers to questions on photos, against ten people's"
    files = """val       v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json, val2014/*.jpg
test-dev  llava_vqav2_mscoco_test-dev2015.jsonl (LLaVA's eval.zip) or v2_OpenEnded_mscoco_test-dev2015_questions.json,
          test2015/*.jpg; for the submission also the question file of test
test      llava_vqav2_mscoco_test2015.jsonl or v2_OpenEnded_mscoco_test2015_questions.json, test2015/*.jpg
any       data/validation-*.parquet, data/testdev-*.parquet, data/test-*.parquet of lmms-lab-encoder/VQAv2"""
    source = "https://visualqa.org/download.html, or lmms-lab-encoder/VQAv2 on Hugging Face"
    splits = {"val": 214_354, "test-dev": 107_394, "test": 447_793}
    dialects = (LLAVA, OFFICIAL, LMMS_EVAL)
    max_new_tokens = {"": 128, LMMS_EVAL: 16}
    published = (
        Published("LLaVA-1.5 7B", 78.5, LLAVA, MODEL_ZOO, "test-dev"),
        Published("LLaVA-1.5 13B", 80.0, LLAVA, MODEL_ZOO, "test-dev"),
        Published("LLaVA-1.5 7B LoRA", 79.1, LLAVA, MODEL_ZOO, "test-dev"),
        Published("LLaVA-1.5 13B LoRA", 80.0, LLAVA, MODEL_ZOO, "test-dev"),
    )
    normalisers = {LLAVA: vqa_accuracy.evalai, LMMS_EVAL: vqa_accuracy.lmms_vqav2}

    def load(self, folder: Path, split: str) -> list[Item]:
        """The questions of a split, those of val with the ten answers."""
        layout, files = find_layout(folder, _LAYOUTS[split], f"{self.title} {split}", self.source)
        images = Images(folder / ("val2014" if split == "val" else "test2015"), folder)
        if layout == "parquet":
            table = parquet_rows(files["rows"])
            return make_items(table, lambda row: _item(row, row if split == "val" else None, images), images)
        path = files["questions"][0]
        rows = json_line_rows(path) if layout == "llava" else json_rows(path, "questions")
        answers = {row.id("question_id"): row for row in _annotations(files)}

        def make(row: Row) -> Item:
            found = answers.get(row.id("question_id"))
            if answers and found is None:
                raise RowError(f"question {row.id('question_id')} has no annotation in {files['annotations'][0]}")
            return _item(row, found, images, "val2014" if split == "val" else "test2015")

        items = make_items(rows, make, images)
        return _with_unasked(items, folder) if split == "test-dev" else items

    def prompt(self, item: Item, dialect: str) -> str:
        """The question and LLaVA's sentence; all dialects ask so."""
        return with_images(item, f"{item.question}\n{SHORT}")

    def parse(self, item: Item, text: str, dialect: str) -> str:
        """The normalised answer; the official code normalises none whose ten truths are the same."""
        if dialect == OFFICIAL:
            return vqa_accuracy.official(text, item.truth or ("", "differs"))[0]
        return super().parse(item, text, dialect)

    def truths(self, item: Item, dialect: str) -> list[str]:
        """The normalised answers of the ten people."""
        if dialect == OFFICIAL:
            return vqa_accuracy.official("", item.truth)[1]
        return super().truths(item, dialect)

    def submission(self, items: Sequence[Item], texts: Sequence[str], values: Sequence[Any]) -> Mapping[str, str]:
        """The results file of EvalAI, for test and test-dev; questions of test that are not of test-dev get ""."""
        if not items or items[0].truth is not None:
            return {}
        rows = [{"question_id": int(item.id), "answer": value} for item, value in zip(items, values, strict=True)]
        rows += [{"question_id": int(id), "answer": ""} for id in items[0].extra.get(_UNASKED, ())]
        return {"vqav2_results.json": json.dumps(rows)}


def _annotations(files: Mapping[str, Sequence[Path]]) -> list[Row]:
    return json_rows(files["annotations"][0], "annotations") if "annotations" in files else []


def _item(row: Row, answers: Row | None, images: Images, coco: str = "") -> Item:
    """An item of a question row, and the row with its answers; None: a server has them."""
    image: Medium
    if "image" in row.values:  # LLaVA's rows have a name, those of Parquet an image
        image = images.of(row.any("image"))
    else:
        image = images.find(f"COCO_{coco}_{int(row.id('image_id')):012d}.jpg")
    question = row.text("question", "text").removesuffix(f"\n{SHORT}")
    truth = human_answers(answers, required=True) if answers else None
    types = _groups(answers) if answers else {}
    cluster = row.id("image_id") if "image_id" in row.values else image_name(image)
    return Item(row.id("question_id"), (image,), question, truth, groups=types, cluster=cluster, origin=row.origin)


def _groups(row: Row) -> dict[str, str]:
    keys = {"answer type": "answer_type", "question type": "question_type"}
    return {axis: str(row.get(key)) for axis, key in keys.items() if row.get(key)}


def _with_unasked(items: list[Item], folder: Path) -> list[Item]:
    """Adds to the first item the ids of the questions of test that test-dev has not, if their file is there."""
    path = next((folder / name for name in _ALL_OF_TEST if (folder / name).is_file()), None)
    if path is None:
        return items
    rows = json_line_rows(path) if path.suffix == ".jsonl" else json_rows(path, "questions")
    asked = {item.id for item in items}
    unasked = [row.id("question_id") for row in rows if row.id("question_id") not in asked]
    return [dataclasses.replace(items[0], extra={_UNASKED: unasked}), *items[1:]]
