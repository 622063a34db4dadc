"""The batch: the one contract between the data pipeline and the models.

Its structs are NamedTuples, which JAX maps over without registration, so this file needs NumPy alone.

Axis letters:
  B rows   T token positions   I image slots of a row   Y, X pixels   C colour channels
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

# An array of NumPy or of JAX, or its abstract value: the same type describes all three.
Array = Any


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """Shape and dtype of an array: an abstract value that needs no JAX, and that JAX accepts as one."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @classmethod
    def of(cls, shape: tuple[int, ...], dtype: Any) -> ArraySpec:
        """With a dtype in any spelling of NumPy."""
        return cls(shape, np.dtype(dtype))


class Images(NamedTuple):
    """Images of one fixed size; a row with fewer than I images ends in slots of zeros, to which no position refers."""

    pixels: Array  # uint8[B, I, Y, X, 3], RGB; normalised on the device


class Batch(NamedTuple):
    """Rows of `T` tokens with their media.

    An example of one packed row, two images of one feature each (`<im>` is the placeholder id)::

        tokens       [ 1  <im>  7  8  2   1  <im>  9  2   0 ]
        targets      [ 0   7    8  2  0   0   9    2  0   0 ]
        loss_weights [ 0   0    1  1  0   0   1    1  0   0 ]
        positions    [ 0   1    2  3  4   0   1    2  3   0 ]
        segments     [ 1   1    1  1  1   2   2    2  2   0 ]
        image_index  [-1   0   -1 -1 -1  -1   1   -1 -1  -1 ]
    """

    tokens: Array  # int32[B, T]; the placeholder id at image positions
    targets: Array  # int32[B, T]; the id that position t must predict, made when the row is packed
    loss_weights: Array  # float32[B, T]; 0 where position t predicts nothing that is supervised
    positions: Array  # int32[B, T], or int32[B, T, 3] for families with three-axis positions; restart at each segment
    segments: Array  # int32[B, T]; 1, 2, ... for each packed sample, 0 for padding
    media: Any  # the family's own struct, a NamedTuple of arrays with B first: `Images` or another
    image_index: Array  # int32[B, T]; which of the row's media features is here, -1 at text

    @classmethod
    def spec(cls, *, rows: int, tokens: int, media: Any, position_axes: int = 1) -> Batch:
        """Abstract batch (`ArraySpec` leaves).

        Args:
          rows: B.
          tokens: T.
          media: abstract media of `rows` rows, from `MediaLayout.spec`.
          position_axes: 1 for positions [B, T], 3 for [B, T, 3].
        """
        text, weights = ArraySpec.of((rows, tokens), np.int32), ArraySpec.of((rows, tokens), np.float32)
        positions = text if position_axes == 1 else ArraySpec.of((rows, tokens, position_axes), np.int32)
        return cls(text, text, weights, positions, text, media, text)

    @classmethod
    def empty(cls, spec: Batch) -> Batch:
        """A NumPy batch of the spec's shapes in which every position is padding; `packing.fill_row` writes into it."""
        batch = map_arrays(lambda leaf: np.zeros(leaf.shape, leaf.dtype), spec)
        batch.image_index[:] = -1
        return batch

    @classmethod
    def fake(cls, spec: Batch, *, vocab_size: int, features: int, seed: int = 0) -> Batch:
        """Random NumPy batch of the spec's shapes for tests and benchmarks: one segment a row that fills it.

        Each row begins with all its media features, then text; the last quarter of the text is supervised. Media are
        random pixels (uint8), and zeros in arrays of any other dtype.

        Args:
          features: media features of each row.

        Raises:
          ValueError: the row is too short for its features and one token of text.
        """
        B, T = spec.tokens.shape
        random = np.random.default_rng(seed)
        if features + 2 > T:
            raise ValueError(f"a fake row of {T} tokens cannot hold {features} image features and text")
        tokens = random.integers(1, vocab_size, (B, T), dtype=np.int32)
        image_index = np.full((B, T), -1, np.int32)
        image_index[:, 1 : 1 + features] = np.arange(features)
        loss_weights = np.zeros((B, T), np.float32)
        loss_weights[:, T - max(1, (T - features) // 4) - 1 : T - 1] = 1.0
        positions = np.arange(T, dtype=np.int32).reshape(1, T, *[1] * (len(spec.positions.shape) - 2))

        def media(leaf: ArraySpec) -> np.ndarray:
            if leaf.dtype == np.uint8:
                return random.integers(0, 256, leaf.shape, dtype=np.uint8)
            return np.zeros(leaf.shape, leaf.dtype)

        return cls(
            tokens=tokens,
            targets=np.concatenate([tokens[:, 1:], np.zeros((B, 1), np.int32)], axis=1),
            loss_weights=loss_weights,
            positions=np.broadcast_to(positions, spec.positions.shape).copy(),
            segments=np.ones((B, T), np.int32),
            media=map_arrays(media, spec.media),
            image_index=image_index,
        )

    def to_arrays(self) -> dict[str, Array]:
        """Its arrays by name, such as "tokens" and "media/pixels", to be saved."""
        return dict(_named(self))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], like: Batch) -> Batch:
        """Rebuilds the batch from the result of `to_arrays`; `like` is any batch or spec with the same media struct."""
        names = iter(list(like.to_arrays()))
        return map_arrays(lambda _: arrays[next(names)], like)

    def check(self, spec: Batch) -> None:
        """Raises `ValueError` with every field whose shape or dtype is not the spec's."""
        have, want = self.to_arrays(), spec.to_arrays()
        wrong = [f"{name} is missing" for name in want if name not in have]
        wrong += [f"{name} is not in the spec" for name in have if name not in want]
        wrong += [
            f".{name} is {_describe(have[name])}, expected {_describe(want[name])}"
            for name in have
            if name in want and _describe(have[name]) != _describe(want[name])
        ]
        if wrong:
            raise ValueError("the batch does not fit its spec: " + "; ".join(wrong))


def map_arrays(function: Callable[[Any], Any], struct: Any) -> Any:
    """`struct` (nested NamedTuples) with each array replaced by `function(array)`; `jax.tree.map` without JAX."""
    if isinstance(struct, tuple):
        return type(struct)(*(map_arrays(function, field) for field in struct))
    return function(struct)


def num_bytes(struct: Any) -> int:
    """Size in bytes of the arrays of `struct`."""
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for _, leaf in _named(struct))


def _named(struct: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in zip(struct._fields, struct, strict=True):
        if isinstance(field, tuple):
            yield from _named(field, f"{prefix}{name}/")
        else:
            yield prefix + name, field


def _describe(array: Array) -> str:
    return f"{array.dtype}{list(array.shape)}"
