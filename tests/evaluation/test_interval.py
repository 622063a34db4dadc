"""The bootstrap interval against scipy's, a closed form, and a metric that is no mean."""

import numpy as np
import pytest
from scipy import stats

from jaxvlm.evaluation.benchmarks.benchmark import Item, Scores
from jaxvlm.evaluation.interval import bootstrap
from tests.evaluation.colours import Colours


def items(count, per_cluster=1):
    return [Item(str(n), (), "", "", cluster=str(n // per_cluster)) for n in range(count)]


def interval(credits, per_cluster=1, scale=100.0, benchmark=None):
    credits = np.asarray(credits, float)
    mean = scale * np.nanmean(credits)
    scores = Scores({"accuracy": mean}, credits)
    return bootstrap(benchmark or Colours(), items(len(credits), per_cluster), credits.tolist(), scores, "llava")


def test_equals_scipys_percentile_interval():
    credits = np.random.default_rng(1).random(300) < 0.7
    found = interval(credits)
    theirs = stats.bootstrap((credits.astype(float),), np.mean, n_resamples=4000, method="percentile", rng=0)
    assert (found.low, found.high) == pytest.approx(
        (100 * theirs.confidence_interval.low, 100 * theirs.confidence_interval.high), abs=0.8
    )


def test_is_as_wide_as_the_normal_one():
    credits = np.random.default_rng(2).random(2000)
    found = interval(credits, scale=1.0)
    width = 2 * stats.norm.ppf(0.975) * credits.std() / len(credits) ** 0.5
    assert found.high - found.low == pytest.approx(width, rel=0.08)
    assert (found.low + found.high) / 2 == pytest.approx(credits.mean(), abs=width / 10)


def test_equal_questions_of_an_image_make_it_no_narrower():
    credits = (np.random.default_rng(3).random(200) < 0.5).astype(float)
    alone, five = interval(credits), interval(np.repeat(credits, 5), per_cluster=5)
    assert five.clusters == alone.clusters == 200
    assert five.high - five.low == pytest.approx(alone.high - alone.low, rel=0.1)
    as_if_independent = interval(np.repeat(credits, 5))
    assert as_if_independent.high - as_if_independent.low < 0.6 * (five.high - five.low)


class Median(Colours):
    def resample(self, items, values, dialect, draws_RN):
        return np.array([np.median(np.repeat(values, draws_N)) for draws_N in draws_RN])


def test_a_metric_that_is_no_mean_is_computed_for_each_draw():
    values = np.random.default_rng(4).random(200)
    scores = Scores({"median": float(np.median(values))}, values)
    found = bootstrap(Median(), items(200), values.tolist(), scores, "llava")
    theirs = stats.bootstrap((values,), np.median, n_resamples=2000, method="percentile", rng=0).confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_what_has_no_interval():
    assert interval([1.0]) is None and interval([1.0, 0.0], per_cluster=2) is None
    assert bootstrap(Colours(), items(2), [None, None], Scores({}, np.full(2, np.nan)), "llava") is None
    full = interval([1.0, 1.0, 1.0])
    assert (full.low, full.high) == (100.0, 100.0)


def test_items_without_a_credit_are_left_out():
    credits = np.where(np.arange(100) % 2, np.nan, np.arange(100) % 4 == 0)
    found = interval(credits)
    assert found.low < 50 < found.high
