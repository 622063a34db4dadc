"""Packs samples into rows of T tokens and U media units.

Axis letters:
  L tokens of a sample   B rows   T token positions of a row   U media units of a row   A position axes (1 or 3)
"""

from __future__ import annotations

import bisect
import itertools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxvlm.batch import Batch
from jaxvlm.data.sample import Sample
from jaxvlm.errors import UserError
from jaxvlm.media import MediaExtent, MediaLayout, Size

# A row may take samples from this many places of the order, counted from the oldest waiting sample. The number is small
# so that batches stay as mixed as the permutation. On LLaVA's mixture 2048 gives no fuller rows, and 128 gives 0.2 %
# more padding.
PLAN_WINDOW = 512
# The search for a row's last two samples rounds numbers of media units to this many classes. With 300 numbers of
# patches, 32 classes pack 24,000 samples a second (exact: 1,300) into 0.0 to 0.6 % more rows; 16 classes, 1.8 % more.
UNIT_CLASSES = 32


@dataclass(frozen=True)
class Piece:
    """A sample in the form in which a row stores it: each image is expanded to its positions."""

    tokens: np.ndarray  # int32[L]; an image position has the placeholder id
    targets: (
        np.ndarray
    )  # int32[L]; the token that position t must predict: the next one, 0 before an image and at the end
    loss_weights: np.ndarray  # float32[L]; the weight of that target
    image_index: np.ndarray  # int32[L]; k at the k-th feature of the sample's images, -1 at text
    positions: np.ndarray  # int32[L] or int32[L, A]
    shares_media: bool = False  # uses the features of the piece before it: the rejected side of a pair


class FitError(Exception):
    """A sample fits no row. Attributes: `reason` (for the ledger), `problem`."""

    def __init__(self, reason: str, problem: str):
        super().__init__(problem)
        self.reason, self.problem = reason, problem


def check_row(tokens: int, least_positions: int, where: str = "data.tokens") -> None:
    """Checks that a row of `tokens` has room for an image, a text token before it and a token to predict after it.

    Args:
      least_positions: the fewest positions that an image takes, `MediaLayout.least_positions`.

    Raises:
      UserError: it has not; the message gives the smallest number that has, and one that leaves room for text.
    """
    least = least_positions + 2
    if tokens < least:
        raise UserError(
            f"{where} = {tokens} is too short for an image: it takes {least_positions} positions, and text needs some; "
            f"set {where} to at least {least}; {-(-(least_positions + 128) // 64) * 64} leaves room for text"
        )


@dataclass(frozen=True)
class Extent:
    """The space that a sample takes in a row."""

    length: int  # positions
    units: int  # media units
    image_end: int  # the position after its last image; 0 without one
    answer_end: int  # the position after its first supervised token; 0 without one
    supervised: int  # tokens
    sides: int = 1  # 2 for a pair, which is never truncated


def measure(sample: Sample, images: Sequence[MediaExtent]) -> Extent:
    """Computes the extent of a sample whose images have the given extents."""
    widths = np.ones(len(sample.tokens), np.int64)
    widths[sample.is_image] = [image.positions for image in images]
    ends = np.cumsum(widths)
    places, supervised = np.flatnonzero(sample.is_image), 1 + np.flatnonzero(sample.loss_weights[1:])
    return Extent(
        length=int(ends[-1]) if len(ends) else 0,
        units=sum(image.units for image in images),
        image_end=int(ends[places[-1]]) if len(places) else 0,
        answer_end=int(ends[supervised[0]]) if len(supervised) else 0,
        supervised=len(supervised),
    )


def misfit(extent: Extent, *, tokens: int, units: int, unit: str) -> tuple[str, str] | None:
    """Returns (reason, problem) if a sample does not fit into a row of `tokens` and `units`, else None.

    Args:
      unit: name of a media unit, `MediaLayout.unit`.
    """
    if extent.units > units:
        return f"too_many_{unit}", f"{extent.units} {unit}, a row has room for {units} (data.media.units)"
    if not extent.supervised:
        return "nothing_supervised", "none of its tokens is supervised: it has no answer"
    if extent.sides > 1 and extent.length > tokens:
        return "pair_beyond_row", f"its two sides take {extent.length} positions, a row has {tokens} (data.tokens)"
    if extent.image_end > tokens:
        return (
            "image_beyond_row",
            f"its last image ends at position {extent.image_end}, a row has {tokens} (data.tokens)",
        )
    if extent.answer_end > tokens:
        return (
            "answer_beyond_row",
            f"its first answer begins at position {extent.answer_end}, a row has {tokens} (data.tokens)",
        )
    return None


def fit(sample: Sample, images: Sequence[MediaExtent], *, tokens: int, units: int, unit: str) -> Sample:
    """Returns the sample itself if it fits into a row, else the sample with text after its last image cut off.

    Images are never cut or left out.

    Raises:
      FitError: it has too many media units, an image beyond the end of a row, or no supervised token within a row.
    """
    extent = measure(sample, images)
    problem = misfit(extent, tokens=tokens, units=units, unit=unit)
    if problem:
        raise FitError(*problem)
    if extent.length <= tokens:
        return sample
    keep = len(sample.tokens) - (extent.length - tokens)  # only text is cut, and each text token takes one position
    return Sample(sample.tokens[:keep], sample.loss_weights[:keep], sample.is_image[:keep])


def expand(sample: Sample, sizes: Sequence[Size], layout: MediaLayout) -> Piece:
    """Expands each image of a sample to its positions, and gives each position its target.

    With images of two positions and an answer of weight 1::

        sample   tokens      [ 1  <im>  7  8 ]         loss_weights [ 0  0  0  1 ]   (of the token itself)
        piece    tokens      [ 1  <im> <im>  7  8 ]    targets      [ 0  0  7  8  0 ]
                 image_index [-1   0    1   -1 -1 ]    loss_weights [ 0  0  0  1  0 ]   (of the target)
    """
    places = np.flatnonzero(sample.is_image)
    runs = [layout.expand(int(sample.tokens[at]), size) for at, size in zip(places, sizes, strict=True)]
    repeats = np.ones(len(sample.tokens), np.int64)
    repeats[places] = [len(tokens) for tokens, _ in runs]
    tokens = np.repeat(sample.tokens, repeats)
    is_image = np.repeat(sample.is_image, repeats)  # positions of images, including text that the layout adds to them
    is_feature = np.zeros(len(tokens), bool)
    if runs:
        tokens[is_image] = np.concatenate([run for run, _ in runs])
        is_feature[is_image] = np.concatenate([features for _, features in runs])
    targets, loss_weights = np.zeros_like(tokens), np.zeros(len(tokens), np.float32)
    # No position predicts an image.
    targets[:-1] = np.where(is_image[1:], 0, tokens[1:])
    loss_weights[:-1] = np.where(is_image, 0, np.repeat(sample.loss_weights, repeats))[1:]
    image_index = np.full(len(tokens), -1, np.int32)
    image_index[is_feature] = np.arange(np.count_nonzero(is_feature), dtype=np.int32)
    return Piece(tokens, targets, loss_weights, image_index, layout.positions(image_index, sizes))


def plan_rows(
    lengths: np.ndarray, units: np.ndarray, order: np.ndarray, *, tokens: int, budget: int, pack: bool
) -> list[tuple[int, ...]]:
    """Decides which samples share a row; the same arguments give the same rows.

    This is greedy bin packing with a look-ahead of `PLAN_WINDOW` samples. A row begins with the oldest waiting sample.
    It takes the next samples that fit, in their order, until one or two others fill it exactly. If none do, it ends
    with the one or two that fill it best.

    A row takes samples only from the `PLAN_WINDOW` places of the order that begin at its first sample. So in the
    concatenation of all rows, each sample is less than `PLAN_WINDOW` places before or after its place in `order`. Rows
    are sorted by their first samples.

    Args:
      lengths: int[n], positions of every sample, at most `tokens`.
      units: int[n], media units of every sample, at most `budget`.
      order: int[m], the samples to plan for, in the order in which training should see them.
      tokens: T.
      budget: U.
      pack: False gives each sample its own row.

    Returns:
      For each row the indices of its samples, in the order of `order`; each sample of `order` occurs exactly once.
    """
    samples = order.tolist()
    if not pack:
        return [(sample,) for sample in samples]
    pool = _Pool(lengths[order].tolist(), units[order].tolist())
    rows, entered = [], 0
    while entered < len(samples) or pool.waiting:
        oldest = next(iter(pool.waiting), entered)
        while entered < min(len(samples), oldest + PLAN_WINDOW):
            pool.add(entered)
            entered += 1
        rows.append(tuple(samples[place] for place in sorted(pool.take_row(tokens, budget))))
    return rows


class _Pool:
    """Samples that wait for a row; each is identified by its place in the order.

    Attributes:
      waiting: places of the samples, oldest first.
    """

    def __init__(self, lengths: list[int], units: list[int]):
        self.waiting: OrderedDict[int, None] = OrderedDict()
        self._lengths, self._units = lengths, units
        self._classes = _classes(units)
        # For each class of units, most first, a sorted list of (length, -place): of equal lengths the oldest is last.
        self._sorted: dict[int, list[tuple[int, int]]] = {n: [] for n in sorted(set(self._classes), reverse=True)}

    def add(self, place: int) -> None:
        """Adds a sample to the pool."""
        self.waiting[place] = None
        bisect.insort(self._sorted[self._classes[place]], (self._lengths[place], -place))

    def take_row(self, room: int, slots: int) -> list[int]:
        """Removes the oldest sample from the pool, with others that fill `room` positions and `slots` media units."""
        row: list[int] = []
        taken = [next(iter(self.waiting))]
        while taken:
            for place in taken:
                row.append(self._take(place))
                room, slots = room - self._lengths[place], slots - self._units[place]
            if not room:
                break
            groups = [(count, group) for count, group in self._sorted.items() if group and count <= slots]
            shortest = min([group[0][0] for _, group in groups], default=room + 1)
            more = 3 * shortest <= room  # three more may fit, so up to two may end the row only if they fill it
            taken = _ending(groups, room, slots, shortest, least=room if more else 1)
            if not taken:
                fits = (p for p in self.waiting if self._lengths[p] <= room and self._units[p] <= slots)
                taken = list(itertools.islice(fits, 1))
        return row

    def _take(self, place: int) -> int:
        del self.waiting[place]
        group = self._sorted[self._classes[place]]
        del group[bisect.bisect_left(group, (self._lengths[place], -place))]
        return place


def _classes(units: list[int]) -> list[int]:
    """Rounds numbers of media units up to `UNIT_CLASSES` classes, unless only few are distinct, as for images."""
    if len(set(units)) <= UNIT_CLASSES:
        return units
    width = -(-max(units) // UNIT_CLASSES)
    return [-(-n // width) * width for n in units]


def _ending(
    groups: list[tuple[int, list[tuple[int, int]]]], room: int, slots: int, shortest: int, *, least: int
) -> list[int]:
    """Finds the one or two samples that fill `room` best; none if they fill less than `least` positions.

    Of pairs that fill it equally, it takes the one with the longest sample.

    Args:
      groups: (class of media units, waiting samples of the class) as in `_Pool`, none with more than `slots`.
      shortest: the shortest length among all groups.
    """
    best, ending = least - 1, []
    for _, group in groups:
        at = bisect.bisect_right(group, (room, 0)) - 1
        if at >= 0 and group[at][0] > best:
            best, ending = group[at][0], [-group[at][1]]
    for count, group in groups:
        fitting = [partners for other, partners in groups if count + other <= slots]
        # `at` is the longer sample of a pair; try the longest first.
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


def fill_row(
    batch: Batch, row: int, pieces: Sequence[Piece], loaded: Sequence[np.ndarray], layout: MediaLayout
) -> None:
    """Writes samples one after another into a row of an empty batch; `Batch` shows an example.

    Args:
      batch: the batch, from `Batch.empty`; it is changed.
      row: index of the row.
      pieces: the samples.
      loaded: the results of `layout.load` for the images of all samples, in their order.
    """
    features = _write_media(batch, row, loaded, layout)
    at, first, end = 0, 0, 0
    for segment, piece in enumerate(pieces, 1):
        length = len(piece.tokens)
        here = np.s_[row, at : at + length]
        batch.tokens[here] = piece.tokens
        batch.targets[here] = piece.targets
        batch.loss_weights[here] = piece.loss_weights
        batch.positions[here] = piece.positions
        batch.segments[here] = segment
        is_feature = piece.image_index >= 0
        first = first if piece.shares_media else end
        batch.image_index[here][is_feature] = features[first + piece.image_index[is_feature]]
        end = first + int(np.count_nonzero(is_feature))
        at += length
    assert end == len(features), "placeholders and images differ, though they were counted when the record was checked"


def _write_media(batch: Batch, row: int, loaded: Sequence[np.ndarray], layout: MediaLayout) -> np.ndarray:
    """Writes images into a row. Returns int32[K]: the row's feature for each feature position, in order."""
    at, features = 0, [np.zeros(0, np.int32)]
    for image in loaded:
        features.append(layout.write(batch.media, row, at, image))
        at += layout.units_of(image)
    return np.concatenate(features)
