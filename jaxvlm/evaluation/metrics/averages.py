"""Means of credits, whole and by group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from jaxvlm.evaluation.benchmarks.benchmark import Item, Scores


def mean_scores(items: Sequence[Item], credits: Sequence[float], name: str, scale: float = 100.0) -> Scores:
    """The mean credit as the main number, also of each group.

    Args:
      credits: of the items, 0 to 1; NaN: not scored. If none is scored, there is no number.
      name: of the main number.
      scale: of the numbers.
    """
    credits_N = np.asarray(credits, np.float64)
    scored = np.flatnonzero(~np.isnan(credits_N)).tolist()
    places: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for place in scored:
        for axis, value in items[place].groups.items():
            places[axis][value].append(place)
    groups = {
        axis: {value: scale * float(credits_N[places[axis][value]].mean()) for value in sorted(places[axis])}
        for axis in places
    }
    counts = {axis: {value: len(places[axis][value]) for value in sorted(places[axis])} for axis in places}
    numbers = {name: scale * float(credits_N[scored].mean())} if len(scored) else {}
    return Scores(numbers, credits_N, groups, counts)
