"""The batch: the one contract between the data pipeline and the models.

Axis letters:
  B rows   T token positions   I image slots of a row   Y, X pixels   C colour channels
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

# An array of NumPy or of JAX, or its abstract value: the same type describes all three.
Array = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Images:
    """Images of fixed size; a row that holds fewer than I images ends in slots of zeros, which no position looks at."""

    pixels: Array  # uint8[B, I, Y, X, 3], RGB; normalised on the device


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of `T` tokens and `I` image slots.

    An example of one packed row, two images of one feature each (`<im>` is the placeholder id)::

        tokens       [ 1  <im>  7  8  2   1  <im>  9  2   0 ]
        targets      [ 0   7    8  2  0   0   9    2  0   0 ]
        loss_weights [ 0   0    1  1  0   0   1    1  0   0 ]
        positions    [ 0   1    2  3  4   0   1    2  3   0 ]
        segments     [ 1   1    1  1  1   2   2    2  2   0 ]
        image_index  [-1   0   -1 -1 -1  -1   1   -1 -1  -1 ]
    """

    tokens: Array  # int32[B, T]; image placeholders hold the placeholder id
    targets: Array  # int32[B, T]; the id that position t must predict, made when the row is packed
    loss_weights: Array  # float32[B, T]; 0 where position t predicts nothing that is supervised
    positions: Array  # int32[B, T]; restart at each segment
    segments: Array  # int32[B, T]; 1, 2, ... for each packed sample, 0 is padding
    images: Images
    image_index: Array  # int32[B, T]; which of the row's I * P image features stands here, -1 at text

    @classmethod
    def spec(cls, *, rows: int, tokens: int, images: int, image_size: int) -> Batch:
        """Abstract batch (`jax.ShapeDtypeStruct` leaves) of `rows` rows; `image_size` in pixels."""
        text = jax.ShapeDtypeStruct((rows, tokens), np.int32)
        weights = jax.ShapeDtypeStruct((rows, tokens), np.float32)
        pixels = jax.ShapeDtypeStruct((rows, images, image_size, image_size, 3), np.uint8)
        return cls(text, text, weights, text, text, Images(pixels), text)

    @classmethod
    def fake(cls, spec: Batch, *, vocab_size: int, features_per_image: int, seed: int = 0) -> Batch:
        """Random NumPy batch of the spec's shapes for tests and benchmarks: one segment a row that fills it.

        Each row begins with all its images, then text; the last quarter of the text is supervised.

        Raises:
          ValueError: the row is too short for its images and one token of text.
        """
        B, T = spec.tokens.shape
        random = np.random.default_rng(seed)
        image_tokens = spec.images.pixels.shape[1] * features_per_image
        if image_tokens + 2 > T:
            raise ValueError(f"a fake row of {T} tokens cannot hold {image_tokens} image features and text")
        tokens = random.integers(1, vocab_size, (B, T), dtype=np.int32)
        image_index = np.full((B, T), -1, np.int32)
        image_index[:, 1 : 1 + image_tokens] = np.arange(image_tokens)
        loss_weights = np.zeros((B, T), np.float32)
        loss_weights[:, T - max(1, (T - image_tokens) // 4) - 1 : T - 1] = 1.0
        return cls(
            tokens=tokens,
            targets=np.concatenate([tokens[:, 1:], np.zeros((B, 1), np.int32)], axis=1),
            loss_weights=loss_weights,
            positions=np.broadcast_to(np.arange(T, dtype=np.int32), (B, T)).copy(),
            segments=np.ones((B, T), np.int32),
            images=Images(random.integers(0, 256, spec.images.pixels.shape, dtype=np.uint8)),
            image_index=image_index,
        )

    def to_arrays(self) -> dict[str, Array]:
        """Its arrays by name, such as "tokens" and "images/pixels", to be saved."""
        return {"/".join(key.name for key in path): leaf for path, leaf in jax.tree.leaves_with_path(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Batch:
        """The batch of which `to_arrays` gave these."""
        like = cls.spec(rows=1, tokens=1, images=1, image_size=1)
        return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in like.to_arrays()])

    def check(self, spec: Batch) -> None:
        """Raises `ValueError` with every field whose shape or dtype is not the spec's."""
        wrong = [
            f"{jax.tree_util.keystr(path)} is {have.dtype}{list(have.shape)}, expected {want.dtype}{list(want.shape)}"
            for (path, have), want in zip(jax.tree.leaves_with_path(self), jax.tree.leaves(spec), strict=True)
            if (tuple(have.shape), have.dtype) != (tuple(want.shape), want.dtype)
        ]
        if wrong:
            raise ValueError("the batch does not fit its spec: " + "; ".join(wrong))
