"""OCRBench: dialects equal the published scorers', the five tasks."""

from jaxvlm.evaluation.benchmarks.benchmark import Item
from jaxvlm.evaluation.benchmarks.ocrbench import OcrBench
from tests.evaluation import layouts
from tests.evaluation.frozen import cases

BENCHMARK = OcrBench()


def test_it_equals_the_published_scorers():
    rows = cases("ocrbench")
    assert len(rows) == 120
    for dialect in ("lmms_eval", "vlmevalkit"):
        assert 20 < sum(row[dialect] for row in rows) < 100
        for row in rows:
            groups = {"question type": row["kind"]}
            item = Item("1", (), "?", row["truths"], groups=groups, extra={"dataset": row["dataset"]})
            value = BENCHMARK.parse(item, row["answer"], dialect)
            assert BENCHMARK.score([item], [value], dialect).credits.tolist() == [row[dialect]], (dialect, row)


def test_only_lmms_eval_folds_full_width_letters(tmp_path):
    layouts.ocrbench_official(tmp_path)
    item = BENCHMARK.load(tmp_path, "test")[0]
    for dialect, credit in [("official", 0), ("lmms_eval", 1), ("vlmevalkit", 0)]:
        assert BENCHMARK.score([item], [BENCHMARK.parse(item, "ＣＥＮＴＲＥ", dialect)], dialect).credits == [credit]


def test_tasks_and_prompts(tmp_path):
    layouts.ocrbench_official(tmp_path)
    items = BENCHMARK.load(tmp_path, "test")
    assert [item.groups["task"] for item in items] == [
        "Text Recognition",
        "Scene Text-centric VQA",
        "Handwritten Mathematical Expression Recognition",
    ]
    assert BENCHMARK.prompt(items[1], "official") == "<image>\nWhat is the number? "
    assert BENCHMARK.prompt(items[1], "lmms_eval") == "<image>\nWhat is the number?"
    values = [
        BENCHMARK.parse(item, text, "official") for item, text in zip(items, ["centre", "13", "X^{2}"], strict=True)
    ]
    scores = BENCHMARK.score(items, values, "official")
    assert scores.numbers == {
        "score": 1000 / 3,
        "Text Recognition": 1,
        "Scene Text-centric VQA": 0,
        "Handwritten Mathematical Expression Recognition": 0,
    }
