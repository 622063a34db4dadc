"""MMMU: college questions of 30 subjects, multiple choice and open, with images in the question and in the options.

Source: arXiv:2311.16502; MMMU-Benchmark/MMMU eval/eval_utils.py and mmmu/run_llava.py; lmms-eval 0.7.3 tasks/mmmu;
ms-vlmeval 0.0.20 dataset/image_mcq.py, dataset/utils/multiple_choice.py and vlm/llava/llava.py.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxvlm.data.records import IMAGE
from jaxvlm.evaluation.benchmarks.benchmark import LMMS_EVAL, OFFICIAL, VLMEVALKIT, Benchmark, Item, Published, Scores
from jaxvlm.evaluation.benchmarks.choice_prompts import LETTER_SUFFIX, images_first, letter_suffix
from jaxvlm.evaluation.benchmarks.files import Images, Row, RowError, find_layout, make_items, parquet_rows
from jaxvlm.evaluation.benchmarks.prompts import SHORT
from jaxvlm.evaluation.metrics.averages import mean_scores
from jaxvlm.evaluation.metrics.choices import (
    LETTERS,
    last_letter_or_text,
    lettered,
    lone_letter_or_text,
)
from jaxvlm.evaluation.metrics.open_answers import matches, open_candidates

DISCIPLINES = {
    "Art and Design": "Art Art_Theory Design Music",
    "Business": "Accounting Economics Finance Manage Marketing",
    "Science": "Biology Chemistry Geography Math Physics",
    "Health and Medicine": (
        "Basic_Medical_Science Clinical_Medicine Diagnostics_and_Laboratory_Medicine Pharmacy Public_Health"
    ),
    "Humanities and Social Science": "History Literature Sociology Psychology",
    "Tech and Engineering": (
        "Agriculture Architecture_and_Engineering Computer_Science Electronics Energy_and_Power Materials "
        "Mechanical_Engineering"
    ),
}
_DISCIPLINE_OF = {subject: name for name, subjects in DISCIPLINES.items() for subject in subjects.split()}
_MARK = re.compile(r"<image (\d+)>")
_ID = re.compile(r"(dev|validation|test)_(.+)_\d+")
_IMAGES = 7  # columns image_1 to image_7
_OPEN = {"A": "", "B": "Other Answers"}  # VLMEvalKit judges an open answer as a choice of the truth and this


class Mmmu(Benchmark):
    """See the top of this file."""

    name = "mmmu"
    title = "MMMU"
    about = "college questions of 30 subjects in six disciplines, multiple choice and open, with up to seven images"
    files = (
        "SUBJECT/validation-*.parquet    as in the data set MMMU/MMMU\n"
        "or data/validation-*.parquet    as in lmms-lab/MMMU; for the splits dev and test: dev-*, test-*"
    )
    source = "the data set MMMU/MMMU or lmms-lab/MMMU"
    metric = "accuracy, percent"
    splits = {"validation": 900, "dev": 150, "test": 10500}
    dialects = (OFFICIAL, LMMS_EVAL, VLMEVALKIT)
    max_new_tokens = {"": 128, VLMEVALKIT: 2048}
    published = (
        Published("LLaVA-1.5 13B", 36.4, OFFICIAL, "MMMU's README"),
        Published("LLaVA-1.5 13B", 33.6, OFFICIAL, "MMMU's README", "test"),
    )

    def load(self, folder: Path, split: str) -> list[Item]:
        """As `Benchmark.load`; the answers of the split test are not published."""
        places = ("data/", "*/", "")
        layouts = {"Parquet": {"rows": tuple(f"{place}{split}-*.parquet" for place in places)}}
        _, files = find_layout(folder, layouts, f"{self.title} {split}", self.source)
        images = Images(folder)
        return make_items(parquet_rows(files["rows"]), lambda row: _item(row, images, split), images)

    def prompt(self, item: Item, dialect: str) -> str:
        """As `Benchmark.prompt`: images stand where the texts have their marks "<image 1>".

        VLMEvalKit's LLaVA class puts them in front and leaves the marks.
        """
        options = lettered(item.choices)
        if dialect == VLMEVALKIT:
            body = "\n".join([item.question, *(f"{letter}. {text}" for letter, text in options.items())])
            request = letter_suffix(body) if options else "Answer the question directly."
            return images_first(item, f"{body}\n{request}", dialect)
        if dialect == LMMS_EVAL:
            below = "\n".join(f"{letter}. {text}" for letter, text in options.items())
            text = f"{item.question}\n{below}\n\n{LETTER_SUFFIX}" if options else f"{item.question}\n\n{SHORT}"
        else:
            below = "".join(f"({letter}) {text}\n" for letter, text in options.items())
            text = f"{item.question}\n{below}\n{LETTER_SUFFIX}" if options else f"{item.question}\n{SHORT}"
        return _MARK.sub(IMAGE, text)

    def parse(self, item: Item, text: str, dialect: str) -> str | list[str] | None:
        """The letter of an option; of an open question the parts of the answer that may be it; or None."""
        if not item.choices:
            return _open_value(item, text, dialect)
        if dialect == VLMEVALKIT:
            return lone_letter_or_text(text, lettered(item.choices))
        return last_letter_or_text(text, lettered(item.choices), glued=dialect == LMMS_EVAL)

    def score(self, items: Sequence[Item], values: Sequence[Any], dialect: str) -> Scores:
        """Accuracy of all questions, by subject, discipline and kind of question."""
        return mean_scores(items, [_credit(*pair, dialect) for pair in zip(items, values, strict=True)], "accuracy")

    def continuations(self, item: Item, dialect: str) -> tuple[str, ...]:
        """The letters of the options; () of an open question."""
        return tuple(lettered(item.choices))

    def submission(self, items: Sequence[Item], texts: Sequence[str], values: Sequence[Any]) -> Mapping[str, str]:
        """The file of the EvalAI server: id -> letter, or the answer to an open question."""
        answers = {
            item.id: (value or "") if item.choices else text
            for item, text, value in zip(items, texts, values, strict=True)
        }
        return {"mmmu.json": json.dumps(answers, indent=1, ensure_ascii=False) + "\n"}


def _open_value(item: Item, text: str, dialect: str) -> str | list[str] | None:
    if dialect != VLMEVALKIT:
        return open_candidates(text) or None
    if item.truth is None:
        return None
    return lone_letter_or_text(text, _OPEN | {"A": item.extra["answer"]})


def _credit(item: Item, value: Any, dialect: str) -> float:
    if item.truth is None:
        return float("nan")
    if value is None:
        return 0.0
    if item.choices:
        return float(value == item.truth)
    if dialect == VLMEVALKIT:
        return float(value == "A")
    # lmms-eval compares with the text of a list of answers, so that none of these is found.
    truths = [item.extra["answer"]] if dialect == LMMS_EVAL else item.truth
    return float(matches(truths, value))


def _item(row: Row, images: Images, split: str) -> Item:
    id, kind, question = row.id("id"), row.text("question_type"), row.text("question")
    found = _ID.fullmatch(id)
    if found is None or found[2] not in _DISCIPLINE_OF:
        raise RowError(f'"id" is as in validation_Art_1, with one of the 30 subjects, found {id!r}')
    options = _options(row) if kind == "multiple-choice" else ()
    marks = _marks(row, "\n".join((question, *options)))
    missing = [number for number in marks if row.get(f"image_{number}") is None]
    if missing:
        raise RowError(f"the text has <image {missing[0]}>, and image_{missing[0]} is null")
    media = tuple(images.of(row.any(f"image_{number}")) for number in marks)
    truth = None if split == "test" else _truth(row, options)
    groups = {"subject": found[2], "discipline": _DISCIPLINE_OF[found[2]], "kind": "choice" if options else "open"}
    extra = {"answer": str(row.get("answer", ""))}
    return Item(id, media, question, truth, options, groups, "", row.origin, extra)


def _marks(row: Row, text: str) -> list[int]:
    """The numbers of the images, in the order of their marks in a text."""
    numbers = [int(number) for number in _MARK.findall(text)]
    if any(not 1 <= number <= _IMAGES for number in numbers):
        raise RowError(f"images are numbered from 1 to {_IMAGES}, found {numbers}")
    if IMAGE in text:
        raise RowError(f"the text has {IMAGE}, which is no mark of an image here but would be taken for one")
    return numbers


def _options(row: Row) -> tuple[str, ...]:
    """The options, which the files have as the text of a Python list."""
    value = _literal(row.any("options"))
    if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= len(LETTERS):
        raise RowError(
            f'"options" is the text of a list with up to {len(LETTERS)} options, found {row.any("options")!r}'
        )
    return tuple(str(option) for option in value)


def _truth(row: Row, options: Sequence[str]) -> str | list[str]:
    """The letter of the right option; of an open question the texts of which each is right."""
    answer = row.text("answer")
    if options:
        if answer not in lettered(options):
            raise RowError(f"the answer is one of {', '.join(lettered(options))}, found {answer!r}")
        return answer
    value = _literal(answer) if answer.startswith("[") else answer
    return [str(one) for one in value] if isinstance(value, list) else [answer]


def _literal(value: Any) -> Any:
    """The value of the text of a Python literal; the text itself if it is none."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value
