"""A prompt as the model gets it: every token, and the pixels of every image after resizing and padding.

Axis letters:
  Y rows and X columns of pixels   C colours
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxvlm.batch import Batch
from jaxvlm.data.rows.packing import fill_row
from jaxvlm.inspect.html_page import data_url
from jaxvlm.inspect.token_text import Vocabulary, text_tokens
from jaxvlm.media import MediaLayout, Picture
from jaxvlm.serving.prompts import Prompt


@dataclasses.dataclass(frozen=True, eq=False)
class PromptView:
    """A prompt to look at.

    Attributes:
      tokens: {"id", "text", "control"} of a token of text; {"picture", "count"} of so many features of a picture.
      pictures: uint8[Y, X, C] each; an image, or a frame of a video.
      length: tokens, features among them.
      limit: of a prompt and its answer.
    """

    tokens: tuple[dict[str, Any], ...]
    pictures: tuple[Picture, ...]
    length: int
    limit: int

    def to_json(self) -> dict[str, Any]:
        """Ready for JSON; pictures are data: URLs of PNG files."""
        from PIL import Image

        return {
            "tokens": list(self.tokens),
            "pixels": [
                {
                    "width": picture.pixels.shape[1],
                    "height": picture.pixels.shape[0],
                    "features": len(picture.features),
                    "url": data_url(Image.fromarray(picture.pixels)),
                }
                for picture in self.pictures
            ],
            "length": self.length,
            "limit": self.limit,
        }


def view_prompt(prompt: Prompt, layout: MediaLayout, vocabulary: Vocabulary, limit: int) -> PromptView:
    """Makes the view of a prompt; its images are decoded.

    Raises:
      RecordError: an image is broken.
    """
    batch = _row_of(prompt, layout)
    pictures = tuple(layout.preview(batch.media, 0)) if prompt.record.images else ()
    tokens = tuple(_tokens(batch.tokens[0], _pictures_at(batch.image_index[0], pictures), vocabulary))
    return PromptView(tokens, pictures, prompt.length, limit)


def _row_of(prompt: Prompt, layout: MediaLayout) -> Batch:
    """The prompt as the one row of a NumPy batch."""
    record = prompt.record
    loaded = [layout.load(image, record.origin, exact=True) for image in record.images]
    media = layout.spec(1, sum(map(layout.units_of, loaded)))
    batch = Batch.empty(Batch.spec(rows=1, tokens=prompt.length, media=media, position_axes=layout.position_axes))
    fill_row(batch, 0, [prompt.piece], loaded, layout)
    return batch


def _pictures_at(image_index: np.ndarray, pictures: tuple[Picture, ...]) -> np.ndarray:
    """int[T]: the picture that a position belongs to, -1 at text."""
    owner = np.full(1 + max((int(p.features.max(initial=-1)) for p in pictures), default=-1), -1)
    for number, picture in enumerate(pictures):
        owner[picture.features] = number
    return np.where(image_index < 0, -1, owner[image_index]) if len(owner) else np.full(len(image_index), -1)


def _tokens(ids: np.ndarray, owners: np.ndarray, vocabulary: Vocabulary) -> Iterator[dict[str, Any]]:
    cuts = np.flatnonzero(owners[1:] != owners[:-1]) + 1
    for run in np.split(np.arange(len(ids)), cuts):
        if owners[run[0]] >= 0:
            yield {"picture": int(owners[run[0]]), "count": len(run)}
        else:
            yield from text_tokens(ids[run].tolist(), vocabulary)
