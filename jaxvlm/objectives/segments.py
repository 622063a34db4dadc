"""Log-probabilities of whole answers: sums over each packed segment.

Axis letters:
  B rows   T token positions   S segments of a row   P pairs of a row, S // 2
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxvlm.batch import Array, Batch
from jaxvlm.models.vlm import VLM
from jaxvlm.objectives.cross_entropy import by_device, token_log_probs


def segment_log_probs(model: VLM, batch: Batch) -> Array:
    """Log-probability of the supervised tokens of each segment, weighted by `batch.loss_weights`; differentiable.

    Never computes the logits of a whole batch, nor those of unsupervised positions.

    Returns:
      float32[B, S], column s for segment s + 1; 0 where a row has no such segment. S is the most that a row of T tokens
      can hold, `segment_sums` gives the reason.
    """
    log_probs_BT = by_device(_of_supervised, model, batch, summed=False)
    return segment_sums(log_probs_BT * batch.loss_weights, batch)


def segment_sums(values_BT: Array, batch: Batch) -> Array:
    """Sums of per-token values over each segment, [B, T] -> [B, S].

    S is T // 2: a segment with a supervised token also has one before it that predicts it.
    """
    numbers_S = 1 + jnp.arange(batch.segments.shape[1] // 2)
    is_own_BST = batch.segments[:, None, :] == numbers_S[:, None]  # fused into the sum, never stored
    return jnp.where(is_own_BST, values_BT[:, None, :], 0).sum(axis=-1)


def split_pairs(values_BS: Array) -> tuple[Array, Array]:
    """Splits the result of `segment_sums` for a batch of pairs into chosen and rejected sides, [B, P] each."""
    P = values_BS.shape[1] // 2
    return values_BS[:, 0 : 2 * P : 2], values_BS[:, 1 : 2 * P : 2]


def pair_weights(batch: Batch) -> Array:
    """float32[B, P]: 1 for each pair, 0 where there is none, or where one of its images failed to decode."""
    chosen_BP, rejected_BP = split_pairs(segment_sums(batch.loss_weights, batch))
    return ((chosen_BP > 0) & (rejected_BP > 0)).astype(jnp.float32)


def _of_supervised(x_BTD: Array, head_VD: Array, targets_BT: Array, weights_BT: Array, chunk: int) -> Array:
    return token_log_probs(x_BTD, head_VD, targets_BT, weights_BT > 0, chunk)
