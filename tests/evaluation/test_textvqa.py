"""TextVQA: OCR tokens in LLaVA's prompt, none in the others, pairing of LLaVA's lines with the annotations."""

import pytest

from jaxvlm.errors import UserError
from jaxvlm.evaluation.benchmarks.textvqa import TextVqa
from tests.evaluation import layouts

BENCHMARK = TextVqa()


def test_prompts_of_the_dialects(tmp_path):
    layouts.textvqa_llava(tmp_path)
    items = BENCHMARK.load(tmp_path, "val")
    assert [item.id for item in items] == ["34602", "34603", "34604"]
    ask = "what is the brand of this camera?"
    tokens = "Reference OCR token: DAKOTA, DIGITAL"
    assert BENCHMARK.prompt(items[0], "llava") == f"<image>\n{ask}\n{tokens}\n{layouts.SHORT}"
    assert BENCHMARK.prompt(items[0], "lmms_eval") == f"<image>\n{ask.capitalize()}\n{layouts.SHORT}"
    assert BENCHMARK.prompt(items[0], "vlmevalkit") == f"<image>\n{ask}\n{layouts.SHORT}"
    assert "\nReference OCR token: \n" in BENCHMARK.prompt(items[1], "llava")
    assert items[0].cluster == items[1].cluster != items[2].cluster


def test_without_ocr_tokens_only_the_llava_dialect_cannot_ask(tmp_path):
    layouts.textvqa_official(tmp_path)
    items = BENCHMARK.load(tmp_path, "val")
    assert BENCHMARK.prompt(items[0], "lmms_eval")
    with pytest.raises(UserError, match=r"add llava_textvqa_val_v051_ocr\.jsonl .* choose the dialect lmms_eval"):
        BENCHMARK.prompt(items[0], "llava")


def test_lines_that_do_not_fit_the_annotations_are_named(tmp_path):
    layouts.textvqa_llava(tmp_path)
    lines = [
        {"question_id": "003a8ae2", "image": "003a8ae2.jpg", "text": f"Who?\nReference OCR token: A\n{layouts.SHORT}"},
        {"question_id": "003a8ae2", "image": "003a8ae2.jpg", "text": "Who?"},
    ]
    layouts.put_lines(tmp_path / "llava_textvqa_val_v051_ocr.jsonl", lines)
    with pytest.raises(
        UserError, match=r'jsonl:1: .*has no question \'Who\?\' on image 003a8ae2; .*jsonl:2: "text" is'
    ):
        BENCHMARK.load(tmp_path, "val")


def test_scores(tmp_path):
    layouts.textvqa_llava(tmp_path)
    items = BENCHMARK.load(tmp_path, "val")
    values = [
        BENCHMARK.parse(item, text, "llava") for item, text in zip(items, ["Nous les gosses", "", "22."], strict=True)
    ]
    assert BENCHMARK.score(items, values, "llava").credits.tolist() == pytest.approx([0.3, 0, 1])
