"""The engine: a model with its weights that answers records, at once or token by token."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxvlm.batch import Array, Batch
from jaxvlm.config import DataConfig
from jaxvlm.data.records import Record
from jaxvlm.data.text.conversation import Renderer
from jaxvlm.data.text.tokenizer import image_token_id
from jaxvlm.errors import UserError
from jaxvlm.families.registry import media_layout
from jaxvlm.inference.decoding import Decoding, Stream
from jaxvlm.inference.likelihood import LogLikelihood, score_batches
from jaxvlm.inference.programs import Programs, Requests
from jaxvlm.inference.prompts import Prompt, build_answered, build_batch, build_prompts, group
from jaxvlm.inference.sampling import GREEDY, Sampling
from jaxvlm.media import MediaLayout, Medium, VideoText
from jaxvlm.models.vlm import Model
from jaxvlm.progress import progress_bar
from jaxvlm.restore import Run
from jaxvlm.sharding import Placement, Rules, batch_devices, placed, rows_of_this_host, to_devices

Item = TypeVar("Item")
Made = TypeVar("Made")

# Decoded images that a call caches; few, since the questions about an image are neighbours.
_KEPT_IMAGES = 64


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer to a record."""

    text: str
    tokens: int  # without the one that ended it
    truncated: bool  # whether it ended at the length limit


@dataclasses.dataclass(frozen=True, eq=False)
class Engine:
    """Answers records with a model. On several hosts all make the same calls, and get the same results.

    Programs are compiled at the first use of a shape and shared by all engines of equal models: other weights, limits
    and samplings compile nothing.

    Attributes:
      params: nested dict of the whole model's weights, on `mesh`.
      data: template, system message, aspect of images, and `tokens`, which no prompt may exceed.
    """

    model: Model
    params: dict
    tokenizer: Any
    data: DataConfig
    mesh: Mesh
    rules: Rules
    date: str = ""  # for chat templates that write it; "": today's

    @classmethod
    def of(cls, run: Run) -> Self:
        """The engine of an opened run."""
        return cls(run.model, run.params, run.tokenizer, run.stage.data, run.mesh, run.rules, run.config.date)

    @functools.cached_property
    def renderer(self) -> Renderer:
        """Renders prompts and decodes answers."""
        data = self.data
        tokens = (data.control_tokens, data.stop_tokens)
        return _renderer(self.tokenizer, data.template, data.system, *tokens, self.date, self.layout.video_text)

    @functools.cached_property
    def layout(self) -> MediaLayout:
        """The media layout of a row."""
        return media_layout(self.model.config, self.data).with_tokenizer(self.tokenizer)

    @functools.cached_property
    def programs(self) -> Programs:
        """The compiled `encode`, `prefill` and `step`."""
        return Programs(self.model, self.params, self.renderer.stop_ids, Placement(self.mesh, self.rules))

    @functools.cached_property
    def open_ids(self) -> frozenset[int]:
        """The tokens of a SentencePiece vocabulary that are bytes, and all special tokens; see `AnswerText`."""
        vocab = self.tokenizer.get_vocab()
        spelled = (f"<0x{byte:02X}>" for byte in range(256))
        return frozenset(vocab[token] for token in spelled if token in vocab) | set(self.tokenizer.all_special_ids)

    def answer(
        self,
        records: Sequence[Record],
        *,
        max_new_tokens: int,
        batch_size: int,
        sampling: Sampling = GREEDY,
        progress: bool = False,
    ) -> list[str]:
        """Answers records, in their order.

        A batch's rows are as long, and have as many image slots, as its records need; prompts of one size are answered
        together. Each host loads the images of its own rows.

        Args:
          records: each ends with a user turn, or with an assistant turn (the reference), which is left out.
          max_new_tokens: the length limit of an answer.
          batch_size: records answered at once, rounded up to a multiple of the devices that split a batch.
          sampling: how tokens are chosen; a record's random numbers depend on its place in `records`.
          progress: show a bar on standard error.

        Raises:
          UserError: as `answer_each`.
        """
        answers = [""] * len(records)
        with progress_bar("answers", len(records), "question", show=progress and jax.process_index() == 0) as bar:
            for number, answer in self.answer_each(
                records, max_new_tokens=max_new_tokens, batch_size=batch_size, sampling=sampling
            ):
                answers[number] = answer.text
                bar.update()
        return answers

    def answer_each(
        self, records: Sequence[Record], *, max_new_tokens: int, batch_size: int, sampling: Sampling = GREEDY
    ) -> Iterator[tuple[int, Answer]]:
        """Answers records; yields the number of each with its answer, batch by batch, not in their order.

        Args:
          records, max_new_tokens, batch_size, sampling: as those of `answer`.

        Raises:
          UserError: records that the template refuses or that are too long, ten of them at most; a missing or broken
            image.
        """
        _check_counts(max_new_tokens, batch_size)
        prompts = self._prompts(records)
        rows = self._rows(batch_size, len(prompts))

        def start(here_B: np.ndarray, batch: Batch) -> Decoding:
            return Decoding(self.programs, batch, Requests.same(here_B, max_new_tokens, sampling))

        for numbers_B, (tokens_BN, lengths_B) in _in_turn(start, self._batches(prompts, rows)):
            for number, tokens_N, length in zip(numbers_B.tolist(), tokens_BN, lengths_B.tolist(), strict=True):
                if number >= 0:
                    text = self.renderer.decode(tokens_N[:length])
                    yield number, Answer(text, length, truncated=length >= max_new_tokens)

    def check(self, records: Sequence[Record]) -> None:
        """Raises `UserError` for records that the template refuses or that are too long; needs no weights."""
        self._prompts(records)

    def loglikelihoods(
        self, records: Sequence[Record], *, batch_size: int, progress: bool = False
    ) -> list[LogLikelihood]:
        """Scores the final answers of records, in their order, each given everything before it.

        Prompt and answer are tokenized together, as in training. The tokens of the answer's own text count, and those
        that the template writes between prompt and answer; the end token does not. Batches are built as for `answer`.

        Args:
          records: each ends with an assistant turn.
          batch_size, progress: as those of `answer`.

        Raises:
          UserError: as `answer`; or a record does not end with an answer.
        """
        _check_counts(1, batch_size)
        prompts = build_answered(self.renderer, records, self.layout, self.data.tokens)
        batches = self._batches(prompts, self._rows(batch_size, len(prompts)))
        return score_batches(self.programs, batches, len(prompts), progress=progress)

    def stream(
        self,
        record: Record,
        *,
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        steps: int = 1,
        stop_texts: Sequence[str] = (),
    ) -> Stream:
        """Starts the answer to one record; its text comes in pieces, which together are what `answer` returns.

        Args:
          record, max_new_tokens, sampling: as those of `answer`.
          steps: tokens that the device chooses between two pieces, at most `programs.STEP_TOKENS`.
          stop_texts: the answer ends before the first of them.

        Raises:
          UserError: as `answer`; or a stop text is empty.
        """
        _check_counts(max_new_tokens, 1)
        prompts = self._prompts([record])
        ((_, here_B, batch),) = self._batches(prompts, batch_devices(self.mesh, self.rules))
        decoding = Decoding(self.programs, batch, Requests.same(here_B, max_new_tokens, sampling), steps)
        return Stream(decoding, self.renderer, self.open_ids, stop_texts)

    def logits(self, record: Record) -> np.ndarray:
        """float32[T, V], logits after each token of a record's prompt."""
        prompts = self._prompts([record])
        ((*_, batch),) = self._batches(prompts, batch_devices(self.mesh, self.rules))
        logits_BTV = _logits(self.model, self.programs.place, self.params, to_devices(batch, self.mesh, self.rules))
        gathered_BTV = multihost_utils.process_allgather(logits_BTV, tiled=True)
        return np.asarray(gathered_BTV)[0, : len(prompts[0].piece.tokens)]

    def _rows(self, batch_size: int, prompts: int) -> int:
        """The rows of a batch, a multiple of the devices that split it."""
        devices = batch_devices(self.mesh, self.rules)
        return -(-max(1, min(batch_size, prompts)) // devices) * devices

    def _prompts(self, records: Sequence[Record]) -> list[Prompt]:
        return build_prompts(self.renderer, records, self.layout, self.data.tokens)

    def _batches(self, prompts: Sequence[Prompt], rows: int) -> Iterator[tuple[np.ndarray, np.ndarray, Batch]]:
        """Yields the numbers of each group of prompts, those in this host's rows, and the rows.

        The next group is built while the last one is used.
        """
        load = _Loaded(self.layout)  # of this call only: in a long conversation the file may change
        here = rows_of_this_host(self.mesh, self.rules, rows)

        def build(numbers_B: np.ndarray) -> tuple[np.ndarray, np.ndarray, Batch]:
            here_B = numbers_B[here]
            return numbers_B, here_B, build_batch(prompts, numbers_B, here_B, self.layout, load)

        return _one_ahead(build, group(prompts, rows))


class _Loaded:
    """Loads images and keeps the last ones, whatever record asks: a benchmark has many questions about an image."""

    def __init__(self, layout: MediaLayout):
        self._layout = layout
        self._kept: collections.OrderedDict[Medium, np.ndarray] = collections.OrderedDict()

    def __call__(self, image: Medium, origin: str) -> np.ndarray:
        if image not in self._kept:
            self._kept[image] = self._layout.load(image, origin, exact=True)
            if len(self._kept) > _KEPT_IMAGES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(image)
        return self._kept[image]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _logits(model: Model, place: Placement, params: dict, batch: Batch) -> Array:
    vlm = model.bind(params)
    with placed(place.mesh, place.rules):
        return vlm.logits(vlm.hidden(batch))


@functools.lru_cache(4)  # preparing one takes a second for a large vocabulary; a run's stages have one each
def _renderer(
    tokenizer: Any,
    template: str,
    system: str | None,
    control_tokens: tuple[str, ...],
    stop_tokens: tuple[str, ...],
    date: str,
    video_text: VideoText | None,
) -> Renderer:
    return Renderer(
        tokenizer,
        template,
        image_token_id=image_token_id(tokenizer),
        system=system,
        control_tokens=control_tokens,
        stop_tokens=stop_tokens,
        date=date,
        video_text=video_text,
    )


def _check_counts(max_new_tokens: int, batch_size: int) -> None:
    if max_new_tokens < 1 or batch_size < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens} and batch_size {batch_size}; both must be 1 or more")


def _in_turn(
    start: Callable[[np.ndarray, Batch], Decoding], batches: Iterable[tuple[np.ndarray, np.ndarray, Batch]]
) -> Iterator[tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]]:
    """Yields the numbers and answers of each batch; the next batch starts before the last tokens are read.

    It does not start before the last step of the current batch, so that the device does not keep two caches for long.
    """
    running: tuple[np.ndarray, Decoding] | None = None
    for numbers_B, here_B, batch in batches:
        if running is not None:
            running[1].dispatch_all()
        started = numbers_B, start(here_B, batch)
        if running is not None:
            yield running[0], running[1].finish()
        running = started
    if running is not None:
        yield running[0], running[1].finish()


def _one_ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """Yields `make(item)` of each item; a thread makes the next while the caller uses the last."""
    with concurrent.futures.ThreadPoolExecutor(1, "batches") as thread:
        waiting: concurrent.futures.Future[Made] | None = None
        for item in items:
            made, waiting = waiting, thread.submit(make, item)
            if made is not None:
                yield made.result()
        if waiting is not None:
            yield waiting.result()
