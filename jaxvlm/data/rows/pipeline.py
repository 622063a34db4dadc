"""Turns records into batches: an index of all records, a schedule of rows per epoch, and random access to rows.

The epochs form one endless sequence of rows. Row r of it is a function of the data, the recipe and the seed. So the
position is one number, any worker can build any row, and a host builds only its share of a batch.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from jaxvlm.batch import Batch, num_bytes
from jaxvlm.config import DataConfig
from jaxvlm.data.records import Record, RecordError
from jaxvlm.data.rows.index import Index, Measured, load_index, measure_index, summary
from jaxvlm.data.rows.ledger import WHOLE, Ledger
from jaxvlm.data.rows.packing import check_row, misfit
from jaxvlm.data.rows.passages import cut_documents
from jaxvlm.data.rows.samples import Samples
from jaxvlm.data.rows.schedule import RowSchedule
from jaxvlm.data.sources.mix import Mix, load_mix
from jaxvlm.data.sources.prepared import PreparedSource
from jaxvlm.data.text.conversation import Renderer
from jaxvlm.data.text.tokenizer import image_token_id
from jaxvlm.data.workers import end_with_parent
from jaxvlm.errors import UserError
from jaxvlm.media import MediaLayout, Size

_CACHE_BYTES = 2**30  # decoded images are kept in memory if all of them fit into this
_BATCHES_AHEAD = 4  # training batches built in advance, each by one thread
_ENDLESS = 2**40  # batches; grain requires a length


class _BatchSource:
    """Random access to this host's share of the endless sequence of batches."""

    def __init__(
        self, samples: Samples, schedule: RowSchedule, rows: int, seed: int, process_index: int, process_count: int
    ):
        self._samples, self._schedule, self._seed = samples, schedule, seed
        self._rows, self._share = rows, rows // process_count
        self._first = process_index * self._share

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        end_with_parent()  # unpickling happens at the start of a worker process

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, index: int) -> tuple[Batch, dict[int, RecordError]]:
        """Returns the batch, and the corrupt records in it."""
        batch = _empty(self._samples, self._share)
        broken: dict[int, RecordError] = {}
        for row, (epoch, members) in enumerate(self.rows(int(index))):
            broken |= self._samples.write_row(batch, row, members, f"{self._seed}/{epoch}")
        return batch, broken

    def rows(self, index: int) -> list[tuple[int, tuple[int, ...]]]:
        """The epoch and the samples of each row of batch `index`."""
        first = index * self._rows + self._first
        return [self._schedule.find(first + row) for row in range(self._share)]


class Batches:
    """An endless iterator over this host's share of each batch, with a position that can be saved.

    The position is the number of batches returned, so it can be restored with another number of workers or hosts.

    Attributes:
      broken: record -> reason, for corrupt records found while batches were loaded. They are merged across hosts, and
        saved with the position.
    """

    def __init__(self, source: _BatchSource, workers: int, fingerprint: str):
        self._source = source
        self._workers, self._fingerprint = workers, fingerprint
        self._next = 0
        self.broken: dict[int, str] = {}
        self._iterator: Any = None

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        """Returns the next batch.

        Raises:
          RecordError: an image failed to decode; the message names the file and the record.
        """
        if self._iterator is None:
            self._iterator = iter(self._start())
        batch, broken = next(self._iterator)
        self._next += 1
        for index, error in broken.items():
            if index not in self.broken:
                print(f"\nwarning: {error}; this record is not trained on", file=sys.stderr)
                self.broken[index] = error.reason
        return batch

    def get_state(self) -> dict[str, Any]:
        """Returns the position in JSON types."""
        return {"batch": self._next, "data": self._fingerprint, "broken": list(self.broken.items())}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a position that `get_state` returned: the next batch is the one that would have followed.

        Raises:
          UserError: the position belongs to other data, or to another seed, row size or batch size.
        """
        if state["data"] != self._fingerprint:
            raise UserError(
                f"the saved position (batch {state['batch']}) belongs to other rows than these: the records, the "
                "tokenizer, config.seed, global_batch_size or a setting of data (tokens, images, pack, heldout, "
                "shuffle_turns) has changed since; undo the change, or start a new run"
            )
        self.close()
        self._next = int(state["batch"])
        self.broken = {int(index): reason for index, reason in state["broken"]}

    def close(self) -> None:
        """Stops workers and threads; the next batch starts them again."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def _start(self) -> Any:
        import grain  # imported here: it imports JAX, which processes that only read data do not need
        from absl import flags

        rest = grain.MapDataset.source(self._source)[self._next :]
        if not self._workers:
            ahead = grain.ReadOptions(num_threads=_BATCHES_AHEAD, prefetch_buffer_size=_BATCHES_AHEAD)
            return rest.to_iter_dataset(ahead)
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads absl's flags, which only programs that use absl parse
        options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=2)
        return rest.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)).mp_prefetch(options)


class Pipeline:
    """The data of one training stage.

    Attributes:
      spec: abstract global batch; each host builds `rows / process_count` rows of it.
      records: number of records read.
      heldout: number of records in the held-out set.
      layout: the media layout.
      notes: warnings about the records, and what is not read of them.
      fingerprint: a hash of everything that the plan of rows depends on; equal on all hosts that read the same data.
    """

    def __init__(
        self,
        samples: Samples,
        index: Index,
        measured: Measured,
        rows: int,
        seed: int,
        process: tuple[int, int] = (0, 1),
    ):
        """Plans rows from opened records, their index and their measured sizes; see `index_rows`."""
        self._samples, self._index, self._rows, self._process = samples, index, rows, process
        self._length = measured.length
        self.layout = samples.layout
        self._seed = seed
        config, mix = samples.config, samples.source
        self.records = len(index)
        self._errors = rejected(samples, index, measured)
        good = np.ones(self.records, bool)
        good[list(self._errors)] = False
        held = good & heldout(index, config.heldout)
        self._heldout = np.flatnonzero(held)
        trained = [
            np.flatnonzero((good & ~held)[start:end]) + start
            for start, end in zip(mix.starts[:-1], mix.starts[1:], strict=True)
        ]
        empty = [part.name for part, own in zip(mix.parts, trained, strict=True) if not len(own)]
        if empty:
            raise UserError(
                f"data.source = {', '.join(empty)} leaves no record to train on: {self.records} read, "
                f"{len(self._errors)} rejected, {len(self._heldout)} held out (data.heldout = {config.heldout})"
            )
        self.heldout = len(self._heldout)
        samples.lengths = samples.planned_lengths(measured.length, index.shuffles)
        samples.sizes = index.sizes
        # Each worker process keeps its own copy.
        needed = int(measured.units.sum()) * num_bytes(samples.layout.spec(1, 1)) * max(1, config.workers)
        samples.keep_images = needed <= _CACHE_BYTES
        weights = [part.weight for part in mix.parts]
        self._schedule = RowSchedule(
            samples.lengths, measured.units, list(zip(trained, weights, strict=True)), config, seed
        )
        self.spec = batch_spec(config, samples.layout, rows)
        self.notes = [*samples.renderer.warnings, *(f"{n:,} records: {note}" for note, n in index.notes.items())]
        self.fingerprint = _fingerprint(samples, measured.units, trained, weights, rows, seed)

    def num_rows(self, epochs: float) -> int:
        """Number of rows in `epochs`, of which the last may be partial; steps are this over `rows`, rounded up."""
        whole = int(epochs)
        before = self._schedule.end(whole - 1) if whole else 0
        part = epochs - whole
        return before + (math.ceil(part * (self._schedule.end(whole) - before)) if part else 0)

    def rows_of_epoch(self, epoch: int) -> list[tuple[int, ...]]:
        """The records of each row of an epoch, over all hosts."""
        return self._schedule.epoch(epoch)

    def batches(self) -> Batches:
        """Returns this host's share of the training batches, from the first on."""
        source = _BatchSource(self._samples, self._schedule, self._rows, self._seed, *self._process)
        return Batches(source, self._samples.config.workers, self.fingerprint)

    def look_up(self, number: int) -> tuple[Batch, list[list[dict[str, Any]]]]:
        """Rebuilds this host's share of training batch `number`, counted from 0, and lists the records of each row.

        `Samples.describe` has the form of a record; a pair gives two, the chosen side first.
        """
        source = _BatchSource(self._samples, self._schedule, self._rows, self._seed, *self._process)
        rows = source.rows(number)
        records = [[found for index in members for found in self._samples.describe(index)] for _, members in rows]
        return source[number][0], records

    def heldout_batches(self, rows: int, limit: int | None = None) -> Iterator[Batch]:
        """Yields this host's share of batches of held-out records, in the order of the files, without augmentation.

        Args:
          rows: rows of a global batch; the last batch ends in rows of padding.
          limit: the largest number of records.

        Raises:
          UserError: the rows do not divide over the hosts.
        """
        index, count = self._process
        share = _share(rows, count)
        planned = self._schedule.rows(self._heldout[:limit])
        for start in range(0, len(planned), rows):
            batch = _empty(self._samples, share)
            mine = planned[start : start + rows][index * share : (index + 1) * share]
            for row, members in enumerate(mine):
                self._samples.write_row(batch, row, members, None)
            yield batch

    def heldout_questions(self, limit: int | None = None) -> list[Record]:
        """Returns one question of each held-out record: of the first record its first, of the second its second...

        So if every record asks the same kinds of questions in the same order, all kinds occur. Truncated records are
        left out, because a late question may not fit. With `on_bad` "skip", so are corrupt records.
        """
        questions = []
        whole = self._heldout[self._length[self._heldout] <= self._samples.config.tokens]
        for number, index in enumerate(whole[:limit]):
            if self._samples.config.on_bad == "skip" and not self._samples.decodes(int(index)):
                continue
            source, _ = self._samples.source.find(int(index))
            if asked := source.questions(self._samples.record(int(index))):  # a document has none
                questions.append(asked[number % len(asked)])
        return questions

    def ledger(self, rows_used: int, broken: Mapping[int, str] | None = None) -> Ledger:
        """Makes the ledger after the first `rows_used` global rows; `broken` is `Batches.broken`, merged over hosts."""
        reached = {i: row for row in self._schedule.epoch(0)[:rows_used] for i in row}
        held = set(self._heldout.tolist())
        return Ledger.of([self._fate(i, reached.get(i), held, broken or {}) for i in range(self.records)])

    def _fate(
        self, index: int, row: tuple[int, ...] | None, heldout: set[int], broken: Mapping[int, str]
    ) -> tuple[str, str]:
        """(fate, reason) of a record; `row` is its row in the first epoch, None if training did not reach it."""
        if index in self._errors:
            return "rejected", self._errors[index].reason
        if index in broken:
            return "rejected", f"{broken[index]}, found while training"
        whole = WHOLE
        if self._index.dropped_answer[index]:
            whole = "without the answer before its first question"
        elif self._index.dropped_question[index]:
            whole = "without the question after its last answer"
        if index in heldout:
            return "heldout", whole
        if row is None:
            return "unreached", "training ended before"
        if self._length[index] > self._samples.config.tokens:
            return "truncated", "text after its last image cut at data.tokens"
        return ("used" if len(row) == 1 else "packed"), whole


def build_pipeline(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    layout: MediaLayout,
    rows: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    pairs: bool = False,
) -> Pipeline:
    """Builds the pipeline of a stage: `open_samples`, then `index_rows`."""
    samples = open_samples(config, tokenizer, layout, pairs=pairs)
    return index_rows(samples, rows=rows, seed=seed, process=(process_index, process_count))


def index_rows(samples: Samples, *, rows: int, seed: int, process: tuple[int, int] = (0, 1)) -> Pipeline:
    """Reads and checks every record, and schedules the rows.

    Args:
      samples: from `open_samples`.
      rows: B, the rows of a global batch.
      seed: seed of the order of records and of augmentation.
      process: (index, count) of this host.

    Raises:
      UserError: the rows do not divide over the hosts, or (with `config.on_bad` "fail") some records break a rule.
    """
    _share(rows, process[1])
    index = load_index(samples, quiet=process[0] > 0)
    measured = measure_index(index, samples.layout)
    errors = rejected(samples, index, measured)
    if errors and samples.config.on_bad == "fail":
        raise UserError(summary(list(errors.values()), len(index), 'data.on_bad = "skip"'))
    return Pipeline(samples, index, measured, rows, seed, process)


def batch_spec(config: DataConfig, layout: MediaLayout, rows: int) -> Batch:
    """Makes the abstract global batch of a stage."""
    media = layout.spec(rows, config.media.units)
    return Batch.spec(rows=rows, tokens=config.tokens, media=media, position_axes=layout.position_axes)


def open_samples(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    layout: MediaLayout,
    mix: Mix | None = None,
    *,
    pairs: bool = False,
    date: str = "",
) -> Samples:
    """Opens the sources of a stage, and builds the renderer of its template.

    Args:
      mix: the sources, if they are already open.
      pairs: whether the objective learns from pairs, of which only the last answers are supervised.

    Raises:
      UserError: a setting or a source is invalid.
    """
    check_settings(config, layout)
    layout = layout.with_tokenizer(tokenizer)
    renderer = Renderer(
        tokenizer,
        config.template,
        image_token_id=image_token_id(tokenizer),
        system=config.system,
        answers="last" if pairs else config.answers,
        control_tokens=config.control_tokens,
        stop_tokens=config.stop_tokens,
        date=date,
        video_text=layout.video_text,
    )
    mix = load_mix(config) if mix is None else mix
    for part in mix.parts:
        if isinstance(part.source, PreparedSource):
            part.source.check_images(layout.settings())
    if renderer.takes_documents:
        mix = cut_documents(mix, renderer, config.tokens)
    return Samples(mix, renderer, config, layout, pairs=pairs)


def rejected(samples: Samples, index: Index, measured: Measured) -> dict[int, RecordError]:
    """Maps each record that breaks a rule to its error, in the order of records; checks layout and row size too.

    Raises:
      UserError: rows are too short for any image.
    """
    tokens, units = samples.config.tokens, samples.config.media.units
    if index.images.any():
        check_row(tokens, samples.layout.least_positions)
    problems = {at: (error.reason, error.problem) for at, error in measured.errors.items()}
    for at in map(int, np.flatnonzero(measured.misfits(tokens, units))):
        problem = misfit(measured.extent(at), tokens=tokens, units=units, unit=measured.unit)
        assert problem is not None  # `misfits` checks the same conditions
        problems[at] = problem
    errors = dict(index.errors)
    for at, (reason, problem_text) in problems.items():
        origin = samples.source.origin(at)
        errors[at] = RecordError(f"{origin}: {problem_text}", origin, reason)
    return dict(sorted(errors.items()))


def heldout(index: Index, share: float) -> np.ndarray:
    """bool[n]: the records of the held-out set."""
    return index.id_hash < np.uint64(share * 2.0**64) if share else np.zeros(len(index), bool)


def check_settings(config: DataConfig, layout: MediaLayout) -> None:
    """Raises `UserError` that lists every invalid data setting of a stage."""
    problems = []
    if config.on_bad not in ("fail", "skip"):
        problems.append(f'data.on_bad = {config.on_bad!r}, expected "fail" or "skip"')
    if not 0 <= config.heldout < 1:
        problems.append(f"data.heldout = {config.heldout}, expected a share of at least 0 and less than 1")
    least = {"tokens": 2, "media.units": 0, "workers": 0, "augment.shift": 0}
    values = {"tokens": config.tokens, "media.units": config.media.units, "workers": config.workers}
    values["augment.shift"] = config.augment.shift
    problems.extend(f"data.{k} = {v}, expected {least[k]} or more" for k, v in values.items() if v < least[k])
    problems.extend(layout.problems(config.augment.shift))
    used = {config.boxes, *(options.boxes or "" for _, options in config.mix)} - {""}
    if used and layout.box_space(Size(64, 64)) is None:
        problems.append(f'data.boxes = "{min(used)}", expected "": models of this family have no coordinates in texts')
    elif used and (config.augment.flip or config.augment.shift):
        problems.append(
            "data.augment.flip and shift would move images away from the boxes of data.boxes; leave them out"
        )
    if problems:
        raise UserError("; ".join(problems))


def _share(rows: int, process_count: int) -> int:
    if rows < 1 or rows % process_count:
        raise UserError(
            f"a batch of {rows} rows does not divide over {process_count} hosts; use a multiple of {process_count}"
        )
    return rows // process_count


def _empty(samples: Samples, rows: int) -> Batch:
    return Batch.empty(batch_spec(samples.config, samples.layout, rows))


def _fingerprint(
    samples: Samples, units: np.ndarray, trained: list[np.ndarray], weights: list[float], rows: int, seed: int
) -> str:
    """A hash of everything that the plan of rows depends on."""
    config = samples.config
    settings = json.dumps([rows, seed, config.tokens, config.media.units, config.pack, weights])
    digest = hashlib.blake2b(settings.encode(), digest_size=8)
    for array in (samples.lengths, units, *trained):
        digest.update(array.tobytes())
    return digest.hexdigest()
