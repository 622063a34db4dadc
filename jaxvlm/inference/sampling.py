"""Choice of the next token from the logits.

Axis letters:
  B rows   V vocab
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxvlm.batch import Array
from jaxvlm.config import GenerationConfig
from jaxvlm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sampling(GenerationConfig):
    """Settings of the choice of a token.

    Attributes:
      temperature: 0 takes the most likely token; 1 samples from the model's own distribution.
      top_p: share of the probability, most likely tokens first, that is sampled from.
      top_k: how many of the most likely tokens are sampled from; 0: all.
    """

    seed: int = 0

    def __post_init__(self):
        problems = self.problems
        if not 0 <= self.seed < 2**32:
            problems.append(f"seed is {self.seed}, expected 0 to {2**32 - 1}")
        if problems:
            raise UserError("; ".join(problems))


GREEDY = Sampling()


def sample(logits_BV: Array, keys_B: Array, temperature: Array, top_p: Array, top_k: Array) -> Array:
    """Draws one token a row.

    Args:
      logits_BV: float32[B, V].
      keys_B: a random key for each row.
      temperature: float32[] or float32[B, 1], over 0.
      top_p: float32[] or float32[B, 1], see `nucleus`.
      top_k: int32[] or int32[B, 1], see `nucleus`.

    Returns:
      int32[B].
    """
    # The largest becomes 0, so that a tiny temperature sends the others to -inf and nothing to +inf.
    scaled_BV = (logits_BV - logits_BV.max(axis=-1, keepdims=True)) / temperature
    kept_BV = jnp.where(nucleus(scaled_BV, top_p, top_k), scaled_BV, -jnp.inf)
    return jax.vmap(jax.random.categorical)(keys_B, kept_BV).astype(jnp.int32)


def nucleus(logits_BV: Array, top_p: Array, top_k: Array) -> Array:
    """The fewest most likely tokens whose probabilities sum to `top_p` or more; bool[B, V], one at least in a row.

    The probabilities are those among the `top_k` most likely tokens, or among all if that is 0. Of equally likely
    tokens those with the smaller id come first.

    Source: arXiv:1904.09751; HF generation/logits_process.py for the order.
    """
    order_BV = jnp.argsort(logits_BV, axis=-1, descending=True, stable=True)
    is_top_BV = (jnp.arange(logits_BV.shape[-1]) < top_k) | (top_k == 0)
    sorted_BV = jnp.where(is_top_BV, jnp.take_along_axis(logits_BV, order_BV, axis=-1), -jnp.inf)
    sorted_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(sorted_BV, axis=-1) - sorted_BV
    # Rounding may bring the sum to 1 before the last token.
    is_kept_BV = ((before_BV < top_p) | (top_p >= 1)) & is_top_BV
    rank_BV = jnp.argsort(order_BV, axis=-1)
    return jnp.take_along_axis(is_kept_BV, rank_BV, axis=-1)
