"""Rows that are answered independently: prompts enter a free slot, and leave it, between the steps of the others.

The state is `Rows` with a `next` for each row in its cache. Its programs, each compiled once for each shape:

  put          features of an image -> the features of a prompt
  fill         a prompt -> the keys and values of a slot, and logits
  fill_more    the rest of a prompt whose beginning is in the slot
  begin        logits -> the first token; from now on the slot takes part in steps
  step         up to STEP_TOKENS more tokens of all slots
  save, load   the beginning of a slot, for other prompts

Axis letters:
  B slots   S slots of the cache (tokens)   T prompt position   F features   N new tokens   V vocab   E stop ids
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvlm.batch import Array, Batch
from jaxvlm.inference.programs import (
    Likelihoods,
    Programs,
    Requests,
    Rows,
    as_in_training,
    choose,
    likely,
    pinned,
    pinned_rows,
)
from jaxvlm.models.decoder import Cache
from jaxvlm.models.vlm import Model
from jaxvlm.sharding import Placement

Beginning = tuple[Array, Array]  # keys and values of the first tokens of a row, float[L, 1, T, K, H]


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a program that chooses tokens has code for; each one is compiled for itself."""

    greedy: bool  # no row samples
    top: int = 0  # likelihoods with each token


@dataclasses.dataclass(frozen=True, eq=False)
class SlotPrograms:
    """The programs of a model with its weights, for one size of state.

    Attributes:
      slots: B.
      tokens: S, of a prompt and its answer.
    """

    programs: Programs
    slots: int
    tokens: int

    def empty(self) -> Rows:
        """The state in which all slots are free."""
        return _empty(self.programs.model, self.programs.place, self.slots, self.tokens)

    def no_features(self, of_image: Any) -> Any:
        """Features of a prompt of up to S of them, all zero.

        Args:
          of_image: features of any image, see `put`; or None, for a model without media.
        """
        leaves, structure = jax.tree.flatten(of_image)
        shapes = tuple(((*leaf.shape[:-2], self.tokens, leaf.shape[-1]), str(leaf.dtype)) for leaf in leaves)
        return jax.tree.unflatten(structure, _zeros(self.programs.place, shapes))

    def put(self, features: Any, of_image: Any, order_F: np.ndarray, at: int) -> Any:
        """The features of a prompt with those of one image in them.

        Args:
          features: of `no_features` or an earlier `put`; their memory is used for the result.
          of_image: of `Programs.encode` for one row with this image alone.
          order_F: int32[F], the features of the image's positions, in their order; then any.
          at: the first place; features beyond S are dropped.
        """
        return _put(self.programs.place, features, of_image, order_F, np.int32(at))

    def fill(self, rows: Rows, batch: Batch, features: Any, slot: int) -> tuple[Rows, Array]:
        """Reads a prompt into a slot.

        Args:
          rows: their memory is used for the result.
          batch: one row of at most S tokens; its `image_index` counts in `features`.
          features: of the prompt's images, see `put`.

        Returns:
          the rows, in which this slot has ended, and float32[1, V], logits after the prompt.
        """
        p = self.programs
        return _fill(p.model, p.place, p.params, rows, batch, features, np.int32(slot))

    def fill_more(self, rows: Rows, batch: Batch, features: Any, slot: int) -> tuple[Rows, Array]:
        """Reads more of a prompt into a slot that has its beginning; see `fill`."""
        p = self.programs
        return _fill_more(p.model, p.place, p.params, rows, batch, features, np.int32(slot))

    def begin(
        self, rows: Rows, logits_1V: Array, slot: int, position: int, request: Requests, choice: Choice
    ) -> tuple[Rows, Array, Likelihoods | None]:
        """Chooses the first token of a slot that was filled.

        Args:
          rows: their memory is used for the result.
          position: of the token.
          request: of one row.

        Returns:
          the rows; int32[1, 1], the token, -1 for padding; and its likelihoods, if `choice` wants them.
        """
        p = self.programs
        return _begin(
            p.place, choice.greedy, choice.top, rows, logits_1V, np.int32(slot), np.int32(position), request, p.stops
        )

    def step(
        self, rows: Rows, keep_B: np.ndarray, steps: int, choice: Choice, seen: int
    ) -> tuple[Rows, Array, Likelihoods | None]:
        """Chooses `steps` more tokens in each slot that has not ended.

        Args:
          rows: their memory is used for the result.
          keep_B: bool[B]; the others end now.
          steps: from 1 to STEP_TOKENS.
          seen: the first so many slots of the cache are read; no row may have more tokens after these steps.

        Returns:
          the rows; int32[B, STEP_TOKENS], the new tokens, see `Programs.step`; and their likelihoods.
        """
        return self.programs.step_kept(rows, keep_B, steps, greedy=choice.greedy, top=choice.top, seen=seen)

    def save(self, rows: Rows, slot: int, size: int) -> Beginning:
        """A copy of the first `size` slots of a row's cache."""
        return _save(self.programs.place, size, rows, np.int32(slot))

    def load(self, rows: Rows, beginning: Beginning, slot: int, length: int) -> Rows:
        """Makes the first `length` tokens of a beginning those of a slot, which has ended."""
        return _load(self.programs.place, rows, beginning, np.int32(slot), np.int32(length))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _empty(model: Model, place: Placement | None, slots: int, tokens: int) -> Rows:
    c = model.config.language
    shape = (c.num_layers, slots, tokens, c.num_kv_heads, c.head_dim)
    keys = jnp.zeros(shape, model.config.compute_dtype)
    ints = jnp.zeros(slots, jnp.int32)
    floats = jnp.zeros(slots, jnp.float32)
    cache = Cache(keys, jnp.zeros_like(keys), jnp.zeros((slots, tokens), jnp.int32), ints)
    requests = Requests(ints, ints, ints.astype(jnp.uint32), floats, floats, ints)
    return pinned_rows(Rows(cache, ints, ints, ints, ints, requests), place)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _zeros(place: Placement | None, shapes: tuple[tuple[tuple[int, ...], str], ...]) -> list[Array]:
    return [pinned(jnp.zeros(shape, dtype), (None,) * len(shape), place) for shape, dtype in shapes]


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _put(place: Placement | None, features: Any, of_image: Any, order_F: Array, at: Array) -> Any:
    places_F = at + jnp.arange(len(order_F))

    def put(all: Array, one: Array) -> Array:
        made = all.at[..., places_F, :].set(one[..., order_F, :], mode="drop")
        return pinned(made, (None,) * made.ndim, place)

    return jax.tree.map(put, features, of_image)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _fill(
    model: Model, place: Placement | None, params: dict, rows: Rows, batch: Batch, features: Any, slot: Array
) -> tuple[Rows, Array]:
    with as_in_training(place):
        logits_1V, cache = model.bind(params).prefill(batch, features, batch.tokens.shape[1])
    new = dataclasses.replace(cache, next=jnp.sum(batch.segments != 0, axis=1))
    return _in_slot(rows, new, slot, place), pinned(logits_1V, (None, None), place)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _fill_more(
    model: Model, place: Placement | None, params: dict, rows: Rows, batch: Batch, features: Any, slot: Array
) -> tuple[Rows, Array]:
    own = jax.tree.map(lambda x, axis: jax.lax.dynamic_slice_in_dim(x, slot, 1, axis), rows.cache, _ROW_AXES)
    logits_1V, own = model.bind(params).prefill_more(batch, features, own)
    return _in_slot(rows, own, slot, place), pinned(logits_1V, (None, None), place)


_ROW_AXES = Cache(keys=1, values=1, segments=0, next=0)


def _in_slot(rows: Rows, own: Cache, slot: Array, place: Placement | None) -> Rows:
    """Rows with the cache of one row, of S slots or fewer, in place of a slot's; the slot has ended."""
    free = rows.cache.segments.shape[1] - own.segments.shape[1]
    own = dataclasses.replace(own, segments=jnp.pad(own.segments, [(0, 0), (0, free)]))
    cache = jax.tree.map(
        lambda all, one, axis: (
            jax.lax.dynamic_update_slice_in_dim(all, one, slot, axis)
            if all.ndim < 5
            else jax.lax.dynamic_update_slice(all, one, (0, slot, 0, 0, 0))
        ),
        rows.cache,
        own,
        _ROW_AXES,
    )
    return pinned_rows(dataclasses.replace(rows, cache=cache, left=rows.left.at[slot].set(0)), place)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def _begin(
    place: Placement | None,
    greedy: bool,
    top: int,
    rows: Rows,
    logits_1V: Array,
    slot: Array,
    position: Array,
    request: Requests,
    stops_E: Array,
) -> tuple[Rows, Array, Likelihoods | None]:
    none_1 = jnp.zeros(1, jnp.int32)
    own = Rows(rows.cache, none_1, position[None] - 1, none_1, request.limits, request)
    own, tokens_1 = choose(own, logits_1V, stops_E, greedy)

    def write(all: Array, one: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(all, one.astype(all.dtype), slot, axis=0)

    fields = ("tokens", "positions", "chosen", "left", "requests")
    made = {name: jax.tree.map(write, getattr(rows, name), getattr(own, name)) for name in fields}
    rows = pinned_rows(dataclasses.replace(rows, **made), place)
    likelihoods = jax.tree.map(lambda x: x[:, None], likely(logits_1V, tokens_1, top))
    return rows, pinned(tokens_1[:, None], (None, None), place), likelihoods


@functools.partial(jax.jit, static_argnums=(0, 1))
def _save(place: Placement | None, size: int, rows: Rows, slot: Array) -> Beginning:
    axes = (None, None, None, "kv_heads", None)

    def cut(x_LBSKH: Array) -> Array:
        L, _, _, K, H = x_LBSKH.shape
        return pinned(jax.lax.dynamic_slice(x_LBSKH, (0, slot, 0, 0, 0), (L, 1, size, K, H)), axes, place)

    return cut(rows.cache.keys), cut(rows.cache.values)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _load(place: Placement | None, rows: Rows, beginning: Beginning, slot: Array, length: Array) -> Rows:
    keys, values = beginning
    segments_1T = (jnp.arange(keys.shape[2]) < length).astype(jnp.int32)[None]
    return _in_slot(rows, Cache(keys, values, segments_1T, length[None]), slot, place)
