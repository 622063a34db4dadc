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
        return _prefill(self.model, self.place, greedy, room, self.params, batch, features, requests, self._stops)

    def step(self, rows: Rows, steps: int, *, greedy: bool) -> tuple[Rows, Array]:
        """Chooses `steps` more tokens in each row, or fewer when all rows end before.

        Args:
          rows: of `prefill` or an earlier step; their memory is used for the result.
          steps: from 1 to STEP_TOKENS; any number compiles nothing.

        Returns:
          the rows, and int32[B, STEP_TOKENS], the new tokens: a stop id is the last of its row, followed by -1.
        """
        return _step(self.model, self.place, greedy, self.params, rows, np.int32(steps), self._stops)

    @property
    def _stops(self) -> np.ndarray:
        return np.array(self.stop_ids, np.int32)


def _as_in_training(place: Placement | None) -> contextlib.AbstractContextManager:
    return contextlib.nullcontext() if place is None else placed(place.mesh, place.rules, place.target)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(model: Model, place: Placement | None, params: dict, media: Any) -> Any:
    with _as_in_training(place):
        features = model.bind(params).encode(media)
    return jax.tree.map(lambda x: _pinned(x, ("batch", *[None] * (x.ndim - 1)), place), features)


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
    with _as_in_training(place):
        logits_BV, cache = vlm.prefill(batch, features, batch.tokens.shape[1] + room)
    rows = Rows(
        cache=cache,
        tokens=jnp.zeros_like(next_B),
        positions=next_B - 1,
        chosen=jnp.zeros_like(next_B),
        left=jnp.where(next_B == 0, 0, requests.limits),
        requests=requests,
    )
    rows, tokens_B = _choose(rows, logits_BV, stops_E, greedy)
    return _pinned_rows(rows, place), _pinned(tokens_B[:, None], (None, None), place)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def _step(
    model: Model, place: Placement | None, greedy: bool, params: dict, rows: Rows, steps: Array, stops_E: Array
) -> tuple[Rows, Array]:
    vlm = model.bind(params)

    def goes_on(carry: tuple[Array, Rows, Array]) -> Array:
        step, rows, _ = carry
        return (step < steps) & jnp.any(rows.left > 0)

    def body(carry: tuple[Array, Rows, Array]) -> tuple[Array, Rows, Array]:
        step, rows, new_BN = carry
        logits_BV, cache = vlm.extend(rows.tokens[:, None], rows.positions[:, None], rows.cache)
        rows, tokens_B = _choose(dataclasses.replace(rows, cache=cache), logits_BV, stops_E, greedy)
        return step + 1, rows, jax.lax.dynamic_update_slice_in_dim(new_BN, tokens_B[:, None], step, axis=1)

    none_BN = jnp.full((len(rows.left), STEP_TOKENS), -1, jnp.int32)
    _, rows, new_BN = jax.lax.while_loop(goes_on, body, (jnp.int32(0), rows, none_BN))
    return _pinned_rows(rows, place), _pinned(new_BN, (None, None), place)


def _choose(rows: Rows, logits_BV: Array, stops_E: Array, greedy: bool) -> tuple[Rows, Array]:
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


def _pinned_rows(rows: Rows, place: Placement | None) -> Rows:
    """Rows with a fixed sharding, so that the next program is not compiled again."""
    axes = {
        "keys": (None, "batch", None, "kv_heads", None),
        "values": (None, "batch", None, "kv_heads", None),
        "segments": ("batch", None),
        "next": (),
    }

    def pin(path: tuple[Any, ...], x: Array) -> Array:
        return _pinned(x, axes.get(getattr(path[-1], "name", ""), ("batch",)), place)

    return jax.tree.map_with_path(pin, rows)


def _pinned(x: Array, axes: tuple[str | None, ...], place: Placement | None) -> Array:
    if place is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(place.mesh, place.spec(axes, x.shape)))
