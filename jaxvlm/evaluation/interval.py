"""The interval of a benchmark's main number, by bootstrap over clusters of items.

Axis letters:
  R draws   C clusters   N items
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxvlm.evaluation.benchmarks.benchmark import Benchmark, Item, Scores
from jaxvlm.evaluation.task import cluster_of

LEVEL = 0.95
DRAWS = 1000
_SEED = 0
_BLOCK = 2**24  # entries of a block of draws: 64 MiB


@dataclasses.dataclass(frozen=True)
class Interval:
    """A percentile interval of the level LEVEL, on the scale of the main number."""

    low: float
    high: float
    clusters: int  # that were drawn


def bootstrap(
    benchmark: Benchmark, items: Sequence[Item], values: Sequence[Any], scores: Scores, dialect: str
) -> Interval | None:
    """The interval of the main number over DRAWS draws of as many clusters as there are, with replacement.

    Questions of one image are not independent, so whole clusters are drawn (`Item.cluster`).

    Args:
      values, scores: of the items.

    Returns:
      None with fewer than two clusters, or where the main number is not known (only a server has the truth).

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13 (percentile intervals).
    """
    _, cluster_N = np.unique([cluster_of(item) for item in items], return_inverse=True)
    clusters = int(cluster_N.max()) + 1 if len(items) else 0
    main = next(iter(scores.numbers.values()), np.nan)
    if clusters < 2 or not np.isfinite(main):
        return None
    random = np.random.default_rng(_SEED)
    numbers = []
    block = max(1, min(DRAWS, _BLOCK // len(items)))
    for first in range(0, DRAWS, block):
        rows = min(block, DRAWS - first)
        draws_RC = random.multinomial(clusters, np.full(clusters, 1 / clusters), size=rows).astype(np.int32)
        draws_RN = draws_RC[:, cluster_N]
        found_R = benchmark.resample(items, values, dialect, draws_RN)
        numbers.append(_means(draws_RN, scores.credits, main) if found_R is None else found_R)
    found_R = np.concatenate(numbers)
    if not np.isfinite(found_R).any():
        return None
    low, high = np.nanpercentile(found_R, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Interval(float(low), float(high), clusters)


def _means(draws_RN: np.ndarray, credits_N: np.ndarray, main: float) -> np.ndarray:
    """float64[R]: the mean credit of each draw, on the scale of `main`; items without a credit (NaN) are left out."""
    is_scored_N = np.isfinite(credits_N)
    credits_N, draws_RN = credits_N[is_scored_N], draws_RN[:, is_scored_N]
    mean = credits_N.mean() if len(credits_N) else np.nan
    scale = main / mean if mean else 0.0
    with np.errstate(invalid="ignore"):
        return scale * (draws_RN @ credits_N) / draws_RN.sum(axis=1)
