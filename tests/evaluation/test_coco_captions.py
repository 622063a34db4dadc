"""COCO captions: tokens and scores equal those of COCO's tools, splits, prompts, results file."""

import json

import pytest

from jaxvlm.errors import UserError
from jaxvlm.evaluation.benchmarks.benchmark import Item
from jaxvlm.evaluation.benchmarks.coco_captions import CocoCaptions
from jaxvlm.evaluation.metrics.captions import tokenize
from tests.evaluation import layouts
from tests.evaluation.frozen import cases

BENCHMARK = CocoCaptions()


def test_tokens_equal_those_of_cocos_tools():
    rows = cases("captions")[:-1]
    pairs = [(row["caption"], row["tokens"]) for row in rows]
    pairs += [pair for row in rows for pair in zip(row["references"], row["reference_tokens"], strict=True)]
    assert len(pairs) > 200
    assert [tokenize(caption) for caption, _ in pairs] == [tokens for _, tokens in pairs]


@pytest.mark.parametrize(
    "caption, tokens",
    [
        (
            "A man's dog isn't on the TV (left), at 3:00 p.m.",
            "a man 's dog is n't on the tv -lrb- left -rrb- at 3:00 p.m.",
        ),
        ("He said: “cannot” - don't!?", "he said can not do n't !?"),
        (
            "A black-and-white t-shirt, 1,000 apples & 50% off... o'clock",
            "a black-and-white t-shirt 1,000 apples & 50 % off o'clock",
        ),
        ("", ""),
        ("...!", ""),
    ],
)
def test_tokens(caption, tokens):
    assert tokenize(caption) == tokens


def test_scores_equal_those_of_cocos_tools():
    *rows, frozen = cases("captions")
    items = [Item(str(n), (), "", row["references"]) for n, row in enumerate(rows)]
    scores = BENCHMARK.score(
        items, [BENCHMARK.parse(items[0], row["caption"], "lmms_eval") for row in rows], "lmms_eval"
    )
    assert scores.numbers["CIDEr"] == pytest.approx(100 * frozen["CIDEr"])
    assert scores.numbers["ROUGE-L"] == pytest.approx(100 * frozen["ROUGE_L"])
    assert [scores.numbers[f"BLEU-{n}"] for n in range(1, 5)] == pytest.approx([100 * b for b in frozen["BLEU"]])
    assert (10 * scores.credits).tolist() == pytest.approx([row["cider"] for row in rows])


def test_dialects(tmp_path):
    layouts.captions_official(tmp_path)
    items = BENCHMARK.load(tmp_path, "val2017")
    assert [(item.id, len(item.truth)) for item in items] == [("139", 2), ("285", 2), ("632", 2)]
    assert BENCHMARK.prompt(items[0], "lmms_eval") == "<image>\nProvide a one-sentence caption for the provided image."
    assert BENCHMARK.prompt(items[0], "vlmevalkit").startswith("<image>\nPlease describe this image in general.")
    captions = [text.upper() for text, _ in layouts.CAPTIONS.values()]
    numbers = {}
    for dialect in BENCHMARK.dialects:
        values = [BENCHMARK.parse(item, text, dialect) for item, text in zip(items, captions, strict=True)]
        numbers[dialect] = BENCHMARK.score(items, values, dialect).numbers["BLEU-1"]
    assert numbers["lmms_eval"] == pytest.approx(100) and numbers["vlmevalkit"] < 40, "capitals differ"
    files = BENCHMARK.submission(items, [" A dog.\n"] * 3, [""] * 3)
    assert json.loads(files["captions_val2017_results.json"])[0] == {"image_id": 139, "caption": "A dog."}


def test_karpathys_split(tmp_path):
    layouts.captions_karpathy(tmp_path)
    items = BENCHMARK.load(tmp_path, "karpathy")
    assert [item.id for item in items] == ["139", "285"] and items[0].images[0].endswith("val2014_000000000139.jpg")
    assert items[1].truth == layouts.CAPTIONS[285]
    assert BENCHMARK.prompt(items[0], "lmms_eval") == "<image>\nDescribe the image briefly."


def test_the_server_alone_has_the_captions_of_test(tmp_path):
    images = [{"id": 1, "file_name": "COCO_test2014_000000000001.jpg"}]
    layouts.put_json(tmp_path / "annotations" / "image_info_test2014.json", {"images": images})
    layouts.put_images(tmp_path, f"test2014/{images[0]['file_name']}")
    items = BENCHMARK.load(tmp_path, "test2014")
    assert items[0].truth is None and BENCHMARK.score(items, ["a dog"], "lmms_eval").numbers == {}
    assert list(BENCHMARK.submission(items, ["a dog"], ["a dog"])) == ["captions_test2014_results.json"]


def test_an_image_without_caption_is_named(tmp_path):
    layouts.captions_official(tmp_path)
    path = tmp_path / "annotations" / "captions_val2017.json"
    content = json.loads(path.read_text("utf-8-sig"))
    content["annotations"] = content["annotations"][2:]
    layouts.put_json(path, content)
    with pytest.raises(UserError, match=r"\[0\]: image 139 has no caption"):
        BENCHMARK.load(tmp_path, "val2017")
