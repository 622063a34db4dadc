"""ScienceQA: multiple choice from school science; the main number is of the questions with an image.

Axis letters:
  R draws   N items

Source: arXiv:2209.09513; LLaVA's scripts/convert_sqa_to_llava_base_prompt.py, llava/eval/model_vqa_science.py and
eval_science_qa.py; lmms-eval 0.7.3 tasks/scienceqa; ms-vlmeval 0.0.20 vlm/llava/llava.py and utils/matching_util.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvlm.data.records import IMAGE
from jaxvlm.data.sources.json_items import read_json
from jaxvlm.errors import UserError, listed
from jaxvlm.evaluation.benchmarks.benchmark import (
    LLAVA,
    LMMS_EVAL,
    VLMEVALKIT,
    Benchmark,
    Item,
    Published,
    Scores,
)
from jaxvlm.evaluation.benchmarks.choice_prompts import LETTER_SUFFIX, images_first, letter_suffix, options_below
from jaxvlm.evaluation.benchmarks.files import (
    Images,
    Row,
    RowError,
    find_layout,
    json_rows,
    make_items,
    parquet_rows,
    tsv_rows,
)
from jaxvlm.evaluation.benchmarks.prompts import MODEL_ZOO
from jaxvlm.evaluation.benchmarks.tsv_images import TsvImages, cell
from jaxvlm.evaluation.metrics.averages import mean_scores
from jaxvlm.evaluation.metrics.choices import (
    LETTERS,
    letter_with_full_stop,
    lettered,
    lone_letter_or_text,
    percent,
    percent_of_draws,
    stated_letter,
)
from jaxvlm.media import Medium

_PARSERS = {LLAVA: stated_letter, LMMS_EVAL: letter_with_full_stop, VLMEVALKIT: lone_letter_or_text}
_SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}
_PARQUET_SPLITS = {"test": "test", "val": "validation"}


class ScienceQa(Benchmark):
    """See the top of this file."""

    name = "scienceqa"
    title = "ScienceQA"
    about = "multiple choice from school science, half of it about an image"
    files = (
        "llava_test_CQM-A.json      LLaVA's questions; without it they are written from problems.json\n"
        "problems.json, pid_splits.json\n"
        "images/test/ID/image.png   or test/ID/image.png\n"
        "or data/test-*.parquet (or ScienceQA-FULL/, ScienceQA-IMG/), or ScienceQA_TEST.tsv (with images only)"
    )
    source = (
        "github.com/lupantech/ScienceQA and eval.zip of LLaVA's docs/Evaluation.md; or the data set lmms-lab/ScienceQA"
    )
    metric = "accuracy of the questions with an image, percent"
    splits = {"test": 4241, "val": 4241}
    dialects = (LLAVA, LMMS_EVAL, VLMEVALKIT)
    max_new_tokens = {"": 1024, LMMS_EVAL: 16, VLMEVALKIT: 2048}
    published = (
        Published("LLaVA-1.5 7B", 66.8, LLAVA, MODEL_ZOO),
        Published("LLaVA-1.5 13B", 71.6, LLAVA, MODEL_ZOO),
        Published("LLaVA-1.5 7B LoRA", 68.4, LLAVA, MODEL_ZOO),
        Published("LLaVA-1.5 13B LoRA", 71.2, LLAVA, MODEL_ZOO),
    )

    def load(self, folder: Path, split: str) -> list[Item]:
        """As `Benchmark.load`."""
        layout, files = find_layout(folder, _layouts(split), f"{self.title} {split}", self.source)
        if layout == "LLaVA":
            return _of_problems(folder, split, json_rows(files["questions"][0]))
        if layout == "ScienceQA":
            return _of_problems(folder, split, [])
        if layout == "Parquet":
            images = Images(folder)
            return make_items(parquet_rows(files["rows"]), lambda row: _of_parquet(row, images), images)
        rows = tsv_rows(files["rows"][0])
        pictures = TsvImages(rows)
        return make_items(rows, lambda row: _of_tsv(row, pictures))

    def prompt(self, item: Item, dialect: str) -> str:
        """As `Benchmark.prompt`."""
        options, hint = lettered(item.choices), item.extra.get("hint", "")
        if dialect == LLAVA:
            text = f"{item.extra.get('asked') or _asked_by_llava(item)}\n{LETTER_SUFFIX}"
        elif dialect == LMMS_EVAL:
            body = options_below(item.question, options, f"Context: {hint}" if hint else "")
            text = f"{body}\n{LETTER_SUFFIX}"
        else:
            body = options_below(item.question, options, hint)
            text = f"{body}\n{letter_suffix(body)}"
        return images_first(item, text, dialect)

    def parse(self, item: Item, text: str, dialect: str) -> str | None:
        """The letter of an option, or None."""
        return _PARSERS[dialect](text, lettered(item.choices))

    def score(self, items: Sequence[Item], values: Sequence[Any], dialect: str) -> Scores:
        """Accuracy with an image, of all, and by subject, context and grade.

        A missing answer is wrong in both numbers; LLaVA's script drops it from the first one.
        """
        credits = np.array([float(value == item.truth) for item, value in zip(items, values, strict=True)])
        with_image = np.array([bool(item.images) for item in items], bool)
        scores = mean_scores(items, credits.tolist(), "accuracy")
        return dataclasses.replace(scores, numbers={"image_accuracy": percent(credits[with_image])} | scores.numbers)

    def resample(
        self, items: Sequence[Item], values: Sequence[Any], dialect: str, draws_RN: np.ndarray
    ) -> np.ndarray | None:
        """As `Benchmark.resample`; NaN for a draw without an image."""
        credits = [
            float(value == item.truth) if item.images else np.nan for item, value in zip(items, values, strict=True)
        ]
        return percent_of_draws(np.array(credits), draws_RN)

    def continuations(self, item: Item, dialect: str) -> tuple[str, ...]:
        """The letters of the options."""
        return tuple(lettered(item.choices))


def _layouts(split: str) -> dict[str, dict[str, str | tuple[str, ...]]]:
    problems: dict[str, str | tuple[str, ...]] = {"problems": "problems.json", "splits": "pid_splits.json"}
    name = _PARQUET_SPLITS[split]
    parquet = tuple(f"{place}{name}-*.parquet" for place in ("data/", "ScienceQA-FULL/", "ScienceQA-IMG/", ""))
    return {
        "LLaVA": {"questions": f"llava_{split}_CQM-A.json", **problems},
        "ScienceQA": problems,
        "Parquet": {"rows": parquet},
        "VLMEvalKit": {"rows": f"ScienceQA_{split.upper()}.tsv"},
    }


def _asked_by_llava(item: Item) -> str:
    """The text that LLaVA's converter writes for the format CQM-A."""
    options = " ".join(f"({letter}) {text}" for letter, text in lettered(item.choices).items())
    context = item.extra.get("hint", "").strip() or "N/A"
    return f"Context: {context}\nQuestion: {item.question}\nOptions: {options}\n".replace("  ", " ").strip()


def _of_problems(folder: Path, split: str, questions: Sequence[Row]) -> list[Item]:
    """The problems of a split; with LLaVA's questions, in their order and words."""
    problems, splits = read_json(folder / "problems.json"), read_json(folder / "pid_splits.json")
    ids = splits.get(split) if isinstance(splits, dict) else None
    if not isinstance(problems, dict) or not isinstance(ids, list):
        raise UserError(f'{folder}: problems.json is an object, and pid_splits.json one with a list "{split}"')
    wrong = [str(id) for id in ids if not isinstance(problems.get(id), dict)]
    if wrong:
        raise UserError(f"{folder}: problems.json has no problem {listed(wrong)} of pid_splits.json; get both again")
    rows = [Row({**problems[id], "id": id}, f"{folder / 'problems.json'}[{id!r}]") for id in ids]
    if questions:
        rows = _asked(rows, questions)
    images = Images(folder / "images" / split, folder / split, folder / "images", folder)

    def make(row: Row) -> Item:
        name = row.get("image")
        found = [images.find(f"{row.id('id')}/{name}")] if name else []
        return _item(row, row.id("id"), tuple(found), row.values.get("asked", ""))

    return make_items(rows, make, images)


def _asked(rows: Sequence[Row], questions: Sequence[Row]) -> list[Row]:
    """The rows with the words of LLaVA's questions.

    Raises:
      UserError: a question without a problem, or a problem without a question.
    """
    words: dict[str, Row] = {}
    for question in questions:
        try:
            turns = question.any("conversations")
            text = turns[0]["value"].replace(IMAGE, "").strip()
            words[question.id("id")] = Row({"asked": text}, question.origin)
        except (RowError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{question.origin} has no id or no question ({error}); get the file again") from error
    known = {row.values["id"] for row in rows}
    strangers = [f"question {id} has no problem" for id in words if id not in known]
    strangers += [f"problem {id} has no question" for id in known if id not in words]
    if strangers:
        raise UserError(f"the questions and pid_splits.json do not belong together: {listed(sorted(strangers))}")
    by_id = {row.values["id"]: row for row in rows}
    return [Row({**by_id[id].values, **word.values}, word.origin) for id, word in words.items()]


def _item(row: Row, id: str, images: tuple[Medium, ...], asked: str = "") -> Item:
    choices, answer, hint = row.texts("choices"), row.any("answer"), str(row.get("hint", ""))
    if not isinstance(answer, int) or not 0 <= answer < len(choices) or len(choices) > len(LETTERS):
        raise RowError(f"the answer is the place of one of the {len(choices)} choices, found {answer!r}")
    groups = {
        "subject": _SUBJECTS.get(str(row.get("subject", "")), str(row.get("subject", ""))),
        "context": " + ".join([*(["TXT"] if hint else []), *(["IMG"] if images else [])]) or "NO",
        "grade": str(row.get("grade", "")),
    }
    extra = {"hint": hint} | ({"asked": asked} if asked else {})
    groups = {axis: value for axis, value in groups.items() if value}
    return Item(id, images, row.text("question"), LETTERS[answer], tuple(choices), groups, "", row.origin, extra)


def _of_parquet(row: Row, images: Images) -> Item:
    """A row of the hub's data set, which has no ids: its place in the file is its id."""
    image = row.get("image")
    return _item(row, row.origin.rpartition("/")[2], () if image is None else (images.of(image),))


def _of_tsv(row: Row, pictures: TsvImages) -> Item:
    choices = [cell(row, letter) for letter in LETTERS if cell(row, letter)]
    answer = LETTERS.find(row.text("answer"))
    values = {**row.values, "choices": choices, "answer": answer, "hint": cell(row, "hint")}
    values |= {"subject": cell(row, "subject"), "grade": cell(row, "grade")}
    return _item(Row(values, row.origin), row.id("index"), pictures.of(row))
