"""The index of a run's data: what is known of every record before the first step, in columns.

It knows nothing of T, I or the held-out share, so it stays valid when these change, and `inspect_data` can say what
other values would mean.
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
from jaxvlm.data.rows.samples import Facts, Samples
from jaxvlm.data.workers import available_cores, worker_pool

_VERSION = 4  # of what is looked for and what the columns mean; a kept index of another one is not used
_CHUNK = 1000  # records that a worker process goes through at a time
PARALLEL = 20_000  # records from which on starting worker processes pays


@dataclasses.dataclass(frozen=True)
class Index:
    """What the pass over all records found, for n records."""

    length: np.ndarray  # int32[n]; positions in a row, images expanded; 0 if the record breaks a rule
    images: np.ndarray  # int32[n]
    image_end: np.ndarray  # int32[n]; the position behind its last image
    answer_end: np.ndarray  # int32[n]; the position behind its first supervised token
    supervised: np.ndarray  # int32[n]; tokens
    shuffles: np.ndarray  # bool[n]; its rounds have a meaning in another order
    dropped_answer: np.ndarray  # bool[n]; an assistant turn stood before the first question
    id_hash: np.ndarray  # uint64[n]
    text_hash: np.ndarray  # uint64[n]; of the turns
    image_hash: np.ndarray  # uint64[sum of images]; of what the image files begin with, and of their sizes
    errors: dict[int, RecordError]  # record -> the rule that it breaks, whatever the rows are

    def __len__(self) -> int:
        return len(self.length)

    def extent(self, index: int) -> Extent:
        """The room that record `index` takes."""
        columns = (self.length, self.images, self.image_end, self.answer_end, self.supervised)
        return Extent(*(int(column[index]) for column in columns))

    def misfits(self, tokens: int, images: int) -> np.ndarray:
        """bool[n]: the records without errors that no row of these sizes can hold (`packing.misfit` says why)."""
        fits = (self.images <= images) & (self.image_end <= tokens) & (self.answer_end <= tokens)
        return (self.length > 0) & ~fits


def load_index(samples: Samples, *, quiet: bool = False) -> Index:
    """The index of all records: kept from an earlier run on the same data, or made now.

    Of kept ones the images that could not be used are looked at again, because files are mended without a change in the
    records. That others are still what they were is taken on trust.

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
    """Goes through all records, in worker processes if there are many."""
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
    """The function that maps chunks to their parts of the index, in this process or in several."""
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

    names = [field.name for field in dataclasses.fields(Extent)]
    extents = np.array([dataclasses.astuple(fact.extent) for fact in facts], np.int32).reshape(-1, len(names))
    return Index(
        **dict(zip(names, extents.T.copy(), strict=True)),
        shuffles=column("shuffles", bool),
        dropped_answer=column("dropped_answer", bool),
        id_hash=column("id_hash", np.uint64),
        text_hash=column("text_hash", np.uint64),
        image_hash=np.array([number for fact in facts for number in fact.image_hashes], np.uint64),
        errors=errors,
    )


def _joined(parts: list[Index]) -> Index:
    parts = parts or [Index(**{name: np.zeros(0, dtype) for name, dtype in _columns().items()}, errors={})]
    starts = np.cumsum([0, *map(len, parts)])
    errors = {int(start) + at: e for start, part in zip(starts, parts, strict=False) for at, e in part.errors.items()}
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _columns()}
    return Index(**columns, errors=errors)


def _columns() -> dict[str, type]:
    named: dict[str, type] = {"shuffles": bool, "dropped_answer": bool}
    named |= dict.fromkeys(("id_hash", "text_hash", "image_hash"), np.uint64)
    return {f.name: named.get(f.name, np.int32) for f in dataclasses.fields(Index) if f.name != "errors"}


def _to_arrays(index: Index) -> dict[str, np.ndarray]:
    """Arrays for `np.savez`: errors as the bytes of their JSON."""
    errors = [[at, str(error), error.origin, error.reason] for at, error in index.errors.items()]
    text = json.dumps(errors).encode()  # ASCII: of a path that is no UTF-8 the surrogates are escaped
    return {name: getattr(index, name) for name in _columns()} | {"errors": np.frombuffer(text, np.uint8)}


def _from_arrays(arrays: dict[str, np.ndarray]) -> Index:
    saved = json.loads(arrays["errors"].tobytes())
    errors = {at: RecordError(message, origin, reason) for at, message, origin, reason in saved}
    return Index(**{name: arrays[name] for name in _columns()}, errors=errors)
