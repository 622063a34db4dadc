"""Parsers of yes/no answers against the published scorers, and counts of answers."""

import numpy as np
import pytest

from jaxvlm.evaluation.metrics.yes_no import (
    Confusion,
    equal_yes_no,
    first_sentence_yes_no,
    leading_yes_no,
    leading_yes_no_or_initial,
    word_yes_no,
)
from tests.evaluation.frozen import cases

PARSERS = {
    "llava_pope": first_sentence_yes_no,
    "lmms_eval_pope": equal_yes_no,
    "official_mme": leading_yes_no,
    "lmms_eval_mme": leading_yes_no_or_initial,
    "vlmevalkit": word_yes_no,
}


@pytest.mark.parametrize("parser", PARSERS)
def test_answers_are_those_of_the_published_parser(parser):
    rows = cases("choices_yes_no")
    wrong = [(row["text"], row.get(parser), PARSERS[parser](row["text"])) for row in rows]
    assert [case for case in wrong if case[1] != case[2]] == []
    assert {"yes", "no"} <= {row.get(parser) for row in rows}


def test_golden_numbers_of_pope_random():
    """The counts of LLaVA-1.5 7B on POPE random that haotian-liu/LLaVA#626 prints."""
    truths = ["yes"] * (1183 + 317) + ["no"] * (31 + 1379)
    values = ["yes"] * 1183 + ["no"] * 317 + ["yes"] * 31 + ["no"] * 1379
    c = Confusion.of(truths, values, np.ones((1, len(truths))), neither_is_no=True)
    assert (c.tp, c.fp, c.tn, c.fn) == (1183, 31, 1379, 317)
    found = [c.accuracy, c.precision, c.recall, c.f1, c.yes_ratio]
    expected = [0.880412, 0.974465, 0.788667, 0.871776, 1214 / 2910]
    np.testing.assert_allclose(np.ravel(found), expected, atol=5e-7)


def test_an_answer_that_is_neither_is_wrong_and_may_lower_recall():
    truths, values, once = ["yes", "yes", "no"], ["yes", None, None], np.ones((1, 3))
    counted = Confusion.of(truths, values, once, neither_is_no=True)
    ignored = Confusion.of(truths, values, once, neither_is_no=False)
    assert counted.recall == 0.5 and ignored.recall == 1
    assert counted.accuracy == ignored.accuracy == pytest.approx(1 / 3)


def test_without_answers_or_without_yes_all_shares_are_zero():
    none = Confusion.of([], [], np.ones((1, 0)), neither_is_no=True)
    no_yes = Confusion.of(["no"], ["no"], np.ones((1, 1)), neither_is_no=True)
    assert none.f1 == none.accuracy == none.yes_ratio == no_yes.f1 == no_yes.precision == 0
    assert no_yes.accuracy == 1
