"""Rows of T tokens and I images out of samples.

Axis letters:
  L tokens of a sample   B rows   T token positions of a row   I image slots of a row   P features of an image
"""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from jaxvlm.batch import Batch
from jaxvlm.data.text.conversation import Sample
from jaxvlm.errors import UserError

# Places of the order that a row may take samples from, counted from the oldest that waits: few, so that batches stay as
# mixed as the permutation made them. 2048 fill rows of LLaVA's mixture no better, 128 leave 0.2 % more padding.
PLAN_WINDOW = 512


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

    A row begins with the oldest sample that waits, takes more in the order's turn until one or two others close it
    exactly, and ends with the best two if none do. It looks at the order no further than `PLAN_WINDOW` places from its
    first sample on. So with the samples of all rows written one behind the other, each stands less than `PLAN_WINDOW`
    places from its own in `order`, to either side, and rows come in the order of their first samples.

    Args:
      lengths: int[n], positions of every sample, at most `tokens`.
      image_counts: int[n], at most `images`.
      order: int[m], the samples to plan for, in the order in which training shall see them.
      tokens: T.
      images: I.
      pack: False gives each sample its own row.

    Returns:
      For each row the indices of its samples, in their order; each of `order` exactly once.
    """
    samples = order.tolist()
    if not pack:
        return [(sample,) for sample in samples]
    pool = _Pool(lengths[order].tolist(), image_counts[order].tolist())
    rows, entered = [], 0
    while entered < len(samples) or pool.waiting:
        oldest = next(iter(pool.waiting), entered)
        while entered < min(len(samples), oldest + PLAN_WINDOW):
            pool.add(entered)
            entered += 1
        rows.append(tuple(samples[place] for place in sorted(pool.take_row(tokens, images))))
    return rows


class _Pool:
    """Samples that wait for a row; each is known by its place in the order.

    Attributes:
      waiting: their places, oldest first.
    """

    def __init__(self, lengths: list[int], image_counts: list[int]):
        self.waiting: OrderedDict[int, None] = OrderedDict()
        self._lengths, self._image_counts = lengths, image_counts
        # (length, -place), sorted: the oldest of equal lengths last. One list for each number of images, most first.
        self._sorted: dict[int, list[tuple[int, int]]] = {n: [] for n in sorted(set(image_counts), reverse=True)}

    def add(self, place: int) -> None:
        """A sample begins to wait."""
        self.waiting[place] = None
        bisect.insort(self._sorted[self._image_counts[place]], (self._lengths[place], -place))

    def take_row(self, room: int, slots: int) -> list[int]:
        """Takes the oldest sample, and what fills `room` positions and `slots` image slots with it, out of the pool."""
        row: list[int] = []
        place: int | None = next(iter(self.waiting))
        while place is not None:
            row.append(self._take(place))
            room, slots = room - self._lengths[place], slots - self._image_counts[place]
            groups = [(count, group) for count, group in self._sorted.items() if group and count <= slots]
            shortest = min([group[0][0] for _, group in groups], default=room + 1)
            more = 3 * shortest <= room  # may fit, so two shall only end the row if they fill it
            ending = _ending(groups, room, slots, shortest, least=room if more else 1)
            if ending or not more:
                return row + [self._take(place) for place in ending]
            place = next((p for p in self.waiting if self._lengths[p] <= room and self._image_counts[p] <= slots), None)
        return row

    def _take(self, place: int) -> int:
        del self.waiting[place]
        group = self._sorted[self._image_counts[place]]
        del group[bisect.bisect_left(group, (self._lengths[place], -place))]
        return place


def _ending(
    groups: list[tuple[int, list[tuple[int, int]]]], room: int, slots: int, shortest: int, *, least: int
) -> list[int]:
    """The one or two samples that fill `room` best, none if that is below `least`; of equal pairs the most unequal.

    Args:
      groups: (images, what waits with so many) as in `_Pool`, none with more than `slots`.
      shortest: of all their lengths.
    """
    best, ending = least - 1, []
    for _, group in groups:
        at = bisect.bisect_right(group, (room, 0)) - 1
        if at >= 0 and group[at][0] > best:
            best, ending = group[at][0], [-group[at][1]]
    for count, group in groups:
        fitting = [partners for other, partners in groups if count + other <= slots]
        # The longer sample of a pair, the longest first.
        for at in range(bisect.bisect_right(group, (room - shortest, 0)) - 1, -1, -1):
            length, place = group[at]
            if best == room or 2 * length <= best:
                break
            limit = (min(length, room - length), 0)
            for partners in fitting:
                end = bisect.bisect_right(partners, limit, hi=at if partners is group else None)
                if end and length + partners[end - 1][0] > best:
                    best, ending = length + partners[end - 1][0], [-place, -partners[end - 1][1]]
    return ending


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
