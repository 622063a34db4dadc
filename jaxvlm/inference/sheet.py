"""A sheet of samples: images with question, answer and truth, to see at a glance what a model can do."""

from __future__ import annotations

import random
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from jaxvlm.data.images import load_image
from jaxvlm.data.records import Record
from jaxvlm.inference.chat import is_right, question, truth

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_COLUMNS, _ROWS = 6, 4
_PIXELS = 224  # of an image on the sheet
_WIDTH = 30  # characters of a line below an image
_RIGHT, _WRONG = "#1a7f37", "#cf222e"


def draw_sheet(path: Path, records: Sequence[Record], answers: Sequence[str], title: str) -> None:
    """Draws 24 records, drawn by lot with a fixed seed: neither the best nor the worst.

    Args:
      path: of the PNG file that is written.
      records: end in the true answer.
      answers: one for each.
      title: above the sheet.

    Raises:
      UserError: an image is missing or broken.
    """
    chosen = sample(len(records), _COLUMNS * _ROWS)
    rows = -(-len(chosen) // _COLUMNS)
    columns = min(_COLUMNS, len(chosen))
    figure, cells = plt.subplots(rows, columns, figsize=(2.6 * columns, 3.3 * rows + 0.6), squeeze=False)
    for axes in cells.flat:
        axes.axis("off")
    for axes, number in zip(cells.flat, chosen, strict=False):
        _draw_cell(axes, records[number], answers[number])
    figure.suptitle(title, fontsize=13)
    figure.tight_layout(rect=(0, 0, 1, 0.99))
    figure.savefig(path, dpi=100)
    plt.close(figure)


def sample(count: int, size: int) -> list[int]:
    """`size` (or all) of the numbers below `count`, the same ones each time."""
    return random.Random(0).sample(range(count), min(count, size))


def _draw_cell(axes: plt.Axes, record: Record, answer: str) -> None:
    axes.imshow(_pixels(record))
    right = is_right(record, answer)
    color = _RIGHT if right else _WRONG
    verdict = f"✓ {_short(answer, 1)}" if right else f"✗ {_short(answer, 2)}"
    text = {"transform": axes.transAxes, "va": "top", "ha": "left"}
    lines = _short(question(record), 2)
    axes.text(0, -0.04, lines, fontsize=9.5, color="black", **text)
    below = -0.04 - 0.105 * (lines.count("\n") + 1)
    axes.text(0, below, verdict, fontsize=10.5, color=color, weight="bold", **text)
    if not right:
        below -= 0.115 * (verdict.count("\n") + 1)
        axes.text(0, below, f"truth: {_short(truth(record), 1)}", fontsize=9.5, color="#57606a", **text)


def _pixels(record: Record) -> np.ndarray:
    """The record's images side by side, padded to squares; a grey square where there is none."""
    images = [load_image(image, _PIXELS, "pad", record.origin) for image in record.images]
    return np.concatenate(images, axis=1) if images else np.full((_PIXELS, _PIXELS, 3), 235, np.uint8)


def _short(text: str, lines: int) -> str:
    """Text in so many lines at most; a dollar sign stays one, where matplotlib would read mathematics."""
    wrapped = textwrap.wrap(" ".join(text.split()) or "(nothing)", _WIDTH, max_lines=lines, placeholder=" ...")
    return "\n".join(wrapped).replace("$", r"\$")
