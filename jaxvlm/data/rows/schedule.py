"""Which samples share which row, epoch after epoch."""

from __future__ import annotations

import threading

import numpy as np

from jaxvlm.config import DataConfig
from jaxvlm.data.rows.packing import plan_rows

_PLANNING = threading.Lock()  # of one process: one of the loader threads packs an epoch, the others wait


class RowSchedule:
    """Which samples share which row, for every epoch: one endless sequence of rows."""

    def __init__(
        self,
        lengths: np.ndarray,
        units: np.ndarray,
        trained: list[tuple[np.ndarray, float]],
        config: DataConfig,
        seed: int,
    ):
        """Packs nothing yet.

        Args:
          lengths: int32[n]; positions reserved for each sample.
          units: int32[n]; media units of each.
          trained: for each source its training samples, int64[m], and how often an epoch contains each.
          config: T and U of rows, and whether samples share them.
          seed: of the order.
        """
        self._lengths, self._units, self._trained = lengths, units, trained
        self._tokens, self._budget, self._pack = config.tokens, config.media.units, config.pack
        self._seed = seed
        self._ends: list[int] = []  # the row after the last one of each epoch
        self._epochs: dict[int, list[tuple[int, ...]]] = {}

    def rows(self, samples: np.ndarray) -> list[tuple[int, ...]]:
        """Rows of the given samples in the given order."""
        return plan_rows(self._lengths, self._units, samples, tokens=self._tokens, budget=self._budget, pack=self._pack)

    def epoch(self, epoch: int) -> list[tuple[int, ...]]:
        """The rows of an epoch, a function of the seed and the epoch."""
        with _PLANNING:
            return self._epoch(epoch)

    def end(self, epoch: int) -> int:
        """How many rows there are up to the end of an epoch."""
        with _PLANNING:
            return self._end(epoch)

    def find(self, row: int) -> tuple[int, tuple[int, ...]]:
        """The epoch of a row of the endless sequence, and its samples."""
        with _PLANNING:
            epoch = 0
            while self._end(epoch) <= row:
                epoch += 1
            start = self._end(epoch - 1) if epoch else 0
            return epoch, self._epoch(epoch)[row - start]

    def _end(self, epoch: int) -> int:
        while len(self._ends) <= epoch:
            self._ends.append(len(self._epoch(len(self._ends))) + (self._ends[-1] if self._ends else 0))
        return self._ends[epoch]

    def _epoch(self, epoch: int) -> list[tuple[int, ...]]:
        if epoch not in self._epochs:
            order = np.random.default_rng((self._seed, epoch)).permutation(self._samples(epoch))
            # Loader threads are in at most two epochs; one more for a caller that reads the first.
            kept = sorted(self._epochs)[-2:]
            self._epochs = {e: self._epochs[e] for e in kept} | {epoch: self.rows(order)}
        return self._epochs[epoch]

    def _samples(self, epoch: int) -> np.ndarray:
        """The samples of an epoch: each source a whole number of times, and the next share of its endless sequence."""
        chosen = [np.zeros(0, np.int64)]
        for number, (samples, weight) in enumerate(self._trained):
            whole, share = int(weight), weight % 1
            chosen.extend([samples] * whole)
            first, end = (int(round(share * len(samples) * e)) for e in (epoch, epoch + 1))
            while first < end:  # a permutation of the source, then another one
                turn, at = divmod(first, len(samples))
                order = np.random.default_rng((self._seed, number, turn, 1)).permutation(samples)
                chosen.append(order[at : at + end - first])
                first += len(chosen[-1])
        return np.concatenate(chosen)
