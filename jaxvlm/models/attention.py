"""Attention: one door, behind which implementations can be exchanged.

Axis letters:
  B rows   T query position   S key position   N heads   K key/value heads   G queries of a key/value head (N = K G)
  H head_dim
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxvlm.batch import Array

# Added to the score of a pair that must not attend. Finite, so that not even a row without any key gives a NaN.
MASKED = -1e30


def attend(
    q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, segments: tuple[Array, Array] | None = None, *, causal: bool
) -> Array:
    """Softmax attention, scaled by 1 / sqrt(H); N / K neighbouring query heads share a key/value head.

    Args:
      q_BTNH: float[B, T, N, H].
      k_BSKH: float[B, S, K, H].
      v_BSKH: float[B, S, K, H].
      segments: int32[B, T] of the queries and int32[B, S] of the keys; only equal ones attend to each other. Padding
        (0) attends to padding, so every position has a key. None: all attend to all.
      causal: query t sees the keys s <= t of its row (then T = S).

    The backward pass always makes the T x S numbers anew, whatever `config.model.remat` says, as the fused kernels of
    accelerators do.

    Returns:
      float[B, T, N, H] in the dtype of `v_BSKH`, named "attention" for the policies of `layers.POLICIES`.
    """
    run = jax.checkpoint(functools.partial(_attend_xla, causal=causal), prevent_cse=False)
    return checkpoint_name(run(q_BTNH, k_BSKH, v_BSKH, segments), "attention")


def _attend_xla(
    q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, segments: tuple[Array, Array] | None, *, causal: bool
) -> Array:
    """Attention in plain products, for every backend.

    Heads go first and the G queries of a key head are laid behind each other, so that all products, those of the
    gradients too, are batches of plain matrices (with H before S also without a transposed left side, which is half as
    fast), and no key is repeated. Up to four pieces of the queries, each with the keys up to its end, leave out most of
    what a causal mask would throw away.

    Seconds of one CPU core for 4 x 512 positions, 9 heads of 64 and 3 key heads, forward and with the backward pass:
    0.02 and 0.08; einsums over BKGTS take 0.13 and 0.34, `jax.nn.dot_product_attention` 0.11 and 0.31.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BKGTH = (q_BTNH * H**-0.5).reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k_BKHS, v_BKHS = k_BSKH.transpose(0, 2, 3, 1), v_BSKH.transpose(0, 2, 3, 1)
    pieces = min(4, max(1, T // 128)) if causal else 1
    size = -(-T // pieces)
    y = []
    for start in range(0, T, size):
        end = min(start + size, T)
        seen = slice(end) if causal else slice(None)
        mask = None
        if segments is not None:
            mask = segments[0][:, start:end, None] == segments[1][:, None, seen]
        if causal:
            order = jnp.arange(start, end)[:, None] >= jnp.arange(end)[None, :]
            mask = order[None] if mask is None else mask & order
        y.append(_attend_piece(q_BKGTH[:, :, :, start:end], k_BKHS[..., seen], v_BKHS[..., seen], mask))
    return jnp.concatenate(y, axis=3).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def _attend_piece(q_BKGTH: Array, k_BKHS: Array, v_BKHS: Array, mask_BTS: Array | None) -> Array:
    B, K, G, T, H = q_BKGTH.shape
    S = k_BKHS.shape[3]
    rows = (B, K, G * T)
    scores = jnp.einsum("BKXH,BKHS->BKXS", q_BKGTH.reshape(*rows, H), k_BKHS, preferred_element_type=jnp.float32)
    scores_BKGTS = scores.reshape(B, K, G, T, S)
    if mask_BTS is not None:
        scores_BKGTS = scores_BKGTS + jnp.where(mask_BTS, 0.0, MASKED)[:, None, None]
    # The softmax's division comes after the product with the values: H numbers a query instead of S.
    weights_BKGTS = jnp.exp(scores_BKGTS - jax.lax.stop_gradient(jnp.max(scores_BKGTS, axis=-1, keepdims=True)))
    total_BKGT1 = jnp.sum(weights_BKGTS, axis=-1, keepdims=True)
    weights = weights_BKGTS.astype(v_BKHS.dtype).reshape(*rows, S)
    y_BKXH = jnp.einsum("BKXS,BKHS->BKXH", weights, v_BKHS, preferred_element_type=jnp.float32)
    return (y_BKXH.reshape(B, K, G, T, H) / total_BKGT1).astype(v_BKHS.dtype)
