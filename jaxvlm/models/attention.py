"""Attention: one door, behind which implementations can be exchanged.

Axis letters:
  B rows   T query position   S key position   N heads   K key/value heads   G queries of a key/value head (N = K G)
  H head_dim
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxvlm.batch import Array

# Score of a pair that must not attend. Finite, so that not even a row without any key gives a NaN.
MASKED = -1e30


def attend(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    segments: tuple[Array, Array] | None = None,
    *,
    causal: bool,
) -> Array:
    """Softmax attention, scaled by 1 / sqrt(H); N / K neighbouring query heads share a key/value head.

    Args:
      q_BTNH: float[B, T, N, H].
      k_BSKH: float[B, S, K, H].
      v_BSKH: float[B, S, K, H].
      segments: int32[B, T] of the queries and int32[B, S] of the keys; only equal ones attend to each other. Padding
        (0) attends to padding, so every position has a key. None: all attend to all.
      causal: query t sees the keys s <= t, as places in the row.

    Returns:
      float[B, T, N, H] in the dtype of `v_BSKH`.
    """
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H) * H**-0.5
    scores_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
    mask = None
    if segments is not None:
        mask = (segments[0][:, :, None] == segments[1][:, None, :])[:, None, None]
    if causal:
        order_TS = jnp.arange(T)[:, None] >= jnp.arange(S)[None, :]
        mask = order_TS if mask is None else mask & order_TS
    if mask is not None:
        scores_BKGTS = jnp.where(mask, scores_BKGTS, MASKED)
    weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BSKH.dtype)
    return jnp.einsum("BKGTS,BSKH->BTKGH", weights_BKGTS, v_BSKH).reshape(B, T, N, H)
