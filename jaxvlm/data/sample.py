"""A rendered conversation: what text becomes, and what rows are packed from."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Sample:
    """One rendered conversation of `L` tokens, before its images are expanded to their features."""

    # int32[L]; with BOS if the tokenizer adds one; each image is one placeholder, the renderer's `image_token_id`.
    tokens: np.ndarray
    loss_weights: np.ndarray  # float32[L]; 1 where the token itself is supervised: the position before predicts it
    is_image: np.ndarray  # bool[L]; image placeholders; their id alone can be ambiguous (it may be <unk>)
    notes: frozenset[str] = frozenset()  # what the template did that the record's author may not expect
