"""A sheet of samples: images with question, answer and reference; without an image the question takes its place."""

from __future__ import annotations

import random
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from jaxvlm.data.media.images import load_image
from jaxvlm.data.media.video import read_still
from jaxvlm.data.records import Record
from jaxvlm.evaluation.scoring import is_right, question, truth
from jaxvlm.media import Video

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

_COLUMNS, _ROWS = 6, 4
_CELL, _TEXT, _GAP, _TITLE = 2.2, 0.85, 0.2, 0.5  # inches: side of an image, text below it, space between, title
_PIXELS = 240  # of an image
_LINE = 13  # points
_RIGHT, _WRONG, _QUIET = "#1a7f37", "#cf222e", "#57606a"


def draw_sheet(path: Path, records: Sequence[Record], answers: Sequence[str], title: str) -> None:
    """Draws 24 records chosen at random with a fixed seed.

    Right answers are green; wrong ones are red, with the truth below.

    Args:
      path: of the PNG file that is written.
      records: each ends with the reference answer.
      answers: one for each.
      title: above the sheet.

    Raises:
      UserError: an image is missing or corrupt.
    """
    chosen = sample(len(records), _COLUMNS * _ROWS)
    columns, rows = min(_COLUMNS, len(chosen)), -(-len(chosen) // _COLUMNS)
    # Two columns at least, so that the title has room.
    width = max(2, columns) * (_CELL + _GAP) + _GAP
    height = rows * (_CELL + _TEXT) + _TITLE
    figure = plt.figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))  # in inches
    axes.set_axis_off()
    for place, number in enumerate(chosen):
        row, column = divmod(place, columns)
        corner = _GAP + column * (_CELL + _GAP), (rows - 1 - row) * (_CELL + _TEXT) + _TEXT
        _draw_cell(axes, corner, records[number], answers[number])
    axes.text(_GAP, height - 0.3, title, fontsize=13, weight="bold", va="center")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of scripts the font lacks: a box is drawn for each
        figure.savefig(path, dpi=100)
    plt.close(figure)


def sample(count: int, size: int) -> list[int]:
    """`size` (or all) of the numbers below `count`, the same ones each time."""
    return random.Random(0).sample(range(count), min(count, size))


def _draw_cell(axes: plt.Axes, corner: tuple[float, float], record: Record, answer: str) -> None:
    """Draws a record with the lower left corner of its image at `corner` (inches)."""
    right = is_right(record, answer)
    color = _RIGHT if right else _WRONG
    left, bottom = corner
    axes.imshow(_pixels(record), interpolation="nearest", extent=(left, left + _CELL, bottom, bottom + _CELL))
    axes.add_patch(Rectangle(corner, _CELL, _CELL, fill=False, edgecolor=color, linewidth=2))
    given = f"{'✓' if right else '✗'} {answer or '(nothing)'}"
    if record.images:
        lines = [(line, 9, "normal", "black") for line in _short(question(record), 2, 33)]
        lines += [(line, 10, "bold", color) for line in _short(given, 1, 26)]
    else:  # there is room for more
        inside = [(line, 9, "normal", "black") for line in _short(question(record), 5, 31)]
        inside += [(line, 9, "bold", color) for line in _short(given, 6, 27)]
        _write(axes, inside, (left + 0.04 * _CELL, bottom + _CELL))
        lines = []
    if not right:
        lines += [
            (line, 9, "normal", _QUIET) for line in _short(f"truth: {truth(record)}", 1 if record.images else 3, 33)
        ]
    _write(axes, lines, corner)


def _write(axes: plt.Axes, lines: Sequence[tuple[str, int, str, str]], corner: tuple[float, float]) -> None:
    """Writes lines (text, size, weight, colour) downwards from a corner (inches)."""
    for number, (text, size, weight, shade) in enumerate(lines):
        offset = (0, -5 - number * _LINE)
        axes.annotate(
            text, corner, offset, textcoords="offset points", fontsize=size, weight=weight, color=shade, va="top"
        )


def _pixels(record: Record) -> np.ndarray:
    """One square: the record's images in a grid, each padded to a square; grey where there is none."""
    side = max(1, int(np.ceil(np.sqrt(len(record.images)))))
    size = _PIXELS // side
    canvas = np.full((_PIXELS, _PIXELS, 3), 235, np.uint8)
    for number, image in enumerate(record.images):
        y, x = (size * k for k in divmod(number, side))
        still = read_still(image, record.origin) if isinstance(image, Video) else image
        canvas[y : y + size, x : x + size] = load_image(still, size, "pad", record.origin)
    return canvas


def _short(text: str, lines: int, width: int) -> list[str]:
    """Text wrapped to at most that many lines of `width` characters."""
    printable = "".join(letter if letter.isprintable() else "\ufffd" for letter in " ".join(text.split()))
    wrapped = textwrap.wrap(printable, width, max_lines=lines, placeholder=" ...")
    return [line.replace("$", r"\$") for line in wrapped]  # else matplotlib reads mathematics between dollars
