"""Plans the rows of every epoch."""

from __future__ import annotations

import threading

import numpy as np

from jaxvlm.config import DataConfig
from jaxvlm.data.rows.packing import plan_rows

_PLANNING = threading.Lock()  # at the start of an epoch several loader threads need its plan; one of them makes it


class RowSchedule:
    """The plan of rows: which samples share a row, in one endless sequence of rows over all epochs."""

    def __init__(
        self,
        lengths: np.ndarray,
        units: np.ndarray,
        trained: list[tuple[np.ndarray, float]],
        config: DataConfig,
        seed: int,
    ):
        """Stores its arguments; epochs are planned on first use.

        Args:
          lengths: int32[n]; positions to plan for each sample.
          units: int32[n]; media units of each sample.
          trained: for each source, the samples to train on, int64[m], and how often an epoch contains each of them.
          config: gives T and U, and whether samples are packed.
          seed: seed of the order.
        """
        self._lengths, self._units, self._trained = lengths, units, trained
        self._tokens, self._budget, self._pack = config.tokens, config.media.units, config.pack
        self._seed = seed
        self._ends: list[int] = []  # for each epoch, the row after its last one
        self._epochs: dict[int, list[tuple[int, ...]]] = {}

    def rows(self, samples: np.ndarray) -> list[tuple[int, ...]]:
        """Plans rows for the given samples in the given order."""
        return plan_rows(self._lengths, self._units, samples, tokens=self._tokens, budget=self._budget, pack=self._pack)

    def epoch(self, epoch: int) -> list[tuple[int, ...]]:
        """The rows of an epoch. They depend only on the constructor's arguments and the epoch."""
        with _PLANNING:
            return self._epoch(epoch)

    def end(self, epoch: int) -> int:
        """Number of rows from the first epoch to the end of this one."""
        with _PLANNING:
            return self._end(epoch)

    def find(self, row: int) -> tuple[int, tuple[int, ...]]:
        """The epoch and the samples of a row of the endless sequence."""
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
            # Loader threads need at most two epochs at a time; keep one more for a caller that reads the first epoch.
            kept = sorted(self._epochs)[-2:]
            self._epochs = {e: self._epochs[e] for e in kept} | {epoch: self.rows(order)}
        return self._epochs[epoch]

    def _samples(self, epoch: int) -> np.ndarray:
        """The samples of an epoch. A source with weight w contributes all its samples int(w) times.

        For the rest of w, it contributes the next share of an endless sequence of permutations of its samples.
        """
        chosen = [np.zeros(0, np.int64)]
        for number, (samples, weight) in enumerate(self._trained):
            whole, share = int(weight), weight % 1
            chosen.extend([samples] * whole)
            first, end = (int(round(share * len(samples) * e)) for e in (epoch, epoch + 1))
            while first < end:  # continues in the next permutation where one ends
                turn, at = divmod(first, len(samples))
                order = np.random.default_rng((self._seed, number, turn, 1)).permutation(samples)
                chosen.append(order[at : at + end - first])
                first += len(chosen[-1])
        return np.concatenate(chosen)
