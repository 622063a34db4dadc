"""The index of a run's data: facts of every record, known before the first step, in columns.

It does not depend on the family's limits, on T, U or the held-out share, so it stays valid when these change, and
`inspect_data` can report the effect of other values. `measure_index` applies a layout to it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from jaxvlm.data.cache import cached_arrays
from jaxvlm.data.media.images import IMAGE_REASONS
from jaxvlm.data.records import RecordError
from jaxvlm.data.rows.packing import Extent
from jaxvlm.data.rows.samples import Facts, ImageSizes, Samples
from jaxvlm.data.workers import available_cores, worker_pool
from jaxvlm.media import MediaError, MediaExtent, MediaLayout, Size

_VERSION = 6  # of the facts and columns; a cached index of another version is not used
_CHUNK = 1000  # records of a worker process's task
PARALLEL = 20_000  # number of records from which worker processes pay off


@dataclasses.dataclass(frozen=True)
class Index:
    """The result of one pass over n records with N images; `Facts` explains the columns."""

    text: np.ndarray  # int32[n]; 0 if the record breaks a rule
    text_to_image: np.ndarray  # int32[n]
    text_to_answer: np.ndarray  # int32[n]
    images_to_answer: np.ndarray  # int32[n]
    images: np.ndarray  # int32[n]; how many it has
    supervised: np.ndarray  # int32[n]; tokens
    sides: np.ndarray  # int32[n]; 2 of a pair
    shuffles: np.ndarray  # bool[n]
    dropped_answer: np.ndarray  # bool[n]
    id_hash: np.ndarray  # uint64[n]
    text_hash: np.ndarray  # uint64[n]; of the turns
    image_hash: np.ndarray  # uint64[N]; of what the image files begin with, and of their sizes
    image_size: np.ndarray  # int32[N, 3]; height, width and frames as shown
    errors: dict[int, RecordError]  # record -> the rule that it breaks, for rows of any size

    def __len__(self) -> int:
        return len(self.text)

    @property
    def sizes(self) -> ImageSizes:
        """Sizes of images by record."""
        return ImageSizes(self.images, self.image_size)


@dataclasses.dataclass(frozen=True)
class Measured:
    """The sizes of n records with one layout."""

    unit: str  # what a media unit is called
    length: np.ndarray  # int32[n]; positions in a row, images expanded; 0 if the record breaks a rule
    units: np.ndarray  # int32[n]; media units
    image_end: np.ndarray  # int32[n]; the position after its last image
    answer_end: np.ndarray  # int32[n]; the position after its first supervised token
    supervised: np.ndarray  # int32[n]; tokens
    sides: np.ndarray  # int32[n]; 2 of a pair, each with all positions of the images
    errors: dict[int, MediaError]  # record -> why the layout rejects an image of it for any row

    def __len__(self) -> int:
        return len(self.length)

    def extent(self, index: int) -> Extent:
        """The size of record `index`."""
        columns = (self.length, self.units, self.image_end, self.answer_end, self.supervised, self.sides)
        return Extent(*(int(column[index]) for column in columns))

    def misfits(self, tokens: int, units: int) -> np.ndarray:
        """bool[n]: the records without errors that no row of these sizes can hold; see `packing.misfit`."""
        fits = (self.units <= units) & (self.image_end <= tokens) & (self.answer_end <= tokens)
        fits &= (self.sides == 1) | (self.length <= tokens)
        return (self.length > 0) & ~fits


def measure_index(index: Index, layout: MediaLayout) -> Measured:
    """Measures each record; each distinct image size is measured once."""
    distinct, inverse = np.unique(index.image_size.reshape(-1, 3), axis=0, return_inverse=True)
    extents, problems = [], {}
    for number, size in enumerate(distinct.tolist()):
        try:
            extents.append(layout.measure(Size(*size)))
        except MediaError as error:
            problems[number] = error
            extents.append(MediaExtent(0, 0))
    of_image = np.array(extents, np.int64).reshape(-1, 2)[inverse.reshape(-1)]  # [N, 2]
    total = np.concatenate([np.zeros((1, 2), np.int64), np.cumsum(of_image, axis=0)])
    ends = np.cumsum(index.images, dtype=np.int64)
    starts = ends - index.images
    positions, units = (total[ends] - total[starts]).T
    before_answer = total[starts + index.images_to_answer, 0] - total[starts, 0]
    owner = np.repeat(np.arange(len(index)), index.images)
    bad = np.isin(inverse.reshape(-1), list(problems))
    errors = {int(owner[at]): problems[int(inverse.reshape(-1)[at])] for at in np.flatnonzero(bad)[::-1]}
    length = np.where(index.text > 0, index.text + index.sides * positions, 0)
    length[list(errors)] = 0
    columns = {
        "length": length,
        "units": units,
        "image_end": np.where(index.images > 0, index.text_to_image + positions, 0),
        "answer_end": np.where(index.supervised > 0, index.text_to_answer + before_answer, 0),
        "supervised": index.supervised,
        "sides": index.sides,
    }
    return Measured(layout.unit, **{name: column.astype(np.int32) for name, column in columns.items()}, errors=errors)


def load_index(samples: Samples, *, quiet: bool = False) -> Index:
    """The index of all records: cached by an earlier run on the same data, or made now.

    Images that failed in a cached index are checked again, because a file can be fixed without a change in the records.
    The other entries are trusted.

    Args:
      samples: the records, and how they are rendered.
      quiet: no progress bar.
    """
    key = hashlib.blake2b(f"{_VERSION} {samples.fingerprint()}".encode(), digest_size=16).hexdigest()
    made = cached_arrays(
        "index",
        key,
        lambda: _to_arrays(_build(samples, quiet=quiet)),
        holds=lambda kept: _same_images_fail(samples, _from_arrays(kept)),
    )
    return _from_arrays(made)


def _same_images_fail(samples: Samples, kept: Index) -> bool:
    for at, error in kept.errors.items():
        if error.reason in IMAGE_REASONS:
            try:
                samples.inspect(at)
                return False
            except RecordError as now:
                if str(now) != str(error):
                    return False
    return True


def _build(samples: Samples, *, quiet: bool) -> Index:
    """Reads all records, in worker processes if there are many."""
    total = len(samples.source)
    chunks = [range(start, min(start + _CHUNK, total)) for start in range(0, total, _CHUNK)]
    with (
        tqdm(total=total, desc="checking records", unit="record", delay=1.0, disable=quiet or None) as bar,
        _workers(samples, total) as go_through,
    ):
        facts: list[Index] = []
        for found in go_through(chunks):
            facts.append(found)
            bar.update(len(found))
    return _joined(facts)


@contextlib.contextmanager
def _workers(samples: Samples, total: int):
    """Yields a function that maps chunks to their parts of the index, in this process or in several."""
    if total < PARALLEL or available_cores() < 2:
        yield lambda chunks: (_go_through(samples, chunk) for chunk in chunks)
        return
    with worker_pool(_set_samples, samples) as pool:
        yield lambda chunks: pool.map(_go_through_in_worker, chunks)


_samples_of_process: Samples | None = None


def _set_samples(samples: Samples) -> None:
    global _samples_of_process
    _samples_of_process = samples
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # every core has its process


def _go_through_in_worker(chunk: range) -> Index:
    assert _samples_of_process is not None
    return _go_through(_samples_of_process, chunk)


def _go_through(samples: Samples, chunk: Sequence[int]) -> Index:
    facts: list[Facts] = []
    errors: dict[int, RecordError] = {}
    for at, index in enumerate(chunk):
        try:
            facts.append(samples.inspect(index))
        except RecordError as error:
            facts.append(Facts())
            errors[at] = error

    def column(name: str, dtype: type) -> np.ndarray:
        return np.array([getattr(fact, name) for fact in facts], dtype)

    numbers = ("text", "text_to_image", "text_to_answer", "images_to_answer", "supervised", "sides")
    return Index(
        **{name: column(name, np.int32) for name in numbers},
        images=np.array([len(fact.image_hashes) for fact in facts], np.int32),
        shuffles=column("shuffles", bool),
        dropped_answer=column("dropped_answer", bool),
        id_hash=column("id_hash", np.uint64),
        text_hash=column("text_hash", np.uint64),
        image_hash=np.array([number for fact in facts for number in fact.image_hashes], np.uint64),
        image_size=np.array([size for fact in facts for size in fact.sizes], np.int32).reshape(-1, 3),
        errors=errors,
    )


def _joined(parts: list[Index]) -> Index:
    parts = parts or [_go_through_none()]
    starts = np.cumsum([0, *map(len, parts)])
    errors = {int(start) + at: e for start, part in zip(starts, parts, strict=False) for at, e in part.errors.items()}
    return Index(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS}, errors=errors)


def _go_through_none() -> Index:
    columns = {name: np.zeros((0, 3) if name == "image_size" else 0, np.int32) for name in _COLUMNS}
    columns |= {name: np.zeros(0, bool) for name in ("shuffles", "dropped_answer")}
    return Index(**columns | {n: np.zeros(0, np.uint64) for n in ("id_hash", "text_hash", "image_hash")}, errors={})


_COLUMNS = tuple(field.name for field in dataclasses.fields(Index) if field.name != "errors")


def _to_arrays(index: Index) -> dict[str, np.ndarray]:
    """Arrays for `np.savez`: errors as the bytes of their JSON."""
    errors = [[at, str(error), error.origin, error.reason] for at, error in index.errors.items()]
    text = json.dumps(errors).encode()  # ASCII: of a path that is no UTF-8 the surrogates are escaped
    return {name: getattr(index, name) for name in _COLUMNS} | {"errors": np.frombuffer(text, np.uint8)}


def _from_arrays(arrays: dict[str, np.ndarray]) -> Index:
    saved = json.loads(arrays["errors"].tobytes())
    errors = {at: RecordError(message, origin, reason) for at, message, origin, reason in saved}
    return Index(**{name: arrays[name] for name in _COLUMNS}, errors=errors)
