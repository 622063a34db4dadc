"""Losses and gradients that are not finite: saves their batches, and stops the run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from jaxvlm import processes
from jaxvlm.batch import Array, Batch
from jaxvlm.errors import SharedError
from jaxvlm.media import Picture

_KEPT = 10  # batches written in a run; more would show nothing new


class NonFinite:
    """Checks the loss and the gradient norm of every step without making the device wait.

    Args:
      folder: for batches, each in a folder STAGE-STEP.
      stage: its name.
      policy: "stop" or "skip", the recipe's `on_nonfinite`.
      limit: that many steps in a row stop the run.
      look_up: number of a batch -> this process's rows of it, and for each row its records.
      draw: media of a batch, and a row -> the pictures in it, `MediaLayout.preview`.
    """

    def __init__(
        self,
        folder: Path,
        stage: str,
        *,
        policy: str,
        limit: int,
        look_up: Callable[[int], tuple[Batch, list[list[dict[str, Any]]]]],
        draw: Callable[[Any, int], list[Picture]],
    ):
        self._folder, self._stage, self._policy, self._limit = folder, stage, policy, limit
        self._look_up, self._draw = look_up, draw
        self._pending: list[tuple[int, Array, Array]] = []
        self._row: list[int] = []  # the last consecutive steps that were not finite

    def take(self, step: int, info: dict[str, Array]) -> None:
        """Stores the results of a step, which may not be computed yet."""
        self._pending.append((step, info["loss"], info["gradient_norm"]))

    def check(self, before: int) -> bool:
        """Checks the stored steps before step `before`, and waits for them.

        Returns:
          whether the weights after the last of them may be saved.

        Raises:
          UserError: too many in a row.
        """
        ready = [item for item in self._pending if item[0] < before]
        self._pending = self._pending[len(ready) :]
        for step, loss, norm in jax.device_get(ready):
            if math.isfinite(loss) and math.isfinite(norm):
                self._row = []
                continue
            self._row.append(step)
            place = self._write(step)
            done = "the update is left out" if self._policy == "skip" else "nothing is saved until it is finite"
            found = f"step {step} of {self._stage}: loss {loss}, gradient norm {norm}"
            processes.log("", f"warning: {found}; {done}; its batch: {place}")
            if len(self._row) >= self._limit:
                advice = "lower the learning rate, clip_norm or fix the records; --resume continues from the last save"
                if self._policy == "stop":
                    advice += f", with --config.stage.{self._stage}.on_nonfinite=skip such updates are left out"
                raise SharedError(
                    f"loss or gradient is not finite in {len(self._row)} steps in a row, the last is step {step} of "
                    f"{self._stage} (loss {loss}, gradient norm {norm}; nonfinite_limit = {self._limit}); "
                    f"the batches are in {self._folder}; {advice}"
                )
        return not self._row or self._policy == "skip"

    def _write(self, step: int) -> str:
        """Writes this process's rows of a step's batch: arrays, records, pictures."""
        folder = self._folder / f"{self._stage}-{step}"
        try:
            if len(list(self._folder.glob("*"))) >= _KEPT:
                return f"not written, {_KEPT} are in {self._folder}"
            folder.mkdir(parents=True, exist_ok=True)
            batch, records = self._look_up(step - 1)
            name = f"process-{processes.index()}"
            np.savez_compressed(folder / f"{name}.npz", **batch.to_arrays())
            (folder / f"{name}.json").write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n")
            for row in range(len(records)):
                shown = sum(len(record["images"]) for record in records[row])
                if shown:
                    pictures = [picture.pixels for picture in self._draw(batch.media, row)[:shown]]
                    Image.fromarray(_side_by_side(pictures)).save(folder / f"{name}-row-{row}.png")
        except OSError as error:
            return f"could not be written ({error})"
        return str(folder)


def _side_by_side(pictures: list[np.ndarray]) -> np.ndarray:
    """Joins pictures, uint8[Y, X, 3] each, from left to right; shorter ones end in black."""
    height = max(len(picture) for picture in pictures)
    return np.hstack([np.pad(picture, ((0, height - len(picture)), (0, 0), (0, 0))) for picture in pictures])
