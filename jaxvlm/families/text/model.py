"""A decoder alone.

Axis letters:
  B rows   T token position   D embed of the decoder
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from jaxvlm.families.text.config import TextConfig
from jaxvlm.models.decoder import Decoder
from jaxvlm.models.vlm import VLM


class TextModel(VLM):
    """Rows of text; no position is an image."""

    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.compute_dtype)
        self.language = Decoder(config.language, dtype=dtype, remat=config.remat, rngs=rngs)

    def encode(self, media: Any) -> None:
        """There is nothing to encode."""
        return None


MODULE = TextModel
