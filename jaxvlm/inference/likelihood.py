"""The likelihood of given answers: the program, and its batches.

Axis letters:
  B rows
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxvlm.batch import Array, Batch
from jaxvlm.inference.programs import Programs
from jaxvlm.models.vlm import Model
from jaxvlm.objectives.cross_entropy import by_device, row_scores
from jaxvlm.progress import progress_bar
from jaxvlm.sharding import Placement, placed, to_devices

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class LogLikelihood:
    """How likely a model finds an answer.

    Attributes:
      logprob: sum of the natural logarithms of the tokens' probabilities.
      tokens: how many they are; the end token is not among them.
      is_greedy: whether each is the most likely token at its place.
    """

    logprob: float
    tokens: int
    is_greedy: bool


def score_batches(
    programs: Programs, batches: Iterable[tuple[np.ndarray, np.ndarray, Batch]], count: int, *, progress: bool
) -> list[LogLikelihood]:
    """Scores the answers of batches.

    Args:
      batches: the numbers of each batch's records, -1 in rows of padding; those in this host's rows; these rows, each
        one record, whose answer is supervised.
      count: records.
      progress: show a bar on standard error.

    Returns:
      by number; the same on all hosts.
    """
    place = programs.place
    assert place is not None

    def start(numbers_B: np.ndarray, batch: Batch) -> tuple[np.ndarray, tuple[Array, Array, Array]]:
        rows = to_devices(batch, place.mesh, place.rules)
        return numbers_B, _score(programs.model, place, programs.params, rows)

    found: dict[int, LogLikelihood] = {}
    with progress_bar("likelihoods", count, "answer", show=progress and jax.process_index() == 0) as bar:
        for numbers_B, results in _one_behind(start(numbers_B, batch) for numbers_B, _, batch in batches):
            for number, logprob, tokens, hits in zip(numbers_B.tolist(), *map(np.asarray, results), strict=True):
                if number >= 0:
                    found[number] = LogLikelihood(float(logprob), int(tokens), bool(hits == tokens))
                    bar.update()
    return [found[number] for number in range(count)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score(model: Model, place: Placement, params: dict, batch: Batch) -> tuple[Array, Array, Array]:
    """`row_scores` of a batch, whole on each host."""
    with placed(place.mesh, place.rules, place.target):
        scores = by_device(row_scores, model.bind(params), batch, summed=False)
    return jax.lax.with_sharding_constraint(scores, NamedSharding(place.mesh, PartitionSpec()))


def _one_behind(items: Iterable[Item]) -> Iterator[Item]:
    """Yields each item after the next one is made, so that the device has work while results are read."""
    waiting: list[Item] = []
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting
