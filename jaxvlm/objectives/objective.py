"""The contract of an objective: a stage's loss as sums that are divided once.

A custom objective is a module that defines `OBJECTIVE`; name it in `config.stage.NAME.objective`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from jaxvlm.batch import Array, Batch

if TYPE_CHECKING:
    from jaxvlm.models.vlm import VLM  # of JAX, which the data side does without

Sums = dict[str, tuple[Array, Array]]  # name -> float32[] sum and float32[] weight; their quotient is logged


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a stage minimises.

    Sums are added over micro-batches, devices and hosts, then divided; the distribution of rows does not matter.
    """

    # (model, batch, reference) -> sums; the entry "loss" is differentiated. Model and reference include their
    # weights; the reference is None unless `needs_reference`. A loss that calls the reference first needs less memory.
    loss: Callable[[VLM, Batch, VLM | None], Sums]
    # The weight of "loss", float32[], from the batch alone: it is known before the first micro-batch, so the
    # loss is divided, not every gradient.
    weight: Callable[[Batch], Array]
    names: tuple[str, ...]  # of all sums
    # Records are pairs: of each row, segments 1, 3, ... are chosen answers, 2, 4, ... the rejected ones of the same.
    pairs: bool = False
    needs_reference: bool = False  # the model as it was when the stage started, without adapters
