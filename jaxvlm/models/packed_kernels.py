"""Flash attention of one visit: a block of queries with a block of keys, written in Pallas for TPUs.

A kernel is called for each visit of a grid, innermost axis last. What it adds up over visits stays in scratch memory.
Scores are computed from the diagonal block at least, so every query sees a key: one that sees none of a block adds
weights there that the first score of another block shrinks to 0, or that are 0 already.

Axis letters:
  X queries of a block   Y keys of a block   H head_dim

Source: FlashAttention-2 (arXiv:2307.08691), and JAX's splash attention, whose order of operations this is.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from jaxvlm.batch import Array

LANES = 128  # of a TPU's vector registers: blocks are multiples of it
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)  # a score; the difference of two stays finite

Ref = Any  # a block in the core's memory; [...] is its array


def forward_kernel(
    fetched: Ref,
    needed: Ref,
    q_XH: Ref,
    k_YH: Ref,
    v_YH: Ref,
    ids_XL: Ref,
    ids_1Y: Ref,
    y_XH: Ref,
    total_1X: Ref,
    most_XL: Ref,
    sum_XL: Ref,
    product_XH: Ref,
    *,
    causal: bool,
    side: int,
) -> None:
    """Softmax attention; the grid is (heads, blocks of queries, blocks of keys of a row).

    Args:
      fetched: int32[blocks of queries, blocks of keys], prefetched; index maps read it.
      needed: as `fetched`; 0: the visit is skipped.
      q_XH: scaled queries.
      k_YH: keys.
      v_YH: values.
      ids_XL: int32, segments of the queries, equal in all lanes.
      ids_1Y: int32, segments of the keys.
      y_XH: the result.
      total_1X: float32, a result: the logarithm of the softmax's denominator.
      most_XL: float32 scratch, the largest score so far.
      sum_XL: float32 scratch, the denominator so far.
      product_XH: float32 scratch, the weighted sum of the values so far.
      causal: a query sees no later key.
      side: blocks of a row.
    """
    i, j = pl.program_id(1), pl.program_id(2)

    @pl.when(j == 0)
    def start() -> None:
        most_XL[...] = jnp.full_like(most_XL, MASKED)
        sum_XL[...] = jnp.zeros_like(sum_XL)
        product_XH[...] = jnp.zeros_like(product_XH)

    @pl.when(needed[i, j] != 0)
    def visit() -> None:
        scores_XY = _product(q_XH[...], k_YH[...])
        scores_XY = _mask(scores_XY, _wide(ids_XL[...], scores_XY.shape[1]), ids_1Y[...], (i % side, j), causal)
        before_XL = most_XL[...]
        most_XL[...] = now_XL = jnp.maximum(before_XL, scores_XY.max(axis=1)[:, None])
        weights_XY = jnp.exp(scores_XY - _wide(now_XL, scores_XY.shape[1]))
        shrink_XL = jnp.exp(before_XL - now_XL)
        sum_XL[...] = shrink_XL * sum_XL[...] + weights_XY.sum(axis=1)[:, None]
        shrunk_XH = _wide(shrink_XL, product_XH.shape[1]) * product_XH[...]
        product_XH[...] = shrunk_XH + jax.lax.dot(weights_XY, v_YH[...].astype(jnp.float32))

    @pl.when(j == side - 1)
    def end() -> None:
        y_XH[...] = (product_XH[...] * _wide(1.0 / sum_XL[...], y_XH.shape[1])).astype(y_XH.dtype)
        total_1X[...] = (jnp.log(sum_XL[...]) + most_XL[...]).T[:1]


def query_gradient_kernel(
    fetched: Ref,
    needed: Ref,
    q_XH: Ref,
    k_YH: Ref,
    v_YH: Ref,
    ids_XL: Ref,
    ids_1Y: Ref,
    dy_XH: Ref,
    total_1X: Ref,
    moved_1X: Ref,
    dq_XH: Ref,
    sum_XH: Ref,
    *,
    causal: bool,
    side: int,
) -> None:
    """The gradient of the queries, on the grid of the forward pass, with its arguments.

    Args (others as there):
      dy_XH: gradient of the result.
      moved_1X: float32, the product of the result and its gradient, summed over H.
      dq_XH: the result.
      sum_XH: float32 scratch.
    """
    i, j = pl.program_id(1), pl.program_id(2)

    @pl.when(j == 0)
    def start() -> None:
        sum_XH[...] = jnp.zeros_like(sum_XH)

    @pl.when(needed[i, j] != 0)
    def visit() -> None:
        k = k_YH[...]
        scores_XY = _product(q_XH[...], k)
        scores_XY = _mask(scores_XY, _wide(ids_XL[...], scores_XY.shape[1]), ids_1Y[...], (i % side, j), causal)
        weights_XY = jnp.exp(scores_XY - total_1X[0][:, None])
        change_XY = (_product(dy_XH[...], v_YH[...]) - moved_1X[0][:, None]) * weights_XY
        sum_XH[...] += jax.lax.dot(change_XY.astype(k.dtype), k, preferred_element_type=jnp.float32)

    @pl.when(j == side - 1)
    def end() -> None:
        dq_XH[...] = sum_XH[...].astype(dq_XH.dtype)


def key_gradient_kernel(
    fetched: Ref,
    needed: Ref,
    q_XH: Ref,
    k_YH: Ref,
    v_YH: Ref,
    ids_1X: Ref,
    ids_YL: Ref,
    dy_XH: Ref,
    total_1X: Ref,
    moved_1X: Ref,
    dk_YH: Ref,
    dv_YH: Ref,
    key_sum_YH: Ref,
    value_sum_YH: Ref,
    *,
    causal: bool,
    side: int,
    group: int,
) -> None:
    """The gradients of keys and values; the grid is (blocks of keys, heads, blocks of queries of a row).

    Args (others as in the other kernels):
      fetched: int32[blocks of queries, blocks of keys], like `needed`.
      group: heads that share a head of keys, one after the other; they add to the same gradient.
    """
    j, head, i = (pl.program_id(axis) for axis in range(3))
    of_group = head % group

    @pl.when((i == 0) & (of_group == 0))
    def start() -> None:
        key_sum_YH[...] = jnp.zeros_like(key_sum_YH)
        value_sum_YH[...] = jnp.zeros_like(value_sum_YH)

    @pl.when(needed[i, j] != 0)
    def visit() -> None:
        q, dy = q_XH[...], dy_XH[...]
        scores_YX = _product(k_YH[...], q)
        scores_YX = _mask(scores_YX, ids_1X[...], _wide(ids_YL[...], scores_YX.shape[1]), (i, j % side), causal, axis=1)
        weights_YX = jnp.exp(scores_YX - total_1X[...])
        value_sum_YH[...] += jax.lax.dot(weights_YX.astype(dy.dtype), dy, preferred_element_type=jnp.float32)
        change_YX = (_product(v_YH[...], dy) - moved_1X[...]) * weights_YX
        key_sum_YH[...] += jax.lax.dot(change_YX.astype(q.dtype), q, preferred_element_type=jnp.float32)

    @pl.when((i == side - 1) & (of_group == group - 1))
    def end() -> None:
        dk_YH[...] = key_sum_YH[...].astype(dk_YH.dtype)
        dv_YH[...] = value_sum_YH[...].astype(dv_YH.dtype)


def _product(a: Array, b: Array) -> Array:
    """float32: a @ b.T."""
    return jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def _mask(
    scores: Array, of_queries: Array, of_keys: Array, blocks: tuple[Any, Any], causal: bool, axis: int = 0
) -> Array:
    """Scores, and `MASKED` where segments differ, or the key is a later one than the query.

    Args:
      of_queries: segments, of a shape that broadcasts, like `of_keys`.
      blocks: of a row: that of the queries, that of the keys.
      axis: of the queries.
    """
    is_seen = of_queries == of_keys
    if causal:
        query, key = (
            block * scores.shape[which] + jax.lax.broadcasted_iota(jnp.int32, scores.shape, which)
            for block, which in zip(blocks, (axis, 1 - axis), strict=True)
        )
        is_seen &= query >= key
    return jnp.where(is_seen, scores, MASKED)


def _wide(x_XL: Array, width: int) -> Array:
    """Columns that are equal in all lanes, `width` of them."""
    return jnp.tile(x_XL, (1, math.ceil(width / x_XL.shape[1])))[:, :width]
