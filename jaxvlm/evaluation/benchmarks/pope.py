"""POPE: is an object in the image? Random, popular and adversarial absent objects.

Axis letters:
  R draws   N items

Source: arXiv:2305.10355; AoiDragon/POPE evaluate.py; LLaVA's llava/eval/eval_pope.py; lmms-eval 0.7.3 tasks/pope;
ms-vlmeval 0.0.20 dataset/utils/yorn.py.
"""

from __future__ import annotations

import functools
import operator
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvlm.errors import UserError, listed
from jaxvlm.evaluation.benchmarks.benchmark import (
    LLAVA,
    LMMS_EVAL,
    OFFICIAL,
    VLMEVALKIT,
    Benchmark,
    Item,
    Published,
    Scores,
)
from jaxvlm.evaluation.benchmarks.choice_prompts import images_first
from jaxvlm.evaluation.benchmarks.files import (
    Images,
    Layouts,
    Row,
    RowError,
    find_layout,
    json_line_rows,
    make_items,
    parquet_rows,
    tsv_rows,
)
from jaxvlm.evaluation.benchmarks.prompts import MODEL_ZOO, SHORT
from jaxvlm.evaluation.benchmarks.tsv_images import TsvImages
from jaxvlm.evaluation.metrics.yes_no import (
    NO,
    YES,
    Confusion,
    equal_yes_no,
    first_sentence_yes_no,
    word_yes_no,
)
from jaxvlm.media import Medium

CATEGORIES = ("random", "popular", "adversarial")
_METRICS = ("f1", "accuracy", "precision", "recall", "yes_ratio")
_PARSERS = {
    LLAVA: first_sentence_yes_no,
    OFFICIAL: first_sentence_yes_no,
    LMMS_EVAL: equal_yes_no,
    VLMEVALKIT: word_yes_no,
}
_LAYOUTS: Layouts = {
    "LLaVA": {
        "questions": "llava_pope_test.jsonl",
        "labels": ("coco/coco_pope_*.json", "coco_pope_*.json"),
    },
    "POPE": {"labels": ("coco_pope_*.json", "coco/coco_pope_*.json", "output/coco/coco_pope_*.json")},
    "Parquet": {"rows": ("data/test-*.parquet", "Full/*.parquet", "*.parquet")},
    "VLMEvalKit": {"rows": "POPE.tsv"},
}


class Pope(Benchmark):
    """See the top of this file."""

    name = "pope"
    title = "POPE"
    about = "objects that the model sees though they are not there: yes/no questions about 500 images of COCO"
    files = (
        "llava_pope_test.jsonl              LLaVA's questions; without it those of the next files are asked\n"
        "coco/coco_pope_CATEGORY.json        questions and labels; random has 2,910 for LLaVA, 3,000 today\n"
        "val2014/COCO_val2014_*.jpg         images of COCO\n"
        "or data/test-*.parquet (or Full/{random,popular,adversarial}-*.parquet), or POPE.tsv"
    )
    source = (
        "eval.zip of LLaVA's docs/Evaluation.md and github.com/AoiDragon/POPE, commit e3e39262, with val2014 of COCO; "
        "or the data set lmms-lab/POPE"
    )
    metric = "F1, mean of the three categories, percent"
    splits = {"test": 8910, "random": 2910, "popular": 3000, "adversarial": 3000}
    dialects = (LLAVA, OFFICIAL, LMMS_EVAL, VLMEVALKIT)
    max_new_tokens = {"": 128, VLMEVALKIT: 2048}
    published = (
        Published("LLaVA-1.5 7B", 85.9, LLAVA, MODEL_ZOO),
        Published("LLaVA-1.5 13B", 85.9, LLAVA, MODEL_ZOO),
        Published("LLaVA-1.5 7B LoRA", 86.4, LLAVA, MODEL_ZOO),
        Published("LLaVA-1.5 13B LoRA", 86.7, LLAVA, MODEL_ZOO),
    )

    def load(self, folder: Path, split: str) -> list[Item]:
        """As `Benchmark.load`; questions and labels are paired by category, image and text."""
        layout, files = find_layout(folder, _LAYOUTS, f"{self.title} {split}", self.source)
        images = Images(folder / "val2014", folder / "images", folder)
        if layout == "LLaVA":
            items = _paired(json_line_rows(files["questions"][0]), files["labels"], images)
        elif layout == "POPE":
            rows = [_in(row, path) for path in files["labels"] for row in json_line_rows(path)]
            items = make_items(rows, lambda row: _labelled(row, images), images)
        elif layout == "Parquet":
            items = make_items(parquet_rows(files["rows"]), lambda row: _of_parquet(row, images), images)
        else:
            items = _of_tsv(tsv_rows(files["rows"][0]))
        chosen = [item for item in items if split in ("test", item.groups["category"])]
        if not chosen:
            raise UserError(f"{folder} has no question of the category {split}")
        return chosen

    def prompt(self, item: Item, dialect: str) -> str:
        """As `Benchmark.prompt`."""
        short = dialect in (LLAVA, LMMS_EVAL)
        return images_first(item, f"{item.question}\n{SHORT}" if short else item.question, dialect)

    def parse(self, item: Item, text: str, dialect: str) -> str | None:
        """ "yes", "no", or None."""
        return _PARSERS[dialect](text)

    def score(self, items: Sequence[Item], values: Sequence[Any], dialect: str) -> Scores:
        """F1 and its parts; those of a category are called as in "random_f1".

        In the dialects llava and official the numbers are means of the categories, in the others those of all answers.
        """
        numbers = {key: float(value_R[0]) for key, value_R in _numbers(items, values, dialect, None).items()}
        credits = np.array([float(value == item.truth) for item, value in zip(items, values, strict=True)])
        counts = dict(Counter(item.groups["category"] for item in items))
        groups = {category: numbers[f"{category}_f1"] for category in counts}
        return Scores(numbers, credits, {"category": groups}, {"category": counts})

    def resample(
        self, items: Sequence[Item], values: Sequence[Any], dialect: str, draws_RN: np.ndarray
    ) -> np.ndarray | None:
        """As `Benchmark.resample`."""
        return _numbers(items, values, dialect, draws_RN)["f1"]

    def continuations(self, item: Item, dialect: str) -> tuple[str, ...]:
        """Yes and No."""
        return ("Yes", "No")


def _numbers(
    items: Sequence[Item], values: Sequence[Any], dialect: str, draws_RN: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Name -> float64[R] in percent, the main one first; without draws, of all items once."""
    weights_RN = np.ones((1, len(items))) if draws_RN is None else draws_RN
    places: dict[str, list[int]] = defaultdict(list)
    for place, item in enumerate(items):
        places[item.groups["category"]].append(place)
    parts = {}
    for category, at in places.items():
        truths, answers = [items[place].truth for place in at], [values[place] for place in at]
        parts[category] = Confusion.of(truths, answers, weights_RN[:, at], neither_is_no=dialect != LMMS_EVAL)
    if not parts:
        return {}
    if dialect in (LLAVA, OFFICIAL):
        present_RC = np.stack([part.total > 0 for part in parts.values()], 1)
        of_parts = {m: np.stack([getattr(part, m) for part in parts.values()], 1) for m in _METRICS}
        whole = {m: (x_RC * present_RC).sum(1) / np.maximum(present_RC.sum(1), 1) for m, x_RC in of_parts.items()}
    else:
        together = functools.reduce(operator.add, parts.values())
        whole = {m: getattr(together, m) for m in _METRICS}
    named = {f"{category}_{m}": getattr(part, m) for category, part in parts.items() for m in _METRICS}
    return {key: 100 * x_R for key, x_R in (whole | named).items()}


def _paired(questions: list[Row], label_files: list[Path], images: Images) -> list[Item]:
    """The questions of LLaVA's file with the labels of POPE's.

    LLaVA pairs them by position: label files of another version then shift every label, and nobody notices.
    """
    labels: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    rows = [_in(row, path) for path in label_files for row in json_line_rows(path)]
    for item in make_items(rows, lambda row: _labelled(row, None)):
        labels[item.groups["category"], item.cluster, item.question].append(item.truth)
    asked: Counter[tuple[str, str, str]] = Counter()
    unlabelled = []

    def make(row: Row) -> Item:
        image, question = row.text("image"), row.text("text").replace(SHORT, "").strip()
        key = (row.text("category"), image, question)
        asked[key] += 1
        if len(set(labels.get(key, ()))) != 1:
            unlabelled.append(f"{row.origin}, {image}, {question}")
            return _item(row.id("question_id"), row, images.find(image), question, NO, key[0], image)
        return _item(row.id("question_id"), row, images.find(image), question, labels[key][0], key[0], image)

    items = make_items(questions, make, images)
    left = [", ".join(key) for key, found in labels.items() if asked[key] != len(found)]
    if unlabelled or left:
        raise UserError(
            f"the questions and the labels do not belong together: {len(unlabelled):,} questions without one label "
            f"({listed(unlabelled, limit=5) or 'none'}), {len(left):,} labels without a question "
            f"({listed(left, limit=5) or 'none'}); LLaVA's file needs the labels of POPE's commit e3e39262"
        )
    return items


def _item(id: str, row: Row, image: Medium, question: str, truth: str, category: str, cluster: str) -> Item:
    if category not in CATEGORIES:
        raise RowError(f"the category is one of {', '.join(CATEGORIES)}, found {category!r}")
    images = (image,)
    return Item(id, images, question, truth, groups={"category": category}, cluster=cluster, origin=row.origin)


def _in(row: Row, path: Path) -> Row:
    """A row of a label file with the category of the file's name."""
    return Row({**row.values, "category": path.stem.removeprefix("coco_pope_")}, row.origin)


def _labelled(row: Row, images: Images | None) -> Item:
    """The item of a row of POPE's label files."""
    category, name = row.text("category"), row.text("image")
    image = images.find(name) if images else name
    id = f"{category}/{row.id('question_id')}"
    return _item(id, row, image, row.text("text").strip(), _yes_no(row.text("label")), category, name)


def _of_parquet(row: Row, images: Images) -> Item:
    category, cluster = row.text("category"), str(row.get("image_source", row.id("question_id")))
    id = f"{category}/{row.id('question_id')}"
    question, truth = row.text("question").strip(), _yes_no(row.text("answer"))
    return _item(id, row, images.of(row.any("image")), question, truth, category, cluster)


def _of_tsv(rows: list[Row]) -> list[Item]:
    """A row of VLMEvalKit's file is a question that up to three categories share."""
    pictures = TsvImages(rows)
    shared = [
        Row({**row.values, "category": category}, row.origin)
        for row in rows
        for category in str(row.get("category", "")).split(",")
    ]

    def make(row: Row) -> Item:
        category = row.text("category").strip()
        id, truth = f"{category}/{row.id('index')}", _yes_no(row.text("answer"))
        cluster = str(row.get("image_path", "")) or pictures.key(row)
        return _item(id, row, pictures.one(row), row.text("question"), truth, category, cluster)

    return make_items(shared, make)


def _yes_no(text: str) -> str:
    if text.strip().lower() not in (YES, NO):
        raise RowError(f"the answer is yes or no, found {text!r}")
    return text.strip().lower()
