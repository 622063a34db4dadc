"""Supervised fine-tuning: cross-entropy of the supervised tokens."""

from __future__ import annotations

from jaxvlm.batch import Array, Batch
from jaxvlm.models.vlm import VLM
from jaxvlm.objectives.cross_entropy import by_device, cross_entropy
from jaxvlm.objectives.objective import Objective, Sums


def loss(model: VLM, batch: Batch, reference: VLM | None = None) -> Sums:
    """Sums over supervised tokens: `loss` in nats, `accuracy` (teacher-forced: the target has the highest logit)."""
    nats, hits = by_device(cross_entropy, model, batch, summed=True)
    return {"loss": (nats, weight(batch)), "accuracy": (hits, weight(batch))}


def weight(batch: Batch) -> Array:
    """float32[], supervised tokens."""
    return batch.loss_weights.sum()


OBJECTIVE = Objective(loss, weight, names=("loss", "accuracy"))
