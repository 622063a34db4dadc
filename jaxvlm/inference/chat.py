"""Conversations in, text out: records become prompts, prompts become batches, and what is decoded becomes text."""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from tqdm import tqdm

from jaxvlm.batch import Array, Batch
from jaxvlm.config import DataConfig
from jaxvlm.data.media.images import read_size
from jaxvlm.data.records import IMAGE, Record, RecordError
from jaxvlm.data.rows.packing import Piece, expand, fill_row
from jaxvlm.data.text.conversation import Renderer
from jaxvlm.data.text.tokenizer import image_token_id
from jaxvlm.errors import UserError
from jaxvlm.families.registry import media_layout
from jaxvlm.inference.decode import GREEDY, Sampling, bucket, decode
from jaxvlm.media import MediaError, MediaLayout
from jaxvlm.models.vlm import Model
from jaxvlm.sharding import Placement, Rules, batch_devices, batch_sharding, placed, to_devices

# Decoded images that a call keeps. The questions about an image are neighbours, so a few are enough.
_KEPT_IMAGES = 64
_NAMED_PROBLEMS = 10


def answer(
    model: Model,
    params: dict,
    tokenizer: Any,
    data: DataConfig,
    records: Sequence[Record],
    *,
    mesh: Mesh,
    rules: Rules,
    max_new_tokens: int,
    batch_size: int,
    sampling: Sampling = GREEDY,
    progress: bool = False,
) -> list[str]:
    """Answers records, in their order.

    A batch's rows are as long, and have as many image slots, as its records need; prompts of one size are answered
    together. The same records make the same shapes, so a second call with other weights compiles nothing. On several
    hosts all make the same call, each loads the images of its own rows, and all get all answers.

    Args:
      params: nested dict of the whole model's weights, on `mesh`.
      data: template, system message, aspect of images, and `tokens`, which no prompt may exceed.
      records: end in a user turn, or in an assistant turn: the truth, which is left out.
      max_new_tokens: where an answer that does not end is cut.
      batch_size: records answered at once, rounded up to a multiple of the devices that split a batch.
      sampling: how tokens are chosen; a record's random numbers depend on its place in `records`.
      progress: show a bar on standard error.

    Raises:
      UserError: records that the template refuses or that are too long, ten of them at most; a missing or broken image.
    """
    if max_new_tokens < 1 or batch_size < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens} and batch_size {batch_size}; both must be 1 or more")
    renderer = _renderer(tokenizer, data.template, data.system)
    layout = media_layout(model.config, data)
    prompts = _build_prompts(renderer, records, layout, data.tokens)
    devices, place = batch_devices(mesh, rules), Placement(mesh, rules)
    rows = -(-max(1, min(batch_size, len(prompts))) // devices) * devices
    # Of this call only: in a long conversation the file may change.
    load = functools.lru_cache(_KEPT_IMAGES)(functools.partial(layout.load, exact=True))

    def start(numbers_B: np.ndarray) -> tuple[Array, Array]:
        here_B = numbers_B[_rows_of_this_host(mesh, rules, rows)]
        batch = _build_batch(prompts, numbers_B, here_B, layout, load)
        batch, here_B = to_devices((batch, here_B), mesh, rules)
        return decode(model, params, batch, here_B, renderer.stop_ids, max_new_tokens, sampling, place)

    answers = [""] * len(prompts)
    silent = not progress or jax.process_index() > 0
    with tqdm(total=len(prompts), desc="answers", unit="question", disable=silent, dynamic_ncols=True) as bar:
        for numbers_B, (tokens_BN, lengths_B) in _one_ahead(start, _groups(prompts, rows)):
            for number, tokens_N, length in zip(numbers_B, tokens_BN, lengths_B, strict=True):
                if number >= 0:
                    answers[number] = renderer.decode(tokens_N[:length])
                    bar.update()
    return answers


def prompt_logits(
    model: Model, params: dict, tokenizer: Any, data: DataConfig, record: Record, *, mesh: Mesh, rules: Rules
) -> np.ndarray:
    """float32[T, V], logits behind each token of a record's prompt; the arguments are those of `answer`."""
    renderer = _renderer(tokenizer, data.template, data.system)
    layout = media_layout(model.config, data)
    prompts = _build_prompts(renderer, [record], layout, data.tokens)
    numbers_B = np.array([0] + [-1] * (batch_devices(mesh, rules) - 1), np.int32)
    here_B = numbers_B[_rows_of_this_host(mesh, rules, len(numbers_B))]
    batch = _build_batch(prompts, numbers_B, here_B, layout, functools.partial(layout.load, exact=True))

    @jax.jit
    def run(params: dict, batch: Batch) -> Array:
        vlm = model.bind(params)
        with placed(mesh, rules):
            return vlm.logits(vlm.hidden(batch))

    logits = multihost_utils.process_allgather(run(params, to_devices(batch, mesh, rules)), tiled=True)
    return np.asarray(logits)[0, : len(prompts[0].piece.tokens)]


def score(records: Sequence[Record], answers: Sequence[str]) -> dict[str, Any]:
    """Share of answers that are the truth, character by character but for white space at both ends.

    Args:
      records: end in the true answer.
      answers: one for each.

    Returns:
      `{"exact_match": 0.75, "count": 4, "by_group": {"color": {"exact_match": 1.0, "count": 2}, ...}}`; records
      without a group count in the whole only.
    """
    hits = [is_right(record, text) for record, text in zip(records, answers, strict=True)]
    by_group: dict[str, list[bool]] = defaultdict(list)
    for record, hit in zip(records, hits, strict=True):
        if record.group:
            by_group[record.group].append(hit)
    return _share(hits) | {"by_group": {group: _share(by_group[group]) for group in sorted(by_group)}}


def is_right(record: Record, text: str) -> bool:
    """Whether `text` is the record's true answer."""
    return text.strip() == truth(record)


def truth(record: Record) -> str:
    """The true answer: the last turn."""
    return record.turns[-1].text.strip()


def question(record: Record) -> str:
    """Text of the last user turn, without images."""
    return [turn.text for turn in record.turns if turn.role == "user"][-1].replace(IMAGE, "").strip()


def _share(hits: list[bool]) -> dict[str, Any]:
    return {"exact_match": sum(hits) / len(hits) if hits else 0.0, "count": len(hits)}


@dataclasses.dataclass(frozen=True)
class _Prompt:
    """A record, ready to be put into a row."""

    record: Record
    piece: Piece
    units: int  # media units

    @property
    def size(self) -> tuple[int, int]:
        """Media units and tokens of the row that it takes."""
        return self.units, bucket(len(self.piece.tokens))


@functools.lru_cache(4)  # preparing one takes a second for a large vocabulary; a run's stages have one each
def _renderer(tokenizer: Any, template: str, system: str | None) -> Renderer:
    return Renderer(tokenizer, template, image_token_id=image_token_id(tokenizer), system=system)


def _build_prompts(renderer: Renderer, records: Sequence[Record], layout: MediaLayout, limit: int) -> list[_Prompt]:
    """Renders all records; `limit` in tokens."""
    prompts, problems = [], []
    for record in records:
        if record.turns and record.turns[-1].role == "assistant":
            record = dataclasses.replace(record, turns=record.turns[:-1])
        try:
            sample = renderer.render_prompt(record)
            sizes = [read_size(image, record.origin) for image in record.images]
            extents = [layout.measure(size) for size in sizes]
        except (RecordError, MediaError) as error:
            problems.append(str(error) if isinstance(error, RecordError) else f"{record.origin}: {error}")
            continue
        prompt = _Prompt(record, expand(sample, sizes, layout), sum(extent.units for extent in extents))
        length, images = len(prompt.piece.tokens), sum(extent.positions for extent in extents)
        if length > limit:
            problems.append(
                f"{record.origin}: the prompt has {length} tokens ({images} of {len(sizes)} images, "
                f"{length - images} of text), the model's rows have {limit} (data.tokens); "
                "ask with fewer images, fewer turns or less text"
            )
        prompts.append(prompt)
    if problems:
        more = f"; and {len(problems) - _NAMED_PROBLEMS} more" if len(problems) > _NAMED_PROBLEMS else ""
        raise UserError("; ".join(problems[:_NAMED_PROBLEMS]) + more)
    return prompts


def _groups(prompts: list[_Prompt], rows: int) -> Iterator[np.ndarray]:
    """The prompts' numbers, int32[rows] at a time: those of one size together, those of one image side by side.

    The last group ends in -1, rows of padding.
    """
    first_seen: dict[tuple[str | bytes, ...], int] = {}
    for prompt in prompts:
        first_seen.setdefault(prompt.record.images, len(first_seen))
    order = sorted(range(len(prompts)), key=lambda i: (prompts[i].size, first_seen[prompts[i].record.images]))
    for at in range(0, len(order), rows):
        numbers = order[at : at + rows]
        yield np.array(numbers + [-1] * (rows - len(numbers)), np.int32)


def _build_batch(
    prompts: list[_Prompt],
    numbers_B: np.ndarray,
    here_B: np.ndarray,
    layout: MediaLayout,
    load: Callable[..., np.ndarray],
) -> Batch:
    """This host's rows of a batch: its shapes are made for `numbers_B`, its rows hold the prompts `here_B`."""
    sizes = [prompts[number].size for number in numbers_B if number >= 0]
    units, tokens = (max(column) for column in zip(*sizes, strict=True))
    media = layout.spec(len(here_B), units)
    batch = Batch.empty(Batch.spec(rows=len(here_B), tokens=tokens, media=media, position_axes=layout.position_axes))
    for row, number in enumerate(here_B):
        if number >= 0:
            record, piece = prompts[number].record, prompts[number].piece
            fill_row(batch, row, [piece], [load(image, record.origin) for image in record.images], layout)
    return batch


def _rows_of_this_host(mesh: Mesh, rules: Rules, rows: int) -> list[int]:
    """Which of a global batch's rows the devices of this host hold."""
    slices = [
        index[0] for index in batch_sharding(mesh, rules).addressable_devices_indices_map((rows,)).values() if index
    ]
    return sorted({row for part in slices for row in range(*part.indices(rows))})


def _one_ahead(
    start: Callable[[np.ndarray], tuple[Array, Array]], groups: Iterator[np.ndarray]
) -> Iterator[tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]]:
    """Each group with its results; the next is started before they are waited for, so that the device never is."""
    running = None
    for group in groups:
        started = group, start(group)
        if running is not None:
            yield running[0], multihost_utils.process_allgather(running[1], tiled=True)
        running = started
    if running is not None:
        yield running[0], multihost_utils.process_allgather(running[1], tiled=True)
