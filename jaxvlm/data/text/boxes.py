"""Boxes and points in texts: found, checked, and rewritten from the coordinates of the data to those of the model.

Two forms are known, those of Qwen-VL's data:

    <|box_start|>(x1,y1),(x2,y2)<|box_end|>          Qwen2-VL; a point has one pair
    {"bbox_2d": [x1, y1, x2, y2], "label": "cat"}    Qwen2.5-VL and Qwen3-VL; "point_2d" has two numbers
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence

from jaxvlm.data.records import IMAGE, Record
from jaxvlm.media import Size

# `data.boxes` -> the width and height that its coordinates count to, of an image of a size; "": texts stay as they are.
SPACES: dict[str, Callable[[Size], tuple[float, float]]] = {
    "thousandths": lambda size: (1000, 1000),
    "fractions": lambda size: (1, 1),
    "pixels": lambda size: (size.width, size.height),
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
    """(turn, image, box) of each box of a record: it is on the image that is last before it, or on the first."""
    image = -1
    for number, turn in enumerate(record.turns):
        places = [match.start() for match in re.finditer(re.escape(IMAGE), turn.text)] if turn.role == "user" else []
        for box in find_boxes(turn.text):
            yield number, max(image + sum(place < box.start for place in places), 0), box
        image += len(places)


def is_outside(box: Box, space: tuple[float, float]) -> bool:
    """Whether a corner lies outside of the image."""
    return any(not 0 <= number <= space[at % 2] for at, number in enumerate(box.numbers))


def rewrite(record: Record, sizes: Sequence[Size], boxes: str, target: Callable[[Size], tuple[int, int]]) -> Record:
    """The record with its boxes in the model's coordinates, whole numbers.

    Args:
      record: of texts whose boxes are in the coordinates `boxes`.
      sizes: of its images.
      boxes: a name of `SPACES`.
      target: the width and height that the model's coordinates count to, of an image of a size.
    """
    texts = [turn.text for turn in record.turns]
    found = [entry for entry in boxes_of(record) if entry[1] < len(sizes)]
    for number, image, box in reversed(found):
        old, new = SPACES[boxes](sizes[image]), target(sizes[image])
        scaled = [str(round(value / old[at % 2] * new[at % 2])) for at, value in enumerate(box.numbers)]
        text = texts[number]
        between = _NUMBERS.split(text[box.start : box.end])
        inside = "".join(x for pair in zip(between, [*scaled, ""], strict=True) for x in pair)
        texts[number] = text[: box.start] + inside + text[box.end :]
    if not found:
        return record
    turns = tuple(dataclasses.replace(turn, text=text) for turn, text in zip(record.turns, texts, strict=True))
    return dataclasses.replace(record, turns=turns)
