"""SEED-Bench: multiple choice about images, and about videos of which the middle frame is shown.

Source: arXiv:2307.16125; AILab-CVC/SEED-Bench eval.py and model/instruct_blip_interface.py; LLaVA's
scripts/convert_seed_for_submission.py; lmms-eval 0.7.3 tasks/seedbench; ms-vlmeval 0.0.20 dataset/image_mcq.py.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvlm.data.sources.json_items import read_json
from jaxvlm.errors import UserError
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
from jaxvlm.evaluation.benchmarks.choice_prompts import LETTER_SUFFIX, images_first, letter_suffix, options_below
from jaxvlm.evaluation.benchmarks.files import (
    Images,
    Layouts,
    Row,
    RowError,
    find_layout,
    json_line_rows,
    json_rows,
    make_items,
    parquet_rows,
    tsv_rows,
)
from jaxvlm.evaluation.benchmarks.prompts import MODEL_ZOO
from jaxvlm.evaluation.benchmarks.tsv_images import TsvImages, cell
from jaxvlm.evaluation.metrics.averages import mean_scores
from jaxvlm.evaluation.metrics.choices import (
    equal_letter,
    equal_text,
    first_character,
    lettered,
    lone_letter_or_text,
    percent,
)
from jaxvlm.media import Medium

LMMS_EVAL_PPL = "lmms_eval_ppl"  # lmms-eval's task seedbench_ppl
_PARSERS = {
    LLAVA: equal_letter,
    OFFICIAL: equal_text,
    LMMS_EVAL: first_character,
    LMMS_EVAL_PPL: equal_text,
    VLMEVALKIT: lone_letter_or_text,
}
_RANKED = (OFFICIAL, LMMS_EVAL_PPL)  # dialects that rank the options' texts by likelihood
_PLAIN = {OFFICIAL: "Question: {}\nAnswer:", LMMS_EVAL_PPL: "{} Answer :"}
_ENDS = ("", ".png", ".jpg", ".jpeg")
_FRAMES = "SEED-Bench-video-image"
_LAYOUTS: Layouts = {
    "SEED-Bench": {"questions": "SEED-Bench.json"},
    "Parquet": {"rows": ("data/test-*.parquet", "*.parquet")},
    "VLMEvalKit": {"rows": "SEEDBench_IMG.tsv"},
}


class SeedBench(Benchmark):
    """See the top of this file."""

    name = "seedbench"
    title = "SEED-Bench"
    about = "multiple choice of nine kinds about images and of three about videos"
    files = (
        "SEED-Bench.json                          questions and answers\n"
        "SEED-Bench-image/DATA_ID                 images\n"
        "SEED-Bench-video-image/DATA_ID.png       the middle frame of each video (LLaVA's extract_video_frames.py)\n"
        "llava-seed-bench.jsonl                   LLaVA's names of the images, if they differ from these\n"
        "or data/test-*.parquet, or SEEDBench_IMG.tsv (images only)"
    )
    source = "the data set AILab-CVC/SEED-Bench and eval.zip of LLaVA's docs/Evaluation.md; or lmms-lab/SEED-Bench"
    metric = "accuracy, percent"
    splits = {"all": 19242, "image": 14233, "video": 5009}
    dialects = (LLAVA, OFFICIAL, LMMS_EVAL, LMMS_EVAL_PPL, VLMEVALKIT)
    max_new_tokens = {"": 128, VLMEVALKIT: 2048}
    published = (
        Published("LLaVA-1.5 7B", 58.6, LLAVA, MODEL_ZOO),
        Published("LLaVA-1.5 13B", 61.6, LLAVA, MODEL_ZOO),
        Published("LLaVA-1.5 7B LoRA", 60.1, LLAVA, MODEL_ZOO),
        Published("LLaVA-1.5 13B LoRA", 61.3, LLAVA, MODEL_ZOO),
    )

    def load(self, folder: Path, split: str) -> list[Item]:
        """As `Benchmark.load`; of a video it takes the middle frame, which must be there as an image."""
        layout, files = find_layout(folder, _LAYOUTS, f"{self.title} {split}", self.source)
        if layout == "SEED-Bench":
            items = _of_json(files["questions"][0], folder, split)
        elif layout == "Parquet":
            images = Images(folder)
            items = make_items(parquet_rows(files["rows"]), lambda row: _of_parquet(row, images, split), images)
        elif split != "image":
            raise UserError(f"{files['rows'][0]} has questions about images only; take the split image")
        else:
            rows = tsv_rows(files["rows"][0])
            pictures = TsvImages(rows)
            items = make_items(rows, lambda row: _of_tsv(row, pictures))
        return items

    def prompt(self, item: Item, dialect: str) -> str:
        """As `Benchmark.prompt`; the dialects that rank texts do not show the options."""
        if dialect in _RANKED:
            return images_first(item, _PLAIN[dialect].format(item.question), dialect)
        body = options_below(item.question, lettered(item.choices))
        suffix = letter_suffix(body) if dialect == VLMEVALKIT else LETTER_SUFFIX
        return images_first(item, f"{body}\n{suffix}", dialect)

    def parse(self, item: Item, text: str, dialect: str) -> str | None:
        """The letter of an option, or None; in the dialects that rank texts, of the option with this text."""
        return _PARSERS[dialect](text, lettered(item.choices))

    def score(self, items: Sequence[Item], values: Sequence[Any], dialect: str) -> Scores:
        """Accuracy of all questions, of those about images, of those about videos, and by type.

        VLMEvalKit has no questions about videos: in its dialect they do not count.
        """
        credits = np.array([float(value == item.truth) for item, value in zip(items, values, strict=True)])
        kind_N = np.array([item.groups["data"] for item in items])
        if dialect == VLMEVALKIT:
            credits[kind_N == "video"] = np.nan
        scores = mean_scores(items, credits.tolist(), "accuracy")
        by_kind = {f"{kind}_accuracy": percent(credits[kind_N == kind]) for kind in ("image", "video")}
        known = {name: number for name, number in by_kind.items() if not np.isnan(number)}
        return dataclasses.replace(scores, numbers=scores.numbers | known)

    def continuations(self, item: Item, dialect: str) -> tuple[str, ...]:
        """The letters of the options; in the dialects that rank texts, the texts."""
        return item.choices if dialect in _RANKED else tuple(lettered(item.choices))

    def submission(self, items: Sequence[Item], texts: Sequence[str], values: Sequence[Any]) -> Mapping[str, str]:
        """The file of the leaderboard: id and letter in a line."""
        lines = (
            json.dumps({"question_id": item.id, "prediction": value or text}, ensure_ascii=False)
            for item, text, value in zip(items, texts, values, strict=True)
        )
        return {"seedbench.jsonl": "".join(line + "\n" for line in lines)}


def _of_json(path: Path, folder: Path, split: str) -> list[Item]:
    content = read_json(path)
    named = content.get("question_type") if isinstance(content, dict) else None
    types = {number: name for name, number in named.items()} if isinstance(named, dict) else {}
    listed_names = folder / "llava-seed-bench.jsonl"
    rows = json_line_rows(listed_names) if listed_names.is_file() else []
    names = {str(row.get("question_id", "")): str(row.get("image", "")) for row in rows}
    images = Images(folder, folder / "SEED-Bench-image", folder / _FRAMES)

    def make(row: Row) -> Item | None:
        kind = row.text("data_type")
        if split not in ("all", kind):
            return None
        frame = kind == "video"
        name, place = row.id("data_id"), _FRAMES if frame else "SEED-Bench-image"
        guesses = [f"{place}/{stem}{end}" for stem in dict.fromkeys((name, Path(name).stem)) for end in _ENDS]
        given = names.get(row.id("question_id"))
        image = images.find(*([given] if given else []), *guesses)
        return _item(row, (image,), kind, types)

    return _make(json_rows(path, "questions"), make, images, split)


def _make(rows: Sequence[Row], make: Any, images: Images, split: str) -> list[Item]:
    """`make_items`, with what to do if the frames of videos are missing."""
    try:
        return make_items(rows, make, images)
    except UserError as error:
        if split != "image" and any(_FRAMES in why or "video" in why for why in images.missing.values()):
            raise UserError(
                f"{error}. The middle frame of each video must be an image in {_FRAMES}; or take the split image"
            ) from error
        raise


def _of_parquet(row: Row, images: Images, split: str) -> Item | None:
    kind, cells = row.text("data_type"), row.any("image")
    if split not in ("all", kind):
        return None
    if not isinstance(cells, list):
        cells = [cells]
    if not cells:
        raise RowError('"image" is an image or a list of them, found none')
    return _item(row, (images.of(cells[len(cells) // 2]),), kind, {})


def _item(row: Row, images: tuple[Medium, ...], kind: str, types: Mapping[Any, str]) -> Item:
    choices = tuple(str(row.any(f"choice_{letter}")) for letter in "abcd")
    answer, number = row.text("answer"), row.any("question_type_id")
    if answer not in lettered(choices):
        raise RowError(f"the answer is one of A, B, C and D, found {answer!r}")
    groups = {"type": types.get(number, str(number)), "data": kind}
    id, origin = row.id("question_id"), row.origin
    return Item(id, images, row.text("question"), answer, choices, groups, row.id("data_id"), origin)


def _of_tsv(row: Row, pictures: TsvImages) -> Item:
    letters = [letter for letter in "ABCD" if cell(row, letter)]
    choices = tuple(cell(row, letter) for letter in letters)
    if row.text("answer") not in lettered(choices):
        raise RowError(f"the answer is one of {', '.join(lettered(choices))}, found {row.text('answer')!r}")
    groups = {"type": cell(row, "category") or "all", "data": "image"}
    id, key = row.id("index"), pictures.key(row)
    return Item(id, (pictures.one(row),), row.text("question"), row.text("answer"), choices, groups, key, row.origin)
