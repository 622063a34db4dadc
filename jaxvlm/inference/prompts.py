"""From records to prompts, and from prompts to the rows of a batch.

Axis letters:
  B rows
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from jaxvlm.batch import Batch
from jaxvlm.data.media.sizes import read_size
from jaxvlm.data.records import Record, RecordError
from jaxvlm.data.rows.packing import Piece, expand, fill_row
from jaxvlm.data.sample import Sample
from jaxvlm.data.text.conversation import Renderer
from jaxvlm.errors import UserError, listed
from jaxvlm.inference.programs import bucket
from jaxvlm.media import MediaError, MediaExtent, MediaLayout, Medium


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A rendered record."""

    record: Record
    piece: Piece
    media: MediaExtent  # of all its images

    @property
    def size(self) -> tuple[int, int]:
        """Media units and tokens of the row that it needs."""
        return self.media.units, bucket(len(self.piece.tokens))


def build_prompts(renderer: Renderer, records: Sequence[Record], layout: MediaLayout, limit: int) -> list[Prompt]:
    """Renders records without a final answer.

    Args:
      limit: the most tokens of a prompt.

    Raises:
      UserError: records that the template refuses or that are too long, ten of them at most.
    """
    return _build_each(lambda record: renderer.render_prompt(_without_answer(record)), "prompt", records, layout, limit)


def build_answered(renderer: Renderer, records: Sequence[Record], layout: MediaLayout, limit: int) -> list[Prompt]:
    """Renders records with their final answers, whose own tokens are supervised; see `Renderer.render_answer`.

    Args:
      limit: the most tokens of a prompt and its answer.

    Raises:
      UserError: as `build_prompts`; or a record does not end in an answer.
    """
    return _build_each(renderer.render_answer, "prompt with its answer", records, layout, limit)


def _build_each(
    render: Callable[[Record], Sample], name: str, records: Sequence[Record], layout: MediaLayout, limit: int
) -> list[Prompt]:
    prompts, problems = [], []
    for record in records:
        try:
            prompt = _measured(render(record), record, layout)
        except (RecordError, MediaError) as error:
            problems.append(str(error) if isinstance(error, RecordError) else f"{record.origin}: {error}")
            continue
        length, images = len(prompt.piece.tokens), prompt.media.positions
        if length > limit:
            problems.append(
                f"{record.origin}: the {name} has {length} tokens ({images} of {len(record.images)} images, "
                f"{length - images} of text), the model's rows have {limit} (data.tokens); "
                "ask with fewer images, fewer turns or less text"
            )
        prompts.append(prompt)
    if problems:
        raise UserError(listed(problems))
    return prompts


def build_prompt(renderer: Renderer, record: Record, layout: MediaLayout) -> Prompt:
    """Renders one record without its final answer, of any length.

    Raises:
      RecordError: the template refuses it, or an image is missing, broken or too large.
      MediaError: no row can hold one of its images.
    """
    return _measured(renderer.render_prompt(_without_answer(record)), record, layout)


def _without_answer(record: Record) -> Record:
    if record.turns and record.turns[-1].role == "assistant":
        return dataclasses.replace(record, turns=record.turns[:-1])
    return record


def _measured(sample: Sample, record: Record, layout: MediaLayout) -> Prompt:
    sizes = [read_size(image, record.origin) for image in record.images]
    extents = [layout.extent(size) for size in sizes]
    media = MediaExtent(sum(extent.positions for extent in extents), sum(extent.units for extent in extents))
    return Prompt(record, expand(sample, sizes, layout), media)


def group(prompts: Sequence[Prompt], rows: int) -> Iterator[np.ndarray]:
    """The prompts' numbers, int32[rows] at a time: those of one size together, those of one image side by side.

    The last group ends in -1, rows of padding.
    """
    first_seen: dict[tuple[Medium, ...], int] = {}
    for prompt in prompts:
        first_seen.setdefault(prompt.record.images, len(first_seen))
    order = sorted(range(len(prompts)), key=lambda i: (prompts[i].size, first_seen[prompts[i].record.images]))
    for at in range(0, len(order), rows):
        numbers = order[at : at + rows]
        yield np.array(numbers + [-1] * (rows - len(numbers)), np.int32)


def build_batch(
    prompts: Sequence[Prompt],
    numbers_B: np.ndarray,
    here_B: np.ndarray,
    layout: MediaLayout,
    load: Callable[..., np.ndarray],
) -> Batch:
    """This host's rows of a batch: its shapes are made for `numbers_B`, its rows hold the prompts `here_B`.

    Args:
      load: as `MediaLayout.load`, of a path or bytes and an origin.
    """
    sizes = [prompts[number].size for number in numbers_B if number >= 0]
    units, tokens = (max(column) for column in zip(*sizes, strict=True))
    media = layout.spec(len(here_B), units)
    batch = Batch.empty(Batch.spec(rows=len(here_B), tokens=tokens, media=media, position_axes=layout.position_axes))
    for row, number in enumerate(here_B):
        if number >= 0:
            record, piece = prompts[number].record, prompts[number].piece
            fill_row(batch, row, [piece], [load(image, record.origin) for image in record.images], layout)
    return batch
