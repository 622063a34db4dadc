"""Patches of 4 x 4 pixels, at most 4 rows and 6 columns of them; two neighbours in a row of patches are one feature."""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxvlm.batch import ArraySpec
from jaxvlm.data.media.images import decode
from jaxvlm.media import MediaError, MediaExtent, MediaLayout, Picture, Size

PATCH, ROWS, PAIRS = 4, 4, 3


class Patches(NamedTuple):
    pixels: np.ndarray  # uint8[B, U, 4, 4, 3]
    places: np.ndarray  # int32[B, U, 2]; row and column in its image
    images: np.ndarray  # int32[B, U]; 1, 2, ... per image of the row, 0 is padding


def grid(size):
    return int(np.clip(round(size.height / PATCH), 1, ROWS)), 2 * int(np.clip(round(size.width / PATCH / 2), 1, PAIRS))


class ToyLayout(MediaLayout):
    unit, position_axes, least_positions, least_units = "patches", 3, 1, 2

    def settings(self):
        return {"patch": PATCH, "rows": ROWS, "pairs": PAIRS}

    def measure(self, size):
        if max(size[:2]) > 20 * min(size[:2]):
            raise MediaError("image_ratio", f"an image of {size.width} x {size.height} pixels is longer than 20:1")
        rows, columns = grid(size)
        return MediaExtent(rows * columns // 2, rows * columns)

    def spec(self, rows, units):
        return Patches(
            ArraySpec.of((rows, units, PATCH, PATCH, 3), np.uint8),
            ArraySpec.of((rows, units, 2), np.int32),
            ArraySpec.of((rows, units), np.int32),
        )

    def _resized(self, source, origin):
        image = decode(source, origin)
        rows, columns = grid(size_of(image))
        return np.asarray(image.resize((columns * PATCH, rows * PATCH), Image.Resampling.BICUBIC))

    def load(self, source, origin, *, exact):
        return cut(self._resized(source, origin))

    def blank(self, size):
        rows, columns = grid(size)
        return np.zeros((rows, columns, PATCH, PATCH, 3), np.uint8)

    def augment(self, loaded, random, *, flip, shift):
        return loaded[:, ::-1, :, ::-1] if random.random() < 0.5 and flip else loaded

    def units_of(self, loaded):
        return loaded.shape[0] * loaded.shape[1]

    def write(self, media, row, at, loaded):
        rows, columns = loaded.shape[:2]
        here = np.s_[row, at : at + rows * columns]
        media.pixels[here] = loaded.reshape(-1, PATCH, PATCH, 3)
        media.places[here] = np.indices((rows, columns)).reshape(2, -1).T
        media.images[here] = media.images[row].max() + 1
        return at // 2 + np.arange(rows * columns // 2, dtype=np.int32)

    def positions(self, image_index, sizes):
        """Text counts up on all axes; an image adds its rows and columns, and text goes on after the largest."""
        positions, at, now = np.zeros((len(image_index), 3), np.int32), 0, 0
        sizes = iter(sizes)
        while at < len(image_index):
            if image_index[at] < 0:
                positions[at], at, now = now, at + 1, now + 1
                continue
            rows, columns = grid(next(sizes))
            cells = np.indices((1, rows, columns // 2)).reshape(3, -1).T
            positions[at : at + len(cells)] = now + cells
            at, now = at + len(cells), now + max(rows, columns // 2)
        return positions

    def preview(self, media, row):
        pictures, images = [], np.asarray(media.images[row])
        for number in range(1, int(images.max(initial=0)) + 1):
            own = np.flatnonzero(images == number)
            rows, columns = media.places[row][own[-1]] + 1
            patches = media.pixels[row][own].reshape(rows, columns, PATCH, PATCH, 3)
            pixels = patches.transpose(0, 2, 1, 3, 4).reshape(rows * PATCH, columns * PATCH, 3)
            pictures.append(Picture(pixels, np.unique(own // 2).astype(np.int32)))
        return pictures

    def store(self, source, origin, jpeg):
        kept = io.BytesIO()
        Image.fromarray(self._resized(source, origin)).save(kept, "PNG")
        return kept.getvalue()


def size_of(image):
    return Size(image.height, image.width)


def cut(pixels):
    rows, columns = pixels.shape[0] // PATCH, pixels.shape[1] // PATCH
    return pixels.reshape(rows, PATCH, columns, PATCH, 3).transpose(0, 2, 1, 3, 4)


def make_layout(model, media):
    return ToyLayout()
