"""Rows of T tokens and I images out of samples.

Axis letters:
  L tokens of a sample   B rows   T token positions of a row   I image slots of a row   P features of an image
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from jaxvlm.batch import Batch
from jaxvlm.data.conversation import Sample
from jaxvlm.errors import UserError

# Samples that the planner may put into another order: enough to fill rows to 98 %, few against any data set, so that
# batches stay as mixed as the permutation made them.
PLAN_WINDOW = 2048


@dataclass(frozen=True)
class Piece:
    """A sample as it stands in a row: each image expanded to its features."""

    tokens: np.ndarray  # int32[L]; image placeholders hold the placeholder id
    targets: np.ndarray  # int32[L]; what position t must predict: the next token, 0 before an image and at the end
    loss_weights: np.ndarray  # float32[L]; the weight of that target
    image_index: np.ndarray  # int32[L]; i * P + p for feature p of the sample's image i, -1 at text


class FitError(Exception):
    """A sample that no row can hold. Attributes: `reason` (for the ledger), `problem`."""

    def __init__(self, reason: str, problem: str):
        super().__init__(problem)
        self.reason, self.problem = reason, problem


def check_row(tokens: int, features_per_image: int, where: str = "data.tokens") -> None:
    """Checks that a row of `tokens` can hold an image, a token of text before it and a token to predict behind it.

    Raises:
      UserError: with the smallest number that could, and one that leaves room for text.
    """
    least = features_per_image + 2
    if tokens < least:
        raise UserError(
            f"{where} = {tokens} cannot hold an image: it takes {features_per_image} positions, and text needs some; "
            f"set {where} to {least} at least, {-(-(features_per_image + 128) // 64) * 64} leaves room for text"
        )


def expanded_length(sample: Sample, features_per_image: int) -> int:
    """Positions that a sample takes in a row."""
    return len(sample.tokens) + int(np.count_nonzero(sample.is_image)) * (features_per_image - 1)


@dataclass(frozen=True)
class Extent:
    """How much room a sample takes in a row, in positions."""

    length: int
    images: int
    image_end: int  # the position behind its last image; 0 without one
    answer_end: int  # the position behind its first supervised token; 0 without one
    supervised: int  # tokens


def measure(sample: Sample, features_per_image: int) -> Extent:
    """The extent of a sample whose images are expanded to their features."""
    ends = np.cumsum(np.where(sample.is_image, features_per_image, 1))
    images, supervised = np.flatnonzero(sample.is_image), 1 + np.flatnonzero(sample.loss_weights[1:])
    return Extent(
        length=int(ends[-1]) if len(ends) else 0,
        images=len(images),
        image_end=int(ends[images[-1]]) if len(images) else 0,
        answer_end=int(ends[supervised[0]]) if len(supervised) else 0,
        supervised=len(supervised),
    )


def misfit(extent: Extent, *, tokens: int, images: int) -> tuple[str, str] | None:
    """Why no row of `tokens` and `images` can hold a sample, as (reason, problem), or None if one can."""
    if extent.images > images:
        return "too_many_images", f"{extent.images} images, a row has {images} (data.images)"
    if not extent.supervised:
        return "nothing_supervised", "no token of it is supervised: it has no answer"
    if extent.image_end > tokens:
        return "image_beyond_row", f"its last image ends at position {extent.image_end} of {tokens} (data.tokens)"
    if extent.answer_end > tokens:
        return "answer_beyond_row", f"its first answer begins at position {extent.answer_end} of {tokens} (data.tokens)"
    return None


def fit(sample: Sample, *, features_per_image: int, tokens: int, images: int) -> Sample:
    """The sample itself if a row can hold it, or what is left when text after its last image is cut off.

    An image is never cut, nor left out.

    Raises:
      FitError: too many images, an image beyond the end of a row, or nothing supervised (in the part that is left).
    """
    extent = measure(sample, features_per_image)
    problem = misfit(extent, tokens=tokens, images=images)
    if problem:
        raise FitError(*problem)
    if extent.length <= tokens:
        return sample
    keep = len(sample.tokens) - (extent.length - tokens)  # what is cut is text, a position each
    return Sample(sample.tokens[:keep], sample.loss_weights[:keep], sample.is_image[:keep])


def expand(sample: Sample, features_per_image: int) -> Piece:
    """Gives each image of a sample its P positions and each position its target.

    With P = 2 and an answer of weight 1::

        sample   tokens      [ 1  <im>  7  8 ]         loss_weights [ 0  0  0  1 ]   (of the token itself)
        piece    tokens      [ 1  <im> <im>  7  8 ]    targets      [ 0  0  7  8  0 ]
                 image_index [-1   0    1   -1 -1 ]    loss_weights [ 0  0  0  1  0 ]   (of the target)
    """
    P = features_per_image
    repeats = np.where(sample.is_image, P, 1)
    tokens = np.repeat(sample.tokens, repeats)
    is_image = np.repeat(sample.is_image, repeats)
    targets, loss_weights = np.zeros_like(tokens), np.zeros(len(tokens), np.float32)
    # Nothing predicts an image.
    targets[:-1] = np.where(is_image[1:], 0, tokens[1:])
    loss_weights[:-1] = np.where(is_image, 0, np.repeat(sample.loss_weights, repeats))[1:]
    image_index = np.full(len(tokens), -1, np.int32)
    image_index[is_image] = np.arange(np.count_nonzero(is_image), dtype=np.int32)
    return Piece(tokens, targets, loss_weights, image_index)


def plan_rows(
    lengths: np.ndarray, image_counts: np.ndarray, order: np.ndarray, *, tokens: int, images: int, pack: bool
) -> list[tuple[int, ...]]:
    """Decides which samples share a row; the same arguments give the same rows.

    Within a window of the order, the longest samples come first, each into the row that it fills best. Then the rows
    are put back into the order of their first samples, or long and short samples would alternate in training.

    Args:
      lengths: int[n], positions of every sample, at most `tokens`.
      image_counts: int[n], at most `images`.
      order: int[m], the samples to plan for, in the order in which training shall see them.
      tokens: T.
      images: I.
      pack: False gives each sample its own row.

    Returns:
      For each row the indices of its samples, each of `order` exactly once.
    """
    if not pack:
        return [(int(i),) for i in order]
    rows: list[tuple[int, ...]] = []
    for start in range(0, len(order), PLAN_WINDOW):
        window = order[start : start + PLAN_WINDOW]
        rows.extend(_plan_window(window, lengths[window], image_counts[window], tokens, images))
    return rows


def _plan_window(
    window: np.ndarray, lengths: np.ndarray, image_counts: np.ndarray, tokens: int, images: int
) -> list[tuple[int, ...]]:
    """Best fit, longest first. Positions in `window` stand for samples until the end."""
    rows: list[list[int]] = []
    # Rows by the image slots they have left, as sorted lists of (positions left, row): the best row is one bisection
    # away however many rows have no slots left.
    open_rows: list[list[tuple[int, int]]] = [[] for _ in range(images + 1)]
    length_of, images_of = lengths.tolist(), image_counts.tolist()
    for sample in np.argsort(-lengths, kind="stable").tolist():
        length, count = length_of[sample], images_of[sample]
        best = None
        for slots in range(count, images + 1):
            at = bisect.bisect_left(open_rows[slots], (length, -1))
            if at < len(open_rows[slots]):
                left = open_rows[slots][at][0]
                if best is None or left < best[0]:
                    best = (left, slots, at)
        if best is None:
            rows.append([sample])
            left, slots, row = tokens, images, len(rows) - 1
        else:
            left, slots, at = best
            row = open_rows[slots].pop(at)[1]
            rows[row].append(sample)
        bisect.insort(open_rows[slots - count], (left - length, row))
    ordered = sorted(sorted(row) for row in rows)
    samples = window.tolist()
    return [tuple(samples[i] for i in row) for row in ordered]


def empty_batch(spec: Batch) -> Batch:
    """A NumPy batch of the spec's shapes in which every position is padding; `fill_row` writes into it."""
    batch = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), spec)
    batch.image_index[:] = -1
    return batch


def fill_row(
    batch: Batch, row: int, pieces: Sequence[Piece], pixels: Sequence[np.ndarray], features_per_image: int
) -> None:
    """Writes samples one behind the other into a row of an empty batch; the example is in `Batch`.

    Args:
      batch: from `empty_batch`; changed.
      row: which of its rows.
      pieces: the samples.
      pixels: uint8[Y, X, 3] each, the images of all samples in their order; the k-th owns features k*P to k*P + P-1.
      features_per_image: P.
    """
    at, first_image = 0, 0
    for segment, piece in enumerate(pieces, 1):
        length = len(piece.tokens)
        here = np.s_[row, at : at + length]
        batch.tokens[here] = piece.tokens
        batch.targets[here] = piece.targets
        batch.loss_weights[here] = piece.loss_weights
        batch.positions[here] = np.arange(length)
        batch.segments[here] = segment
        is_image = piece.image_index >= 0
        batch.image_index[here] = np.where(is_image, piece.image_index + first_image * features_per_image, -1)
        first_image += int(np.count_nonzero(is_image)) // features_per_image
        at += length
    assert first_image == len(pixels), "placeholders and images were counted when the record was checked"
    for slot, image in enumerate(pixels):
        batch.images.pixels[row, slot] = image
