"""GQA: dialects equal the published scorers', groups, distribution, predictions."""

import json

import pytest

from jaxvlm.evaluation.benchmarks.benchmark import Item
from jaxvlm.evaluation.benchmarks.gqa import Gqa
from tests.evaluation import layouts
from tests.evaluation.frozen import cases

BENCHMARK = Gqa()


def test_exact_match_equals_the_published_scorers():
    rows = cases("exact")
    assert len(rows) > 90
    for dialect in ("lmms_eval", "vlmevalkit"):
        assert 10 < sum(row[dialect] for row in rows) < len(rows)
        for row in rows:
            item = Item("1", (), "?", row["truth"])
            value = BENCHMARK.parse(item, row["answer"], dialect)
            assert BENCHMARK.score([item], [value], dialect).numbers["accuracy"] == 100 * row[dialect], (dialect, row)


def test_llava_drops_full_stops_and_capitals(tmp_path):
    layouts.gqa_official(tmp_path)
    items = BENCHMARK.load(tmp_path, "testdev")
    values = [BENCHMARK.parse(i, t, "llava") for i, t in zip(items, [" Man..", "Yes, it is.", "No"], strict=True)]
    assert values == ["man", "yes, it is", "no"]
    scores = BENCHMARK.score(items, values, "llava")
    assert scores.numbers["accuracy"] == pytest.approx(200 / 3)
    assert scores.groups["answer"] == {"binary": 50.0, "open": 100.0}
    assert scores.groups["semantic type"] == {"attr": 0.0, "rel": 100.0}
    predictions = json.loads(BENCHMARK.submission(items, [], values)["testdev_balanced_predictions.json"])
    assert predictions[0] == {"questionId": "201", "prediction": "man"}


def test_distribution_is_the_weighted_chi_square():
    groups = ["a"] * 4 + ["b"] * 2
    truths = ["x", "x", "y", "y", "z", "z"]
    items = [Item(str(n), (), "?", t, extra={"global": g}) for n, (t, g) in enumerate(zip(truths, groups, strict=True))]
    # Group a: (4 - 2)^2 / 2 + (0 - 2)^2 / 2 = 4, of four questions; group b: (1 - 2)^2 / 2 = .5, of two.
    scores = BENCHMARK.score(items, ["x", "x", "x", "x", "z", "other"], "llava")
    assert scores.numbers["distribution"] == pytest.approx((4 * 4 + 2 * 0.5) / 6 / 100)
    assert BENCHMARK.score(items, truths, "llava").numbers["distribution"] == 0
