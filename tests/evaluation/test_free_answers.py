"""What every free-answer benchmark promises: equal items from each layout, whole scores, one error for all faults."""

import json
import random
import subprocess
import sys

import numpy as np
import pytest

from jaxvlm.errors import UserError
from jaxvlm.evaluation.benchmarks.chartqa import ChartQa
from jaxvlm.evaluation.benchmarks.coco_captions import CocoCaptions
from jaxvlm.evaluation.benchmarks.docvqa import DocVqa
from jaxvlm.evaluation.benchmarks.gqa import Gqa
from jaxvlm.evaluation.benchmarks.infovqa import InfoVqa
from jaxvlm.evaluation.benchmarks.ocrbench import OcrBench
from jaxvlm.evaluation.benchmarks.textvqa import TextVqa
from jaxvlm.evaluation.benchmarks.vizwiz import VizWiz
from jaxvlm.evaluation.benchmarks.vqav2 import VqaV2
from tests.evaluation import layouts

CASES = {
    "vqav2": (VqaV2(), "val", layouts.vqav2_official, layouts.vqav2_parquet, ["brown", "yes", "2"]),
    "gqa": (Gqa(), "testdev", layouts.gqa_official, layouts.gqa_parquet, ["man", "yes", "no"]),
    "textvqa": (TextVqa(), "val", layouts.textvqa_llava, layouts.textvqa_parquet, ["dakota", "clos culombu", "22"]),
    "vizwiz": (VizWiz(), "val", layouts.vizwiz_official, layouts.vizwiz_parquet, ["Coke", "yes", "unanswerable"]),
    "chartqa": (ChartQa(), "test", layouts.chartqa_official, layouts.chartqa_parquet, ["3", "yes", "14.6%"]),
    "docvqa": (DocVqa(), "val", layouts.docvqa_official, layouts.docvqa_parquet, ["93", "p. carter", "$ 5"]),
    "infovqa": (InfoVqa(), "val", layouts.infovqa_official, layouts.infovqa_parquet, ["93", "p. carter", "$ 5"]),
    "ocrbench": (
        OcrBench(),
        "test",
        layouts.ocrbench_official,
        layouts.ocrbench_parquet,
        ["Centre.", "it is 12", "x^{2}"],
    ),
    "coco_captions": (
        CocoCaptions(),
        "val2017",
        layouts.captions_official,
        layouts.captions_parquet,
        [texts[0] for texts in layouts.CAPTIONS.values()],
    ),
}
DIALECTS = [(name, dialect) for name, (benchmark, *_) in CASES.items() for dialect in benchmark.dialects]
MAXIMUM = {"ocrbench": 1000.0}


def loaded(name, folder, layout="first"):
    benchmark, split, first, second, answers = CASES[name]
    (first if layout == "first" else second)(folder)
    return benchmark, benchmark.load(folder, split), answers


@pytest.mark.parametrize("name", CASES)
def test_both_layouts_give_the_same_items(name, tmp_path):
    benchmark, items, _ = loaded(name, tmp_path / "a")
    _, others, _ = loaded(name, tmp_path / "b", "second")
    assert len(items) == 3 and len({item.id for item in items}) == 3
    for a, b in zip(items, others, strict=True):
        assert (a.id, a.question, a.truth) == (b.id, b.question, b.truth)
        assert isinstance(a.images[0], str) and isinstance(b.images[0], bytes)
        assert a.origin and b.origin and a.origin != b.origin
        for dialect in benchmark.dialects:
            assert benchmark.prompt(a, dialect) == benchmark.prompt(b, dialect)
            assert benchmark.prompt(a, dialect).startswith("<image>\n")
    same = [[a.cluster == b.cluster for b in items] for a in items]
    assert same == [[a.cluster == b.cluster for b in others] for a in others], "the same images are clusters"
    json.dumps([[item.truth, dict(item.groups), dict(item.extra)] for item in items + others])


@pytest.mark.parametrize("name, dialect", DIALECTS)
def test_perfect_answers_score_the_most_in_any_order(name, dialect, tmp_path):
    benchmark, items, answers = loaded(name, tmp_path)
    values = [benchmark.parse(item, text, dialect) for item, text in zip(items, answers, strict=True)]
    assert json.loads(json.dumps(values)) == values
    scores = benchmark.score(items, values, dialect)
    main = next(iter(scores.numbers.values()))
    if name == "coco_captions":
        assert scores.numbers["BLEU-4"] == pytest.approx(100) and main > 300
    else:
        assert main == pytest.approx(MAXIMUM.get(name, 100.0))
    assert scores.credits.shape == (3,) and (np.abs(scores.credits - 0.5) < 0.5 + 1e-9).all()
    assert {axis: sum(counts.values()) for axis, counts in scores.counts.items()} == dict.fromkeys(scores.groups, 3)

    order = random.Random(1).sample(range(3), 3)
    mixed = benchmark.score([items[n] for n in order], [values[n] for n in order], dialect)
    assert mixed.numbers == pytest.approx(scores.numbers) and mixed.groups == scores.groups
    assert np.allclose(mixed.credits, scores.credits[order])


@pytest.mark.parametrize("name, dialect", DIALECTS)
def test_the_main_number_is_the_mean_credit_times_a_constant(name, dialect, tmp_path):
    benchmark, items, answers = loaded(name, tmp_path)
    ratios = []
    for given in (answers, [*answers[:2], "something else"], ["", "", answers[2]]):
        values = [benchmark.parse(item, text, dialect) for item, text in zip(items, given, strict=True)]
        scores = benchmark.score(items, values, dialect)
        ratios.append(next(iter(scores.numbers.values())) / scores.credits.mean())
    assert benchmark.resample(items, values, dialect, np.ones((1, 3), np.int32)) is None
    assert ratios == pytest.approx([ratios[0]] * 3)


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_wrong_and_scores_nothing(name, tmp_path):
    benchmark, items, _ = loaded(name, tmp_path)
    for dialect in benchmark.dialects:
        values = [benchmark.parse(item, "", dialect) for item in items]
        assert next(iter(benchmark.score(items, values, dialect).numbers.values())) == 0


@pytest.mark.parametrize("name", CASES)
def test_a_folder_without_the_files(name, tmp_path):
    benchmark, split, first, *_ = CASES[name]
    with pytest.raises(UserError, match="lacks files of each layout") as error:
        benchmark.load(tmp_path, split)
    assert benchmark.source in str(error.value) and benchmark.title in str(error.value)


@pytest.mark.parametrize("name", CASES)
def test_missing_images_are_named(name, tmp_path):
    benchmark, split, first, *_ = CASES[name]
    first(tmp_path)
    gone = [path for path in tmp_path.rglob("*") if path.suffix in (".jpg", ".png", ".jpeg")]
    for path in gone:
        path.unlink()
    with pytest.raises(UserError, match=f"{len(gone)} images are missing") as error:
        benchmark.load(tmp_path, split)
    assert all(path.name in str(error.value) for path in gone)


@pytest.mark.parametrize("name", ["vqav2", "vizwiz", "docvqa", "coco_captions"])
def test_doubled_questions_are_named(name, tmp_path):
    benchmark, split, first, *_ = CASES[name]
    first(tmp_path)
    path = next(path for path in sorted(tmp_path.rglob("*.json")) if "annotations.json" not in path.name)
    if "test" in path.name:
        path = tmp_path / "val_v1.0_withQT.json"
    content = json.loads(path.read_text("utf-8-sig"))
    rows = (
        content
        if isinstance(content, list)
        else content[next(k for k in ("questions", "data", "images") if k in content)]
    )
    rows.append(rows[0])
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"questions have the same id: \w+ \(.*\[0\] and .*\[3\]\)"):
        benchmark.load(tmp_path, split)


@pytest.mark.parametrize("name", CASES)
def test_what_the_table_shows_is_filled(name):
    benchmark = CASES[name][0]
    assert benchmark.name == name and CASES[name][1] in benchmark.splits
    for field in ("title", "about", "files", "source", "metric", "dialects", "splits"):
        assert getattr(benchmark, field), field
    for dialect in benchmark.dialects:
        assert benchmark.max_new_tokens.get(dialect, benchmark.max_new_tokens[""]) > 0
    assert all(split in benchmark.files for split in benchmark.splits)
    assert {one.dialect for one in benchmark.published} <= set(benchmark.dialects)


def test_no_benchmark_imports_jax():
    modules = ", ".join(type(benchmark).__module__ for benchmark, *_ in CASES.values())
    code = f"import sys, {modules}; print([m for m in ('jax', 'torch', 'pyarrow', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
