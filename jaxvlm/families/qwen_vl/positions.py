"""Position ids of three axes (M-RoPE): time, row and column. Source: Qwen2-VL (arXiv:2409.12191), section 2.1.

Axis letters:
  L tokens of a sample   K tokens of an image or a video
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def make_cells(steps: Sequence[int], rows: int, columns: int) -> np.ndarray:
    """Positions of the tokens of a medium, counted from its first one.

    Args:
      steps: on the time axis, one for each frame; an image has a single 0.
      rows: of tokens, like `columns`.

    Returns:
      int32[K, 3], frame by frame, in raster order within a frame.
    """
    cells = np.indices((len(steps), rows, columns), np.int32).reshape(3, -1).T
    cells[:, 0] = np.asarray(steps, np.int32)[cells[:, 0]]
    return cells


def place_cells(image_index: np.ndarray, blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Position ids of a sample: text counts up on all axes and continues after the largest number of a medium.

    An image of 2 rows and 3 columns between texts::

        image_index [-1  0  1  2  3  4  5 -1 ]
        time        [ 0  1  1  1  1  1  1  4 ]
        row         [ 0  1  1  1  2  2  2  4 ]
        column      [ 0  1  2  3  1  2  3  4 ]

    Args:
      image_index: int32[L]; k at the sample's k-th feature, -1 at text.
      blocks: int32[K, 3] of each medium, from `make_cells`; its features are contiguous in the sample.

    Returns:
      int32[L, 3].
    """
    features = np.flatnonzero(image_index >= 0)
    positions = np.empty((len(image_index), 3), np.int32)
    at = following = taken = 0
    for cells in blocks:
        start = features[taken]
        positions[at:start] = following + np.arange(start - at)[:, None]
        following += start - at
        at, taken = start + len(cells), taken + len(cells)
        positions[start:at] = following + cells
        following += cells.max() + 1
    positions[at:] = following + np.arange(len(positions) - at)[:, None]
    return positions
