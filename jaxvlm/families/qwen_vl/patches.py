"""`Batch.media` of Qwen-VL: the patches of a row's images and videos, one image behind the other.

Axis letters:
  B rows   P patches of a row   F frames of a patch   Y, X pixels
"""

from __future__ import annotations

from typing import NamedTuple

from jaxvlm.batch import Array


class Patches(NamedTuple):
    """Patches in groups of merge_size x merge_size (row-major), of which each is one token of the decoder.

    Patches of a frame are contiguous, and so are those of an attention window within its frame (kinds with windows);
    groups are otherwise in raster order. Unused patches at a row's end are zeros of frame 0.
    """

    pixels: Array  # uint8[B, P, F, Y, X, 3]; F is 1 without videos: both frames of a patch would be the same
    places: Array  # int32[B, P, 2]; row and column of the patch in its image, in patches
    frames: Array  # int32[B, P]; 1, 2, ... for each frame (of two, of a video) of the row; 0: no patch
    grids: Array  # int32[B, P, 2]; rows and columns of its image, in patches
