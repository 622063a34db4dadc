"""Boxes and points in texts: found, checked, and rewritten from the coordinates of the data to those of the model.

Two forms are known, those of Qwen-VL's data:

    <|box_start|>(x1,y1),(x2,y2)<|box_end|>          Qwen2-VL; a point has one pair
    {"bbox_2d": [x1, y1, x2, y2], "label": "cat"}    Qwen2.5-VL and Qwen3-VL; "point_2d" has two numbers
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence

from jaxvlm.data.records import Record, Turn, has_videos, split_media
from jaxvlm.media import MediaLayout, Size

# `data.boxes` -> the width and height to which its coordinates count on an image. "": texts stay as they are.
SPACES: dict[str, Callable[[Size, MediaLayout], tuple[float, float]]] = {
    "thousandths": lambda size, layout: (1000, 1000),
    "fractions": lambda size, layout: (1, 1),
    "pixels": lambda size, layout: (size.width, size.height),
    "resized": lambda size, layout: layout.resized(size),
}
_NUMBER = r"-?\d+(?:\.\d+)?"
_PAIR = rf"\(\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\)"
_MARKED = re.compile(rf"<\|box_start\|>\s*(?P<a>{_PAIR}(?:\s*,\s*{_PAIR})?)\s*<\|box_end\|>")
_JSON = re.compile(rf'"(?:bbox_2d|point_2d)"\s*:\s*\[(?P<a>\s*{_NUMBER}(?:\s*,\s*{_NUMBER}){{1,3}}\s*)\]')
_NUMBERS = re.compile(_NUMBER)


@dataclasses.dataclass(frozen=True)
class Box:
    """A box or a point in a text."""

    start: int  # of the span of its numbers, in characters
    end: int
    numbers: tuple[float, ...]  # x, y of a point; x, y of two corners of a box


def find_boxes(text: str) -> list[Box]:
    """All boxes and points of a text, in order."""
    found = []
    for match in (*_MARKED.finditer(text), *_JSON.finditer(text)):
        numbers = tuple(float(number) for number in _NUMBERS.findall(match["a"]))
        if len(numbers) in (2, 4):
            found.append(Box(*match.span("a"), numbers))
    return sorted(found, key=lambda box: box.start)


def boxes_of(record: Record) -> Iterator[tuple[int, int, Box]]:
    """(turn, medium, box) of each box of a record: it is on the medium that is last before it, or on the first."""
    videos, before = has_videos(record.images), 0
    for number, turn in enumerate(_turns(record)):
        places: list[int] = []
        if turn.role == "user":
            pieces = split_media(turn.text, videos=videos)
            places = [sum(map(len, pieces[:at])) for at in range(1, len(pieces), 2)]
        for box in find_boxes(turn.text):
            yield number, max(before + sum(place < box.start for place in places) - 1, 0), box
        before += len(places)


def is_outside(box: Box, space: tuple[float, float]) -> bool:
    """Whether a corner lies outside of the image."""
    return any(not 0 <= number <= space[at % 2] for at, number in enumerate(box.numbers))


def count_boxes(record: Record, sizes: Sequence[Size], boxes: str, layout: MediaLayout) -> tuple[int, int]:
    """The number of a record's boxes, and of those outside of their image; arguments as of `rewrite`."""
    found = [(box, SPACES[boxes](sizes[medium], layout)) for _, medium, box in boxes_of(record) if medium < len(sizes)]
    return len(found), sum(is_outside(box, space) for box, space in found)


def rewrite(record: Record, sizes: Sequence[Size], boxes: str, layout: MediaLayout) -> Record:
    """The record with its boxes in the model's coordinates, whole numbers.

    Args:
      sizes: of its images and videos.
      boxes: a name of `SPACES`, the coordinates of its texts.
      layout: of the model, with a `box_space`.
    """
    texts = [turn.text for turn in _turns(record)]
    for number, medium, box in reversed(list(boxes_of(record))):
        target = layout.box_space(sizes[medium]) if medium < len(sizes) else None
        if target is None:
            continue
        old = SPACES[boxes](sizes[medium], layout)
        scaled = [str(round(value / old[at % 2] * target[at % 2])) for at, value in enumerate(box.numbers)]
        text = texts[number]
        between = _NUMBERS.split(text[box.start : box.end])
        inside = "".join(x for pair in zip(between, [*scaled, ""], strict=True) for x in pair)
        texts[number] = text[: box.start] + inside + text[box.end :]
    count = len(record.turns)
    turns = tuple(dataclasses.replace(turn, text=text) for turn, text in zip(record.turns, texts[:count], strict=True))
    return dataclasses.replace(record, turns=turns, rejected="".join(texts[count:]))


def shares(record: Record, sizes: Sequence[Size], layout: MediaLayout) -> list[tuple[int, list[float]]]:
    """The medium of each box of a rewritten record, and its coordinates as shares of the medium's width and height."""
    found = []
    for _, medium, box in boxes_of(record):
        space = layout.box_space(sizes[medium]) if medium < len(sizes) else None
        if space is not None:
            found.append((medium, [number / space[at % 2] for at, number in enumerate(box.numbers)]))
    return found


def _turns(record: Record) -> tuple[Turn, ...]:
    """Its turns, and the rejected answer of a pair."""
    return (*record.turns, Turn("assistant", record.rejected)) if record.rejected else record.turns
