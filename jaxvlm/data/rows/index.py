"""The index of a run's data: facts about every record, in columns, collected before the first step.

It does not depend on the limits of the model family, on T, U or the held-out share. So it stays valid when these
change, and `inspect_data` can report the effect of other values. `measure_index` applies a layout to it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections import Counter
from collections.abc import Sequence

import numpy as np

from jaxvlm.data.cache import cached_arrays
from jaxvlm.data.media.sizes import MEDIA_REASONS
from jaxvlm.data.records import RecordError
from jaxvlm.data.rows.packing import Extent
from jaxvlm.data.rows.samples import INDEX, Facts, ImageSizes, Samples
from jaxvlm.data.workers import available_cores, worker_pool
from jaxvlm.media import MediaError, MediaExtent, MediaLayout, Size
from jaxvlm.progress import progress_bar

_CHUNK = 1000  # records that a worker process inspects at a time
_NAMED_PROBLEMS = 10
_OF_BOXES = ("boxes", "boxes_outside")
PARALLEL = 20_000  # number of records from which worker processes are worth their start-up time


@dataclasses.dataclass(frozen=True)
class Index:
    """The result of the pass over all records, for n records with N images; `Facts` explains the columns."""

    text: np.ndarray  # int32[n]; 0 if the record breaks a rule
    text_to_image: np.ndarray  # int32[n]
    text_to_answer: np.ndarray  # int32[n]
    images_to_answer: np.ndarray  # int32[n]
    images: np.ndarray  # int32[n]; number of images and videos
    supervised: np.ndarray  # int32[n]; tokens
    sides: np.ndarray  # int32[n]; 2 for a pair
    shuffles: np.ndarray  # bool[n]
    dropped_answer: np.ndarray  # bool[n]
    dropped_question: np.ndarray  # bool[n]
    boxes: np.ndarray  # int32[n]
    boxes_outside: np.ndarray  # int32[n]
    id_hash: np.ndarray  # uint64[n]
    text_hash: np.ndarray  # uint64[n]; of the turns
    image_hash: np.ndarray  # uint64[N]; of the first bytes of an image file and its size in bytes
    image_size: np.ndarray  # int32[N, 5]; the fields of `Size`
    errors: dict[int, RecordError]  # record -> the rule that it breaks, independent of the row size
    notes: dict[str, int]  # what was not read, or becomes something else than expected -> number of records

    def __len__(self) -> int:
        return len(self.text)

    @property
    def sizes(self) -> ImageSizes:
        """Sizes of images by record."""
        return ImageSizes(self.images, self.image_size)


@dataclasses.dataclass(frozen=True)
class Measured:
    """The space that each of n records takes in a row, for one layout."""

    unit: str  # name of a media unit
    length: np.ndarray  # int32[n]; positions in a row, with images expanded; 0 if the record breaks a rule
    units: np.ndarray  # int32[n]; media units
    image_end: np.ndarray  # int32[n]; the position after its last image
    answer_end: np.ndarray  # int32[n]; the position after its first supervised token
    supervised: np.ndarray  # int32[n]; tokens
    sides: np.ndarray  # int32[n]; 2 for a pair; each side contains all positions of the images
    errors: dict[int, MediaError]  # record -> why the layout cannot place one of its images in any row

    def __len__(self) -> int:
        return len(self.length)

    def extent(self, index: int) -> Extent:
        """The space that record `index` takes."""
        columns = (self.length, self.units, self.image_end, self.answer_end, self.supervised, self.sides)
        return Extent(*(int(column[index]) for column in columns))

    def misfits(self, tokens: int, units: int) -> np.ndarray:
        """bool[n]: the records without errors that fit no row of this size (`packing.misfit` gives the reason)."""
        fits = (self.units <= units) & (self.image_end <= tokens) & (self.answer_end <= tokens)
        fits &= (self.sides == 1) | (self.length <= tokens)
        return (self.length > 0) & ~fits


def measure_index(index: Index, layout: MediaLayout) -> Measured:
    """Computes the space that each record takes. Each distinct image size is measured once."""
    distinct, inverse = np.unique(index.image_size.reshape(-1, len(Size._fields)), axis=0, return_inverse=True)
    extents, problems = [], {}
    for number, size in enumerate(distinct.tolist()):
        try:
            extents.append(layout.extent(Size(*size)))
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
    """Loads the index of all records from the cache, or builds it.

    Images that failed in a cached index are checked again, because a file can be fixed without a change in the records.
    The other entries are trusted, until a run finds an image of another size: then it removes the cached index.

    Args:
      samples: the records and their renderer.
      quiet: whether to hide the progress bar.
    """
    made = cached_arrays(
        INDEX,
        samples.index_key(),
        lambda: _to_arrays(_build(samples, quiet=quiet)),
        holds=lambda kept: _same_images_fail(samples, _from_arrays(kept)),
    )
    return _from_arrays(made)


def _same_images_fail(samples: Samples, kept: Index) -> bool:
    for at, error in kept.errors.items():
        if error.reason in MEDIA_REASONS:
            try:
                samples.inspect(at)
                return False
            except RecordError as now:
                if str(now) != str(error):
                    return False
    return True


def _build(samples: Samples, *, quiet: bool) -> Index:
    """Inspects all records, in worker processes if there are many."""
    total = len(samples.source)
    chunks = [range(start, min(start + _CHUNK, total)) for start in range(0, total, _CHUNK)]
    with (
        progress_bar("checking records", total, "record", show=not quiet) as bar,
        _workers(samples, total) as inspect_chunks,
    ):
        facts: list[Index] = []
        for found in inspect_chunks(chunks):
            facts.append(found)
            bar.update(len(found))
    return _joined(facts)


@contextlib.contextmanager
def _workers(samples: Samples, total: int):
    """Yields the function that maps chunks to their parts of the index, in this process or in worker processes."""
    if total < PARALLEL or available_cores() < 2:
        yield lambda chunks: (_inspect_chunk(samples, chunk) for chunk in chunks)
        return
    with worker_pool(_set_samples, samples) as pool:
        yield lambda chunks: pool.map(_inspect_in_worker, chunks)


_samples_of_process: Samples | None = None


def _set_samples(samples: Samples) -> None:
    global _samples_of_process
    _samples_of_process = samples
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each core already has a process


def _inspect_in_worker(chunk: range) -> Index:
    assert _samples_of_process is not None
    return _inspect_chunk(_samples_of_process, chunk)


def _inspect_chunk(samples: Samples, chunk: Sequence[int]) -> Index:
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

    numbers = ("text", "text_to_image", "text_to_answer", "images_to_answer", "supervised", "sides", *_OF_BOXES)
    return Index(
        **{name: column(name, np.int32) for name in numbers},
        images=np.array([len(fact.image_hashes) for fact in facts], np.int32),
        shuffles=column("shuffles", bool),
        dropped_answer=column("dropped_answer", bool),
        dropped_question=column("dropped_question", bool),
        id_hash=column("id_hash", np.uint64),
        text_hash=column("text_hash", np.uint64),
        image_hash=np.array([number for fact in facts for number in fact.image_hashes], np.uint64),
        image_size=np.array([size for fact in facts for size in fact.sizes], np.int32).reshape(-1, len(Size._fields)),
        errors=errors,
        notes=dict(Counter(note for fact in facts for note in fact.notes)),
    )


def _joined(parts: list[Index]) -> Index:
    parts = parts or [_no_facts()]
    starts = np.cumsum([0, *map(len, parts)])
    errors = {int(start) + at: e for start, part in zip(starts, parts, strict=False) for at, e in part.errors.items()}
    notes: Counter[str] = Counter()
    for part in parts:
        notes.update(part.notes)
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS}
    return Index(**columns, errors=errors, notes=dict(notes.most_common()))


def _no_facts() -> Index:
    columns = {name: np.zeros((0, len(Size._fields)) if name == "image_size" else 0, np.int32) for name in _COLUMNS}
    columns |= {name: np.zeros(0, bool) for name in ("shuffles", "dropped_answer", "dropped_question")}
    return Index(
        **columns | {n: np.zeros(0, np.uint64) for n in ("id_hash", "text_hash", "image_hash")}, errors={}, notes={}
    )


_COLUMNS = tuple(field.name for field in dataclasses.fields(Index) if field.name not in ("errors", "notes"))


def _to_arrays(index: Index) -> dict[str, np.ndarray]:
    """Converts an index to arrays for `np.savez`; the errors become the bytes of their JSON."""
    errors = [[at, str(error), error.origin, error.reason] for at, error in index.errors.items()]
    text = json.dumps([errors, index.notes]).encode()  # ASCII: JSON escapes the surrogates of a path that is not UTF-8
    return {name: getattr(index, name) for name in _COLUMNS} | {"errors": np.frombuffer(text, np.uint8)}


def _from_arrays(arrays: dict[str, np.ndarray]) -> Index:
    saved, notes = json.loads(arrays["errors"].tobytes())
    errors = {at: RecordError(message, origin, reason) for at, message, origin, reason in saved}
    return Index(**{name: arrays[name] for name in _COLUMNS}, errors=errors, notes=notes)


def summary(errors: list[RecordError], total: int, remedy: str) -> str:
    """One message about all records that break a rule: their number for each reason, and the first ten in full."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(e.reason for e in errors).most_common())
    lines = [f"{len(errors)} of {total} records break a rule ({reasons}):"]
    lines.extend(f"  {error}" for error in errors[:_NAMED_PROBLEMS])
    if len(errors) > _NAMED_PROBLEMS:
        lines.append(f"  and {len(errors) - _NAMED_PROBLEMS} more")
    lines.append(f"Fix them, or continue without them: {remedy} counts them in the ledger.")
    return "\n".join(lines)
