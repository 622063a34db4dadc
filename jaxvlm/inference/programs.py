"""The three compiled programs of inference, each compiled once for each shape.

  encode    media -> features
  prefill   prompts and features -> `Rows`: a cache and the first new token of each row
  step      `Rows` -> `Rows`, with up to STEP_TOKENS more tokens of each row

Axis letters:
  B rows   T prompt position   N new tokens   E stop ids   V vocab
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jaxvlm.batch import Array, Batch
from jaxvlm.inference.sampling import Sampling, sample
from jaxvlm.models.decoder import Cache
from jaxvlm.models.vlm import Model
from jaxvlm.sharding import Placement, placed

STEP_TOKENS = 32  # at most, in a call of `step`; fewer slow a small model down


def bucket(length: int, smallest: int = 32) -> int:
    """The size to which a length in tokens is padded: 32, 48, 64, 96, 128, 192, 256, 384, ...

    Two sizes to each doubling: at most a third of a row is padding, and a conversation that grows to 4,096 tokens meets
    15 programs.

    Args:
      length: of a prompt, or of an answer.
      smallest: a power of two; below it a smaller program would not be noticeably faster.
    """
    size = smallest
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


class Requests(NamedTuple):
    """The settings of each row. All are traced: another limit or temperature compiles nothing."""

    numbers: Array  # int32[B]; a row's random numbers depend on this and its seed, not on the row's place in the batch
    limits: Array  # int32[B]; the most new tokens
    seeds: Array  # uint32[B]
    temperatures: Array  # float32[B]; 0 takes the most likely token
    top_ps: Array  # float32[B]
    top_ks: Array  # int32[B]; 0: all tokens

    @classmethod
    def same(cls, numbers_B: Array, max_new_tokens: int, sampling: Sampling) -> Requests:
        """NumPy requests that differ only in their numbers."""
        rows = len(numbers_B)
        return cls(
            np.asarray(numbers_B, np.int32),
            np.full(rows, max_new_tokens, np.int32),
            np.full(rows, sampling.seed, np.uint32),
            np.full(rows, sampling.temperature, np.float32),
            np.full(rows, sampling.top_p, np.float32),
            np.full(rows, sampling.top_k, np.int32),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """The state of decoding: everything that a step reads and replaces."""

    cache: Cache
    tokens: Array  # int32[B]; the newest, not in the cache yet; 0 in rows that have ended
    positions: Array  # int32[B]; of that token in its own row
    chosen: Array  # int32[B]; new tokens so far
    left: Array  # int32[B]; new tokens that may follow; 0: the row has ended
    requests: Requests


class Likelihoods(NamedTuple):
    """Natural logarithms of the probabilities of new tokens under the model itself (temperature 1)."""

    chosen: Array  # float32[B, N], of the new token
    top: Array  # float32[B, N, K], of the most likely ones, most likely first
    top_ids: Array  # int32[B, N, K], their ids


@dataclasses.dataclass(frozen=True)
class Programs:
    """The programs of a model with its weights.

    Attributes:
      params: nested dict of the whole model's weights.
      stop_ids: tokens that end a row.
      place: of the weights and the batches. Prompts are then read as a train step reads its rows: each device its own,
        with weights gathered and the platform's kernels. (New tokens are few: they go to the weights.)
    """

    model: Model
    params: dict
    stop_ids: tuple[int, ...]
    place: Placement | None = None

    def encode(self, media: Any) -> Any:
        """Features of `Batch.media`, as `VLM.encode`; None if the rows have no media units."""
        return _encode(self.model, self.place, self.params, media)

    def prefill(
        self, batch: Batch, features: Any, requests: Requests, *, room: int, greedy: bool
    ) -> tuple[Rows, Array]:
        """Reads prompts and chooses the first token of each row.

        Args:
          batch: rows that begin with one prompt (segment 1) and end in padding; a row of padding alone gets no answer.
            Its media, targets and loss weights are not read.
          features: of `encode`.
          room: slots of the cache for new tokens, the largest of the limits or more.
          greedy: whether all temperatures are 0; the program then has no code to sample.

        Returns:
          the rows, and int32[B, 1], the first tokens, -1 in a row of padding.
        """
        batch = batch._replace(media=None, targets=None, loss_weights=None)
        return _prefill(self.model, self.place, greedy, room, self.params, batch, features, requests, self.stops)

    def step(self, rows: Rows, steps: int, *, greedy: bool) -> tuple[Rows, Array]:
        """Chooses `steps` more tokens in each row, or fewer when all rows end before.

        Args:
          rows: of `prefill` or an earlier step; their memory is used for the result.
          steps: from 1 to STEP_TOKENS; any number compiles nothing.

        Returns:
          the rows, and int32[B, STEP_TOKENS], the new tokens: a stop id is the last of its row, followed by -1.
        """
        rows, tokens_BN, _ = self.step_kept(rows, None, steps, greedy=greedy, top=0, seen=None)
        return rows, tokens_BN

    def step_kept(
        self, rows: Rows, keep_B: Array | None, steps: int, *, greedy: bool, top: int, seen: int | None
    ) -> tuple[Rows, Array, Likelihoods | None]:
        """`step` for rows that join and leave between steps.

        Args:
          keep_B: bool[B], the rows that do not end here; None: none does.
          top: how many likely tokens each token comes with; 0: there are no likelihoods.
          seen: slots of the cache that are read, see `Decoder.extend`.
        """
        return _step(self.model, self.place, greedy, top, seen, self.params, rows, keep_B, np.int32(steps), self.stops)

    @property
    def stops(self) -> np.ndarray:
        """int32[E], `stop_ids`."""
        return np.array(self.stop_ids, np.int32)


def as_in_training(place: Placement | None) -> contextlib.AbstractContextManager:
    """A context in which a program is traced as a train step is, on the mesh of `place`."""
    return contextlib.nullcontext() if place is None else placed(place.mesh, place.rules, place.target)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(model: Model, place: Placement | None, params: dict, media: Any) -> Any:
    with as_in_training(place):
        features = model.bind(params).encode(media)
    return jax.tree.map(lambda x: pinned(x, ("batch", *[None] * (x.ndim - 1)), place), features)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _prefill(
    model: Model,
    place: Placement | None,
    greedy: bool,
    room: int,
    params: dict,
    batch: Batch,
    features: Any,
    requests: Requests,
    stops_E: Array,
) -> tuple[Rows, Array]:
    vlm = model.bind(params)
    next_B = vlm.next_position(batch)
    with as_in_training(place):
        logits_BV, cache = vlm.prefill(batch, features, batch.tokens.shape[1] + room)
    rows = Rows(
        cache=cache,
        tokens=jnp.zeros_like(next_B),
        positions=next_B - 1,
        chosen=jnp.zeros_like(next_B),
        left=jnp.where(next_B == 0, 0, requests.limits),
        requests=requests,
    )
    rows, tokens_B = choose(rows, logits_BV, stops_E, greedy)
    return pinned_rows(rows, place), pinned(tokens_B[:, None], (None, None), place)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4), donate_argnums=6)
def _step(
    model: Model,
    place: Placement | None,
    greedy: bool,
    top: int,
    seen: int | None,
    params: dict,
    rows: Rows,
    keep_B: Array | None,
    steps: Array,
    stops_E: Array,
) -> tuple[Rows, Array, Likelihoods | None]:
    vlm = model.bind(params)
    if keep_B is not None:
        rows = dataclasses.replace(rows, left=jnp.where(keep_B, rows.left, 0))
    none_BN = jnp.full((len(rows.left), STEP_TOKENS), -1, jnp.int32)
    likelihoods = no_likelihoods(none_BN, top)

    def goes_on(carry: tuple[Array, Rows, Array, Likelihoods | None]) -> Array:
        step, rows, *_ = carry
        return (step < steps) & jnp.any(rows.left > 0)

    def body(
        carry: tuple[Array, Rows, Array, Likelihoods | None],
    ) -> tuple[Array, Rows, Array, Likelihoods | None]:
        step, rows, *new = carry
        lives_B1 = (rows.left > 0)[:, None].astype(jnp.int32)
        logits_BV, cache = vlm.extend(rows.tokens[:, None], rows.positions[:, None], rows.cache, lives_B1, seen)
        rows, tokens_B = choose(dataclasses.replace(rows, cache=cache), logits_BV, stops_E, greedy)
        now = tokens_B, likely(logits_BV, tokens_B, top)
        new = jax.tree.map(
            lambda all, one: jax.lax.dynamic_update_slice_in_dim(all, one[:, None], step, axis=1), tuple(new), now
        )
        return step + 1, rows, *new

    _, rows, new_BN, likelihoods = jax.lax.while_loop(goes_on, body, (jnp.int32(0), rows, none_BN, likelihoods))
    return pinned_rows(rows, place), pinned(new_BN, (None, None), place), likelihoods


def no_likelihoods(tokens_BN: Array, top: int) -> Likelihoods | None:
    """Zeros, to be written over; None if `top` is 0."""
    if not top:
        return None
    zeros_BN = jnp.zeros(tokens_BN.shape, jnp.float32)
    zeros_BNK = jnp.zeros((*tokens_BN.shape, top), jnp.float32)
    return Likelihoods(zeros_BN, zeros_BNK, zeros_BNK.astype(jnp.int32))


def likely(logits_BV: Array, tokens_B: Array, top: int) -> Likelihoods | None:
    """The likelihoods of one token of each row, without the axis N; None if `top` is 0."""
    if not top:
        return None
    log_BV = jax.nn.log_softmax(logits_BV)
    chosen_B1 = jnp.take_along_axis(log_BV, jnp.maximum(tokens_B, 0)[:, None], axis=1)
    return Likelihoods(chosen_B1[:, 0], *jax.lax.top_k(log_BV, top))


def choose(rows: Rows, logits_BV: Array, stops_E: Array, greedy: bool) -> tuple[Rows, Array]:
    """Adds a token to each row that has not ended; also returns them, int32[B], -1 in the others."""
    tokens_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    if not greedy:
        asked = rows.requests
        is_sampled_B = asked.temperatures > 0
        keys_B = jax.vmap(_key)(asked.seeds, asked.numbers, rows.chosen)
        temperatures_B1 = jnp.where(is_sampled_B, asked.temperatures, 1)[:, None]
        drawn_B = sample(logits_BV, keys_B, temperatures_B1, asked.top_ps[:, None], asked.top_ks[:, None])
        tokens_B = jnp.where(is_sampled_B, drawn_B, tokens_B)
    goes_on_B = rows.left > 0
    ends_B = jnp.isin(tokens_B, stops_E)
    rows = dataclasses.replace(
        rows,
        tokens=jnp.where(goes_on_B, tokens_B, 0),
        positions=rows.positions + 1,
        chosen=rows.chosen + goes_on_B,
        left=jnp.where(goes_on_B & ~ends_B, rows.left - 1, 0),
    )
    return rows, jnp.where(goes_on_B, tokens_B, -1)


def _key(seed: Array, number: Array, chosen: Array) -> Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), chosen)


def pinned_rows(rows: Rows, place: Placement | None) -> Rows:
    """Rows with a fixed sharding, so that the next program is not compiled again."""
    axes = {
        "keys": (None, "batch", None, "kv_heads", None),
        "values": (None, "batch", None, "kv_heads", None),
        "segments": ("batch", None),
    }

    def pin(path: tuple[Any, ...], x: Array) -> Array:
        return pinned(x, axes.get(getattr(path[-1], "name", ""), ("batch",))[: x.ndim], place)

    return jax.tree.map_with_path(pin, rows)


def pinned(x: Array, axes: tuple[str | None, ...], place: Placement | None) -> Array:
    """An array with the fixed sharding of its logical axes."""
    if place is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(place.mesh, place.spec(axes, x.shape)))
