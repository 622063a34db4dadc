"""COCO captions: a sentence for each photo, scored by CIDEr against five people's.

LLaVA has no number of its own. lmms-eval tokenizes as COCO's tools do; VLMEvalKit scores the text as it is, with
capitals and punctuation.

Source: arXiv:1504.00325, arXiv:1411.5726; the split of arXiv:1412.2306 (Karpathy); lmms-eval 0.7.3, tasks/coco_cap;
VLMEvalKit (ms-vlmeval 0.0.20), dataset/image_caption.py.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvlm.evaluation.benchmarks.benchmark import LMMS_EVAL, VLMEVALKIT, Benchmark, Item, Scores
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
from jaxvlm.evaluation.benchmarks.prompts import with_images
from jaxvlm.evaluation.metrics.captions import score_captions, tokenize
from jaxvlm.media import Medium

_KARPATHY, _TEST = "karpathy", "test2014"
_SENTENCE = "Provide a one-sentence caption for the provided image."
_KARPATHY_SENTENCE = "Describe the image briefly."
_VLMEVALKIT_SENTENCE = (
    "Please describe this image in general. Directly provide the description, do not include prefix like "
    '"This image depicts". '
)
_PARQUET = {"rows": ("data/val-*.parquet", "val-*.parquet")}
_LAYOUTS: Mapping[str, Layouts] = {
    _KARPATHY: {"karpathy": {"images": ("dataset_coco.json", "karpathy/dataset_coco.json")}},
    "val2017": {
        "official": {"images": ("captions_val2017.json", "annotations/captions_val2017.json")},
        "parquet": _PARQUET,
    },
    "val2014": {
        "official": {"images": ("captions_val2014.json", "annotations/captions_val2014.json")},
        "parquet": _PARQUET,
    },
    _TEST: {"official": {"images": ("image_info_test2014.json", "annotations/image_info_test2014.json")}},
}


class CocoCaptions(Benchmark):
    """COCO captions in the dialects of lmms-eval and VLMEvalKit."""

    name = "coco_captions"
    title = "COCO captions"
    about = "a sentence for each photo, against five people's"
    files = """karpathy  dataset_coco.json (Karpathy's split), val2014/*.jpg
val2017   annotations/captions_val2017.json, val2017/*.jpg; or data/val-*.parquet of lmms-lab-encoder/COCO-Caption2017
val2014   annotations/captions_val2014.json, val2014/*.jpg; or data/val-*.parquet of lmms-lab-encoder/COCO-Caption
test2014  annotations/image_info_test2014.json, test2014/*.jpg"""
    source = "https://cocodataset.org/#download, https://cs.stanford.edu/people/karpathy/deepimagesent"
    metric = "CIDEr-D x 100"
    splits = {_KARPATHY: 5_000, "val2017": 5_000, "val2014": 40_504, _TEST: 0}
    dialects = (LMMS_EVAL, VLMEVALKIT)
    packages = ("pycocoevalcap",)
    max_new_tokens = {"": 64, VLMEVALKIT: 512}

    def load(self, folder: Path, split: str) -> list[Item]:
        """The images of a split, with the people's captions but for test2014."""
        layout, files = find_layout(folder, _LAYOUTS[split], f"{self.title} {split}", self.source)
        year = split if split.startswith(("val", "test")) else "val2014"
        images = Images(folder / year, folder)
        if layout == "parquet":
            table = parquet_rows(files["rows"])
            return make_items(table, lambda row: _parquet_item(row, images, split), images)
        if layout == "karpathy":
            rows = [row for row in json_rows(files["images"][0], "images") if row.get("split") == "test"]
            return make_items(rows, lambda row: _karpathy_item(row, images), images)
        captions = {} if split == _TEST else _captions(json_rows(files["images"][0], "annotations"))

        def item(row: Row) -> Item:
            image, number = images.find(row.text("file_name")), int(row.id("id"))
            return _item(row, number, image, None if split == _TEST else captions.get(number, []), split)

        return make_items(json_rows(files["images"][0], "images"), item, images)

    def prompt(self, item: Item, dialect: str) -> str:
        """A request for a caption; lmms-eval has another one for Karpathy's split."""
        if dialect == VLMEVALKIT:
            return with_images(item, _VLMEVALKIT_SENTENCE)
        return with_images(item, _KARPATHY_SENTENCE if item.extra["split"] == _KARPATHY else _SENTENCE)

    def parse(self, item: Item, text: str, dialect: str) -> str:
        """The caption as it is scored: tokens of COCO's tools, or the text for VLMEvalKit."""
        return text if dialect == VLMEVALKIT else tokenize(text)

    def score(self, items: Sequence[Item], values: Sequence[Any], dialect: str) -> Scores:
        """CIDEr, BLEU and ROUGE-L times 100; a credit is a caption's CIDEr over its maximum, 10.

        CIDEr weighs words by the references of these items; the bootstrap keeps these weights.
        """
        if not items or any(item.truth is None for item in items):
            return Scores({}, np.full(len(items), np.nan))
        prepared = [[t if dialect == VLMEVALKIT else tokenize(t) for t in item.truth] for item in items]
        scores = score_captions(values, prepared)
        numbers = {"CIDEr": 100 * scores.cider, "ROUGE-L": 100 * scores.rouge_l}
        numbers |= {f"BLEU-{n}": 100 * bleu for n, bleu in reversed(list(enumerate(scores.bleu, 1)))}
        return Scores(numbers, scores.ciders / 10)

    def submission(self, items: Sequence[Item], texts: Sequence[str], values: Sequence[Any]) -> Mapping[str, str]:
        """The results file that COCO's tools and its server read."""
        rows = [{"image_id": int(item.id), "caption": text.strip()} for item, text in zip(items, texts, strict=True)]
        split = items[0].extra["split"] if items else ""
        return {f"captions_{split}_results.json": json.dumps(rows)} if rows else {}


def _captions(rows: Iterable[Row]) -> dict[int, list[str]]:
    """Image id -> its captions, in the order of the file."""
    captions: dict[int, list[str]] = defaultdict(list)
    for row in rows:
        captions[int(row.id("image_id"))].append(row.text("caption"))
    return captions


def _karpathy_item(row: Row, images: Images) -> Item:
    name = row.text("filename")
    image = images.find(f"{row.get('filepath', 'val2014')}/{name}", name)
    return _item(row, int(row.id("cocoid")), image, [one["raw"] for one in row.any("sentences")], _KARPATHY)


def _parquet_item(row: Row, images: Images, split: str) -> Item:
    name = row.id("question_id")  # that of the image file, such as COCO_val2014_000000000042.jpg
    digits = name.rsplit("_", 1)[-1].split(".")[0]
    if not digits.isdigit():
        raise RowError(f'"question_id" ends in the id of the image, found {name}')
    return _item(row, int(digits), images.of(row.any("image")), row.texts("answer"), split)


def _item(row: Row, number: int, image: Medium, captions: list[str] | None, split: str) -> Item:
    if captions is not None and not captions:
        raise RowError(f"image {number} has no caption")
    return Item(
        str(number),
        (image,),
        "",
        captions,
        cluster=str(number),
        origin=row.origin,
        extra={"split": split},
    )
