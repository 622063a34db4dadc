"""Choice of the next token from the logits.

Axis letters:
  B rows   V vocab
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxvlm.batch import Array
from jaxvlm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Settings of the choice of a token."""

    temperature: float = 0.0  # 0 takes the most likely token; 1 samples from the model's own distribution
    top_p: float = 1.0  # share of the probability, most likely tokens first, that is sampled from
    seed: int = 0

    def __post_init__(self):
        problems = []
        if not 0 <= self.temperature < float("inf"):
            problems.append(f"temperature is {self.temperature}, expected 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p is {self.top_p}, expected more than 0 and at most 1 (all tokens)")
        if not 0 <= self.seed < 2**32:
            problems.append(f"seed is {self.seed}, expected 0 to {2**32 - 1}")
        if problems:
            raise UserError("; ".join(problems))


GREEDY = Sampling()


def sample(logits_BV: Array, keys_B: Array, temperature: Array, top_p: Array) -> Array:
    """Draws one token a row.

    Args:
      logits_BV: float32[B, V].
      keys_B: a random key for each row.
      temperature: float32[] or float32[B, 1], over 0.
      top_p: float32[] or float32[B, 1], see `nucleus`.

    Returns:
      int32[B].
    """
    # The largest becomes 0, so that a tiny temperature sends the others to -inf and nothing to +inf.
    scaled_BV = (logits_BV - logits_BV.max(axis=-1, keepdims=True)) / temperature
    kept_BV = jnp.where(nucleus(scaled_BV, top_p), scaled_BV, -jnp.inf)
    return jax.vmap(jax.random.categorical)(keys_B, kept_BV).astype(jnp.int32)


def nucleus(logits_BV: Array, top_p: Array) -> Array:
    """The fewest most likely tokens whose probabilities sum to `top_p` or more; bool[B, V], one at least in a row.

    Of equally likely tokens those with the smaller id come first.

    Source: arXiv:1904.09751.
    """
    order_BV = jnp.argsort(logits_BV, axis=-1, descending=True, stable=True)
    sorted_BV = jax.nn.softmax(jnp.take_along_axis(logits_BV, order_BV, axis=-1), axis=-1)
    before_BV = jnp.cumsum(sorted_BV, axis=-1) - sorted_BV
    is_kept_BV = (before_BV < top_p) | (top_p >= 1)  # rounding may bring the sum to 1 before the last token
    rank_BV = jnp.argsort(order_BV, axis=-1)
    return jnp.take_along_axis(is_kept_BV, rank_BV, axis=-1)
