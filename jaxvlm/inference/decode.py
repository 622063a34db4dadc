"""Decoding with a key/value cache: prompts of different length in, tokens out, in one compiled program for each shape.

Axis letters:
  B rows   T prompt position   N new tokens   V vocab
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxvlm.batch import Array, Batch
from jaxvlm.errors import UserError
from jaxvlm.models.decoder import Cache
from jaxvlm.models.vlm import Model
from jaxvlm.sharding import Placement, placed

SMALLEST_BUCKET = 32  # tokens; below it a smaller program would not be noticeably faster


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is chosen from the logits."""

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


def bucket(length: int) -> int:
    """The size to which a prompt of `length` tokens is padded: 32, 48, 64, 96, 128, 192, 256, 384, ...

    Two sizes to each doubling: at most a third of a row is padding, and a conversation that grows to 4,096 tokens meets
    15 programs.
    """
    size = SMALLEST_BUCKET
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def decode(
    model: Model,
    params: dict,
    batch: Batch,
    numbers_B: Array,
    stop_ids: tuple[int, ...],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    place: Placement | None = None,
) -> tuple[Array, Array]:
    """Answers the prompts of a batch; ends when every row has stopped.

    Compiled once for each model, batch shape, `stop_ids`, `max_new_tokens`, kind of sampling (greedy or not) and place.

    Args:
      params: nested dict of the whole model's weights.
      batch: rows that begin with one prompt (segment 1) and end in padding; a row of padding alone gets no answer.
      numbers_B: int32[B]; a row's random numbers depend on this and the seed, not on where the row stands.
      stop_ids: tokens that end an answer.
      max_new_tokens: N.
      place: of the weights and the batch. Prompts are then read as a train step reads its rows: each device its own,
        with weights gathered and the platform's kernels. (New tokens are few: they go to the weights.)

    Returns:
      int32[B, N] tokens, the stop id among them, 0 behind it, and int32[B] lengths without the stop id: N for a row
      that did not stop.
    """
    greedy = sampling.temperature == 0
    settings = (jnp.uint32(sampling.seed), jnp.float32(sampling.temperature), jnp.float32(sampling.top_p))
    return _decode(model, stop_ids, max_new_tokens, greedy, place, params, batch, numbers_B, settings)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Progress:
    """The carry of the decoding loop."""

    step: Array  # int32[], tokens chosen so far
    tokens: Array  # int32[B, N]
    lengths: Array  # int32[B]
    is_done: Array  # bool[B]
    cache: Cache


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _decode(
    model: Model,
    stop_ids: tuple[int, ...],
    max_new_tokens: int,
    greedy: bool,
    place: Placement | None,
    params: dict,
    batch: Batch,
    numbers_B: Array,
    settings: tuple[Array, Array, Array],
) -> tuple[Array, Array]:
    vlm = model.bind(params)
    B, T = batch.tokens.shape
    next_B = vlm.next_position(batch)
    seed, temperature, top_p = settings
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), numbers_B)
    stops = jnp.array(stop_ids, jnp.int32)

    def choose(progress: _Progress, logits_BV: Array) -> _Progress:
        """Adds a token to each row that is not done."""
        if greedy:
            tokens_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        else:
            now_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, progress.step)
            tokens_B = sample(logits_BV, now_B, temperature, top_p)
        tokens_B = jnp.where(progress.is_done, 0, tokens_B)
        is_done_B = progress.is_done | jnp.isin(tokens_B, stops)
        return _Progress(
            step=progress.step + 1,
            tokens=jax.lax.dynamic_update_slice_in_dim(progress.tokens, tokens_B[:, None], progress.step, axis=1),
            lengths=progress.lengths + ~is_done_B,
            is_done=is_done_B,
            cache=progress.cache,
        )

    def goes_on(progress: _Progress) -> Array:
        return (progress.step < max_new_tokens) & ~jnp.all(progress.is_done)

    def body(progress: _Progress) -> _Progress:
        last_B1 = jax.lax.dynamic_slice_in_dim(progress.tokens, progress.step - 1, 1, axis=1)
        positions_B1 = (next_B + progress.step - 1)[:, None]
        logits_BV, cache = vlm.extend(last_B1, positions_B1, progress.cache)
        return choose(dataclasses.replace(progress, cache=cache), logits_BV)

    with contextlib.nullcontext() if place is None else placed(place.mesh, place.rules, place.target):
        logits_BV, cache = vlm.prefill(batch, T + max_new_tokens)
    progress = _Progress(
        step=jnp.int32(0),
        tokens=jnp.zeros((B, max_new_tokens), jnp.int32),
        lengths=jnp.zeros(B, jnp.int32),
        is_done=next_B == 0,
        cache=cache,
    )
    progress = jax.lax.while_loop(goes_on, body, choose(progress, logits_BV))
    return progress.tokens, progress.lengths


def sample(logits_BV: Array, keys_B: Array, temperature: Array, top_p: Array) -> Array:
    """Draws one token a row.

    Args:
      logits_BV: float32[B, V].
      keys_B: a random key for each row.
      temperature: float32[], over 0.
      top_p: float32[], see `nucleus`.

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
