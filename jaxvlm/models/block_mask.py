"""Which blocks of attention are computed: those in which two segments may meet, known only at run time.

    ids [ 1 1 1 1 | 1 2 2 2 | 3 3 3 0 ]   blocks of 4 of queries (down) and keys (across), causal   x . .
                                                                                                  x x .
                                                                                                  . . x
Axis letters:
  B rows   T position   Q block of queries   C block of keys
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxvlm.batch import Array


def needed_blocks(ids_BT: Array, block: int, *, causal: bool) -> Array:
    """Whether a block of queries must be computed with a block of keys.

    It must if the ranges of their segments overlap, padding (0) left aside: exact where ids ascend, and never too few
    in any other order. A block is always computed with itself, so every position, padding too, has a key.

    Args:
      ids_BT: int32[B, T], segments.
      block: positions of a block, a divisor of T.
      causal: query t sees the keys s <= t only.

    Returns:
      bool[B, Q, C].
    """
    B, T = ids_BT.shape
    ids_BQX = ids_BT.reshape(B, T // block, block)
    limits, is_used = jnp.iinfo(ids_BT.dtype), ids_BQX != 0
    least_BQ = jnp.min(ids_BQX, axis=-1, where=is_used, initial=limits.max)
    most_BQ = jnp.max(ids_BQX, axis=-1, where=is_used, initial=limits.min)
    overlap_BQC = (least_BQ[:, :, None] <= most_BQ[:, None]) & (least_BQ[:, None] <= most_BQ[:, :, None])
    needed_BQC = overlap_BQC | jnp.eye(T // block, dtype=bool)
    return jnp.tril(needed_BQC) if causal else needed_BQC


def keys_to_fetch(needed_BQC: Array) -> Array:
    """The block of keys that is in memory while queries i are visited with keys j.

    Where the two are not needed it is the next that is, so nothing is fetched in vain. Keys are visited innermost:
    after the last that queries i need comes the first of queries i + 1.

    Returns:
      int32[B Q, C], numbers among the B C blocks of all rows.
    """
    B, Q, C = needed_BQC.shape
    visits = jnp.arange(B * Q * C, dtype=jnp.int32)
    # The last visit is to a block on the diagonal, hence needed.
    following = jax.lax.cummin(jnp.where(needed_BQC.ravel(), visits, B * Q * C - 1), reverse=True)
    return (following // (Q * C) * C + following % C).reshape(B * Q, C)


def queries_to_fetch(needed_BQC: Array) -> Array:
    """The block of queries that is in memory while keys j are visited with queries i, as in `keys_to_fetch`.

    Queries are visited innermost, and the heads next: after the last that keys j need, that one stays.

    Returns:
      int32[Q, B C], numbers among the B Q blocks of all rows.
    """
    B, Q, C = needed_BQC.shape
    number_Q1 = jnp.arange(Q, dtype=jnp.int32)[:, None]
    following_BQC = jax.lax.cummin(jnp.where(needed_BQC, number_Q1, Q), axis=1, reverse=True)
    last_B1C = jnp.max(jnp.where(needed_BQC, number_Q1, 0), axis=1, keepdims=True)
    first_B11 = jnp.arange(B, dtype=jnp.int32)[:, None, None] * Q
    return (jnp.minimum(following_BQC, last_B1C) + first_B11).swapaxes(0, 1).reshape(Q, B * C)


def computed_blocks(lengths: Sequence[float], positions: int, block: int, *, causal: bool) -> float:
    """Share of a row's blocks, queries x keys, that are computed for segments of these lengths.

    As `needed_blocks` finds it for ascending ids, except that a segment which ends on the edge of a block counts in
    the next block too: assumed lengths divide by a block more often than real ones.

    Args:
      lengths: positions of each segment in order; what they leave of the row is padding.
      positions: of a row, padding included.
      block: positions of a block.
    """
    side = math.ceil(positions / block)
    needed = np.eye(side, dtype=bool)
    start = 0.0
    for length in lengths:
        first, last = int(start // block), int((start + length) // block)
        needed[first : last + 1, first : last + 1] = True
        start += length
    return float(np.mean(np.tril(needed) if causal else needed))
