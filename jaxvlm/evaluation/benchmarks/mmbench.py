"""MMBench: multiple choice, asked once for each rotation of the options; a question is right if all of these are.

Axis letters:
  R draws   N items   Q questions

Source: arXiv:2307.06281; LLaVA's llava/eval/model_vqa_mmbench.py and scripts/convert_mmbench_for_submission.py;
lmms-eval 0.7.3 tasks/mmbench; ms-vlmeval 0.0.20 dataset/image_mcq.py, dataset/utils/multiple_choice.py and
vlm/llava/llava.py.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

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
from jaxvlm.evaluation.benchmarks.choice_prompts import (
    LETTER_SUFFIX,
    LETTER_SUFFIX_CN,
    images_first,
    letter_suffix,
    options_below,
)
from jaxvlm.evaluation.benchmarks.files import (
    Images,
    Row,
    RowError,
    find_layout,
    make_items,
    parquet_rows,
    tsv_rows,
)
from jaxvlm.evaluation.benchmarks.prompts import MODEL_ZOO
from jaxvlm.evaluation.benchmarks.tsv_images import TsvImages, cell
from jaxvlm.evaluation.metrics.averages import mean_scores
from jaxvlm.evaluation.metrics.choices import (
    lettered,
    lone_letter_or_text,
    marked_letter_or_text,
    percent,
    percent_of_draws,
)
from jaxvlm.media import Medium

_PARSERS = {LLAVA: lone_letter_or_text, LMMS_EVAL: marked_letter_or_text, VLMEVALKIT: lone_letter_or_text}
_OPTIONS = "ABCD"
_ROTATION = 1_000_000  # what each rotation adds to the index of its question
_LMMS_EVAL = {  # language -> the line above the options, the request
    "en": ("There are several options:", LETTER_SUFFIX),
    "cn": ("有如下几个选项：", "请直接使用所提供的选项字母作为答案回答。"),
}
_LANGUAGE = "language"


class MmBench(Benchmark):
    """See the top of this file."""

    name = "mmbench"
    title = "MMBench"
    about = "multiple choice about 20 abilities; a question counts if it is right under all rotations of its options"
    files = (
        "MMBench_DEV_EN.tsv (or mmbench_dev_*.tsv, MMBench_DEV_EN_V11.tsv)   questions, options and images\n"
        "MMBench_DEV_CN.tsv (or mmbench_dev_cn_*.tsv), MMBench_TEST_EN.tsv, MMBench_TEST_CN.tsv\n"
        "or en/dev-*.parquet, cn/dev-*.parquet, en/test-*.parquet, cn/test-*.parquet"
    )
    source = "github.com/open-compass/MMBench; or the data set lmms-lab/MMBench"
    metric = "circular accuracy, percent"
    splits = {"dev_en": 4329, "dev_cn": 0, "test_en": 0, "test_cn": 0}
    dialects = (LLAVA, LMMS_EVAL, VLMEVALKIT)
    max_new_tokens = {"": 1024, VLMEVALKIT: 2048}
    packages = ("openpyxl",)
    published = (
        Published("LLaVA-1.5 7B", 64.3, LLAVA, MODEL_ZOO, "dev_en"),
        Published("LLaVA-1.5 7B", 58.3, LLAVA, MODEL_ZOO, "dev_cn"),
        Published("LLaVA-1.5 13B", 67.7, LLAVA, MODEL_ZOO, "dev_en"),
        Published("LLaVA-1.5 13B", 63.6, LLAVA, MODEL_ZOO, "dev_cn"),
        Published("LLaVA-1.5 7B LoRA", 66.1, LLAVA, MODEL_ZOO, "dev_en"),
        Published("LLaVA-1.5 7B LoRA", 58.9, LLAVA, MODEL_ZOO, "dev_cn"),
        Published("LLaVA-1.5 13B LoRA", 68.5, LLAVA, MODEL_ZOO, "dev_en"),
        Published("LLaVA-1.5 13B LoRA", 61.5, LLAVA, MODEL_ZOO, "dev_cn"),
    )

    def load(self, folder: Path, split: str) -> list[Item]:
        """As `Benchmark.load`; an item is a row, so one rotation of a question."""
        layout, files = find_layout(folder, _layouts(split), f"{self.title} {split}", self.source)
        language = split.rpartition("_")[2]
        if layout == "TSV":
            rows = tsv_rows(files["rows"][0])
            pictures = TsvImages(rows)
            items = make_items(rows, lambda row: _item(row, pictures.one(row), language))
        else:
            images = Images(folder)
            parquet = parquet_rows(files["rows"])
            items = make_items(parquet, lambda row: _item(row, images.of(row.any("image")), language), images)
        _check_rotations(items)
        return items

    def prompt(self, item: Item, dialect: str) -> str:
        """As `Benchmark.prompt`."""
        options, hint, language = lettered(item.choices), item.extra.get("hint", ""), item.extra[_LANGUAGE]
        body = options_below(item.question, options, hint)
        if dialect == LLAVA:
            text = f"{body}\n{LETTER_SUFFIX_CN if language == 'cn' else LETTER_SUFFIX}"
        elif dialect == LMMS_EVAL:
            intro, request = _LMMS_EVAL[language]
            asked = f"{hint} {item.question}" if hint else item.question
            text = f"{options_below(f'{asked} {intro}', options)}\n\n{request}"
        else:
            text = f"{body}\n{letter_suffix(body)}"
        return images_first(item, text, dialect)

    def parse(self, item: Item, text: str, dialect: str) -> str | None:
        """The letter of an option, or None."""
        return _PARSERS[dialect](text, lettered(item.choices))

    def score(self, items: Sequence[Item], values: Sequence[Any], dialect: str) -> Scores:
        """Circular accuracy, and vanilla: that of the first rotations alone; both without what only a server knows.

        A question of which `--limit` leaves some rotations is judged by these. The groups are of circular accuracy.
        """
        credits = np.array([_credit(item, value) for item, value in zip(items, values, strict=True)])
        question_N, first_Q = _questions(items)
        circular_Q = _circular(credits, question_N, len(first_Q))
        vanilla = credits[np.array([_is_first(item) for item in items], bool)]
        scores = mean_scores([items[place] for place in first_Q], circular_Q.tolist(), "circular_accuracy")
        if not scores.numbers:
            return dataclasses.replace(scores, credits=credits)
        numbers = {"vanilla_accuracy": percent(vanilla), "rows_per_question": len(items) / len(first_Q)}
        return dataclasses.replace(scores, numbers=scores.numbers | numbers, credits=credits)

    def resample(
        self, items: Sequence[Item], values: Sequence[Any], dialect: str, draws_RN: np.ndarray
    ) -> np.ndarray | None:
        """As `Benchmark.resample`; all rotations of a question are drawn equally often, since they are one cluster."""
        credits = np.array([_credit(item, value) for item, value in zip(items, values, strict=True)])
        question_N, first_Q = _questions(items)
        circular_Q = _circular(credits, question_N, len(first_Q))
        return percent_of_draws(circular_Q, draws_RN[:, first_Q])

    def continuations(self, item: Item, dialect: str) -> tuple[str, ...]:
        """The letters of the options."""
        return tuple(lettered(item.choices))

    def submission(self, items: Sequence[Item], texts: Sequence[str], values: Sequence[Any]) -> Mapping[str, bytes]:
        """A spreadsheet with the columns of LLaVA's."""
        import openpyxl  # only where it is written

        book = openpyxl.Workbook(write_only=True)
        sheet = book.create_sheet()
        sheet.append(("index", "question", *_OPTIONS, "prediction", "answer", "split"))
        for item, text in zip(items, texts, strict=True):
            options = [lettered(item.choices).get(letter, "") for letter in _OPTIONS]
            row = (item.question, *options, text, item.truth or "", item.extra.get("split", ""))
            sheet.append((int(item.id), *(_text_cell(sheet, text) for text in row)))
        file = io.BytesIO()
        book.save(file)
        return {"mmbench.xlsx": file.getvalue()}


def _text_cell(sheet: Any, text: str) -> Any:
    """A cell that shows a text as it is, even one that begins with "="; without characters that no cell may have."""
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    cell = WriteOnlyCell(sheet, ILLEGAL_CHARACTERS_RE.sub("", text))
    cell.data_type = "s"
    return cell


def _layouts(split: str) -> dict[str, dict[str, tuple[str, ...]]]:
    part, language = split.split("_")
    old = f"mmbench_{part}_cn_2*.tsv" if language == "cn" else f"mmbench_{part}_2*.tsv"
    name = f"MMBench_{part.upper()}_{language.upper()}"
    tsv = (f"{name}.tsv", f"{name}_V11.tsv", old, f"mmbench_{part}_{language}_2*.tsv")
    return {"TSV": {"rows": tsv}, "Parquet": {"rows": (f"{language}/{part}-*.parquet",)}}


def _item(row: Row, image: Medium, language: str) -> Item:
    index, answer = row.id("index"), cell(row, "answer")
    if not index.isdecimal():
        raise RowError(f'"index" is a number, found {index!r}')
    options = []
    for letter in _OPTIONS:  # LLaVA stops at the first missing option
        if not cell(row, letter):
            break
        options.append(cell(row, letter))
    if len(options) < 2:
        raise RowError(f"it has at least the options A and B, found {len(options)}")
    if answer and answer not in lettered(options):
        raise RowError(f"the answer is one of {', '.join(lettered(options))}, found {answer!r}")
    groups = {"category": cell(row, "category"), "l2-category": cell(row, "l2-category", "L2-category")}
    hint = cell(row, "hint")
    extra = {_LANGUAGE: language, "split": cell(row, "split"), "hint": "" if hint.lower() == "none" else hint}
    return Item(
        id=index,
        images=(image,),
        question=row.text("question"),
        truth=answer or None,
        choices=tuple(options),
        groups={axis: value for axis, value in groups.items() if value},
        cluster=_base(index),
        origin=row.origin,
        extra=extra,
    )


def _base(index: str) -> str:
    return str(int(index) % _ROTATION)


def _is_first(item: Item) -> bool:
    return item.id == item.cluster


def _check_rotations(items: Iterable[Item]) -> None:
    items = list(items)
    first = {item.id for item in items if _is_first(item)}
    orphans = [f"{item.origin} (index {item.id})" for item in items if item.cluster not in first]
    if orphans:
        raise UserError(
            f"rotations have the index of their question plus a multiple of {_ROTATION:,}, but the question of "
            f"{listed(orphans)} is not there; get the file again"
        )


def _credit(item: Item, value: Any) -> float:
    return float("nan") if item.truth is None else float(value == item.truth)


def _questions(items: Sequence[Item]) -> tuple[np.ndarray, np.ndarray]:
    """int[N], the number of each item's question, and int[Q], the place of each question's first item."""
    clusters = [item.cluster for item in items]
    number = {cluster: at for at, cluster in enumerate(dict.fromkeys(clusters))}
    question_N = np.array([number[cluster] for cluster in clusters], int)
    _, first_Q = np.unique(question_N, return_index=True)
    return question_N, first_Q


def _circular(credits: np.ndarray, question_N: np.ndarray, questions: int) -> np.ndarray:
    """float64[Q]: 1 if all items of a question are right, 0 if one is wrong, NaN if no truth is known."""
    right_Q = np.full(questions, np.inf)
    np.fmin.at(right_Q, question_N, credits)
    return np.where(np.isinf(right_Q), np.nan, right_Q)
