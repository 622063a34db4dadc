"""TextVQA: questions on text in photos, compared with the answers of ten people.

LLaVA writes text that another program read off the photo (OCR tokens) into the question, lmms-eval does not: LLaVA-1.5
7B has 58.2 with them and about 46 without.

Source: arXiv:1904.08920; LLaVA's llava/eval/eval_textvqa.py and m4c_evaluator.py; lmms-eval 0.7.3, tasks/textvqa;
VLMEvalKit (ms-vlmeval 0.0.20), dataset/image_vqa.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jaxvlm.errors import UserError
from jaxvlm.evaluation.benchmarks.benchmark import LLAVA, LMMS_EVAL, VLMEVALKIT, Item, Published
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
)
from jaxvlm.evaluation.benchmarks.prompts import MODEL_ZOO, SHORT, with_images
from jaxvlm.evaluation.benchmarks.soft_vqa import SoftVqa, human_answers
from jaxvlm.evaluation.metrics import vqa_accuracy
from jaxvlm.media import Medium

_OCR = "Reference OCR token: "
_ANNOTATIONS = "TextVQA_0.5.1_val.json"
_LAYOUTS: Layouts = {
    "llava": {"annotations": _ANNOTATIONS, "questions": "llava_textvqa_val_v051_ocr.jsonl"},
    "official": {"annotations": _ANNOTATIONS},
    "parquet": {"rows": ("data/validation-*.parquet", "validation-*.parquet")},
}


class TextVqa(SoftVqa):
    """TextVQA val in the dialects of LLaVA (with OCR tokens), lmms-eval and VLMEvalKit (without)."""

    name = "textvqa"
    title = "TextVQA"
    about = "short answers to questions on text in photos, against ten people's"
    files = """val  TextVQA_0.5.1_val.json, train_images/*.jpg, and for the dialect llava
     llava_textvqa_val_v051_ocr.jsonl (LLaVA's eval.zip); or data/validation-*.parquet of lmms-lab-encoder/textvqa"""
    source = "https://textvqa.org/dataset, or lmms-lab-encoder/textvqa on Hugging Face"
    splits = {"val": 5_000}
    dialects = (LLAVA, LMMS_EVAL, VLMEVALKIT)
    max_new_tokens = {"": 128, VLMEVALKIT: 512}
    published = (
        Published("LLaVA-1.5 7B", 58.2, LLAVA, MODEL_ZOO),
        Published("LLaVA-1.5 13B", 61.3, LLAVA, MODEL_ZOO),
        Published("LLaVA-1.5 7B LoRA", 58.2, LLAVA, MODEL_ZOO),
        Published("LLaVA-1.5 13B LoRA", 60.2, LLAVA, MODEL_ZOO),
    )
    normalisers = {
        LLAVA: vqa_accuracy.evalai,
        LMMS_EVAL: vqa_accuracy.evalai,
        VLMEVALKIT: vqa_accuracy.vlmevalkit,
    }

    def load(self, folder: Path, split: str) -> list[Item]:
        """The questions of val, in LLaVA's order and with its OCR tokens if its file is there."""
        layout, files = find_layout(folder, _LAYOUTS, f"{self.title} {split}", self.source)
        images = Images(folder / "train_images", folder)
        if layout == "parquet":
            table = parquet_rows(files["rows"])
            return make_items(table, lambda row: _item(row, images.of(row.any("image")), row.get("ocr_tokens")), images)
        rows = json_rows(files["annotations"][0], "data")
        if layout == "official":
            return make_items(rows, lambda row: _item(row, images.find(f"{row.id('image_id')}.jpg")), images)
        asked = {(row.id("image_id"), row.text("question").lower()): row for row in rows}

        def make(row: Row) -> Item:
            question, tokens = _split_prompt(row.text("text"))
            found = asked.get((row.id("question_id"), question.lower()))
            if found is None:
                raise RowError(f"{_ANNOTATIONS} has no question {question!r} on image {row.id('question_id')}")
            return _item(found, images.find(row.text("image")), tokens, question)

        return make_items(json_line_rows(files["questions"][0]), make, images)

    def prompt(self, item: Item, dialect: str) -> str:
        """The question, for LLaVA the OCR tokens, and LLaVA's sentence.

        Raises:
          UserError: the files have no OCR tokens.
        """
        if dialect == VLMEVALKIT:
            return with_images(item, f"{item.question}\n{SHORT}")
        if dialect == LMMS_EVAL:
            return with_images(item, f"{item.question.capitalize()}\n{SHORT}")
        if "ocr" not in item.extra:
            raise UserError(
                f"{item.origin}: the dialect {LLAVA} of {self.title} writes OCR tokens into the question, and the "
                "files have none; add llava_textvqa_val_v051_ocr.jsonl of LLaVA's eval.zip, or choose the dialect "
                f"{LMMS_EVAL}"
            )
        return with_images(item, f"{item.question}\n{_OCR}{item.extra['ocr']}\n{SHORT}")


def _split_prompt(text: str) -> tuple[str, str]:
    """Question and OCR tokens of a line of LLaVA's file."""
    question, _, rest = text.partition(f"\n{_OCR}")
    if not rest and f"\n{_OCR}" not in text:
        raise RowError(f'"text" is a question, a line "{_OCR}...", and a sentence, found {text!r}')
    return question, rest.removesuffix(f"\n{SHORT}")


def _item(row: Row, image: Medium, ocr: str | list[str] | None = None, question: str = "") -> Item:
    extra: Mapping[str, str] = {} if ocr is None else {"ocr": ocr if isinstance(ocr, str) else ", ".join(ocr)}
    return Item(
        row.id("question_id"),
        (image,),
        question or row.text("question"),
        human_answers(row, required=True),
        cluster=row.id("image_id"),
        origin=row.origin,
        extra=extra,
    )
