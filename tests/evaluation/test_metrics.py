"""Metrics of free answers: equal to the published scorers' on frozen answers, golden tables, limits."""

import random

import numpy as np
import pytest

from jaxvlm.evaluation.benchmarks.benchmark import Item
from jaxvlm.evaluation.metrics import vqa_accuracy
from jaxvlm.evaluation.metrics.anls import anls, levenshtein, lmms_anls
from jaxvlm.evaluation.metrics.averages import mean_scores
from jaxvlm.evaluation.metrics.relaxed import relaxed
from tests.evaluation.frozen import cases


@pytest.mark.parametrize(
    "text, official, evalai",
    [
        ("3.", "3", "3"),
        ("U.S.", "us", "us"),
        ("well-known", "well known", "well known"),
        ("3,000", "3000", "3000"),
        ("3,000-4", "30004", "3000 4"),
        ("1,2/3", "123", "12 3"),
        ("red,blue", "red blue", "redblue"),
        ("what?no", "what no", "whatno"),
        ("John's car", "john's car", "john 's car"),
    ],
)
def test_normalisation_as_the_official_code_and_evalai_have_it(text, official, evalai):
    assert vqa_accuracy.official(text, ["a", "b"])[0] == official
    assert vqa_accuracy.evalai(text) == evalai


def test_vqa_accuracy_by_the_number_of_people_who_agree():
    scores = [vqa_accuracy.soft_score("x", ["x"] * k + ["y"] * (10 - k)) for k in range(11)]
    assert scores == pytest.approx([0, 0.3, 0.6, 0.9] + [1] * 7, abs=1e-12)
    assert vqa_accuracy.soft_score("x", ["x"]) == 0, "a single truth, as VLMEvalKit scores it"


def test_vqa_accuracy_equals_the_published_scorers():
    rows = cases("vqa")
    assert len(rows) == 260 and len({row["official"] for row in rows}) > 3
    for row in rows:
        answer, truths = row["answer"], row["truths"]
        assert vqa_accuracy.soft_score(*vqa_accuracy.official(answer, truths)) == pytest.approx(row["official"]), row
        for name in ("evalai", "lmms_vqav2", "vlmevalkit"):
            normalise = getattr(vqa_accuracy, name)
            text, score = row[name]
            assert normalise(answer) == text, (name, row)
            assert vqa_accuracy.soft_score(text, [normalise(t) for t in truths]) == pytest.approx(score), (name, row)


def test_the_official_code_leaves_truths_that_are_all_the_same_alone():
    assert vqa_accuracy.official("The dog.\n", ["The dog."] * 10) == ("The dog.", ["The dog."] * 10)
    assert vqa_accuracy.official("The dog.", ["The dog."] * 9 + ["dog"]) == ("dog", ["dog"] * 10)


def test_contractions_that_lack_an_apostrophe():
    for word, mended in [("dont", "don't"), ("couldn'tve", "couldn't've"), ("couldntve", "couldntve"), ("im", "im")]:
        assert vqa_accuracy.vlmevalkit(word) == mended
    assert vqa_accuracy.vlmevalkit("somebody'd") == "somebodyd"
    assert vqa_accuracy.vlmevalkit("." * 40) == "." * 8, "only 32 full stops go"


def test_anls_equals_the_published_scorers():
    rows = cases("anls")
    assert len(rows) == 200 and sum(0 < row["official"] < 1 for row in rows) > 20
    for row in rows:
        assert anls(row["answer"], row["truths"]) == pytest.approx(row["official"]), row
        assert lmms_anls(row["answer"], row["truths"]) == pytest.approx(row["lmms_eval"]), row
        assert lmms_anls(row["answer"], row["truths"]) == pytest.approx(row["vlmevalkit"]), row


def test_anls_at_its_threshold_and_of_nothing():
    assert (anls("ab", ["ax"]), lmms_anls("ab", ["ax"])) == (0, 0.5)
    assert (anls("", [""]), lmms_anls("", [""])) == (1, 1)
    assert anls("  A  B ", ["a b"]) == 1 and lmms_anls("a  b", ["a b"]) == 1
    assert anls("abcd", ["xxxx", "abcx"]) == 0.75
    assert levenshtein("kitten", "sitting") == 3 and levenshtein("", "abc") == levenshtein("abc", "") == 3


def test_relaxed_accuracy_equals_the_published_scorer():
    rows = cases("relaxed")
    assert len(rows) == 220 and 30 < sum(row["plain"] for row in rows) < 190
    for row in rows:
        assert relaxed(row["answer"], row["truth"]) == row["plain"], row
        assert relaxed(row["answer"].strip(), row["truth"]) == row["vlmevalkit"], row


def test_relaxed_accuracy_at_its_edges():
    assert relaxed("105", "100") and not relaxed("105.01", "100") and relaxed("5%", "0.05")
    assert not relaxed("0.0", "0") and relaxed("0", "0") and relaxed("YES", "yes")


def test_means_by_group_leave_out_what_is_not_scored():
    items = [Item(str(n), (), "", None, groups={"kind": kind}) for n, kind in enumerate("aabb")]
    scores = mean_scores(items, [1.0, 0.0, 0.5, float("nan")], "accuracy")
    assert scores.numbers == {"accuracy": 50.0}
    assert (scores.groups, scores.counts) == ({"kind": {"a": 50.0, "b": 50.0}}, {"kind": {"a": 2, "b": 1}})
    assert np.array_equal(scores.credits, [1, 0, 0.5, np.nan], equal_nan=True)
    assert mean_scores(items, [float("nan")] * 4, "accuracy").numbers == {}


def test_soft_scores_do_not_depend_on_the_order_of_the_truths():
    chance = random.Random(0)
    for _ in range(50):
        truths = [chance.choice("xyz") for _ in range(10)]
        mixed = chance.sample(truths, 10)
        assert vqa_accuracy.soft_score("x", truths) == vqa_accuracy.soft_score("x", mixed)
