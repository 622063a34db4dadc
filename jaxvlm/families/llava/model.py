"""LLaVA-1.5: an image encoder, an MLP and a decoder.

Source: LLaVA-1.5 (arXiv:2310.03744); HF models/llava/modeling_llava.py.

Axis letters:
  B rows   I images of a row   Y, X pixels   C channels   P features of an image
  E embed of the vision encoder   D embed of the decoder
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx

from jaxvlm.batch import Array, Images
from jaxvlm.families.llava.config import LlavaConfig
from jaxvlm.models.clip import Vision
from jaxvlm.models.decoder import Decoder
from jaxvlm.models.projector import Projector
from jaxvlm.models.vlm import VLM


class Llava(VLM):
    """Every image is encoded for itself; its P features replace its placeholder."""

    def __init__(self, config: LlavaConfig, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.compute_dtype)
        vision_dim, embed_dim = config.vision.embed_dim, config.language.embed_dim
        self.vision = Vision(config.vision, dtype=dtype, remat=config.remat, rngs=rngs)
        self.projector = Projector(config.projector, vision_dim, embed_dim, dtype=dtype, rngs=rngs)
        self.language = Decoder(config.language, dtype=dtype, remat=config.remat, rngs=rngs)

    def encode(self, media: Images) -> Array | None:
        """uint8[B, I, Y, X, 3] -> float[B, I * P, D]; None without image slots, and the encoder is not run."""
        B, I, Y, X, C = media.pixels.shape  # noqa: E741
        if I == 0:
            return None
        features_PE = self.vision(media.pixels.reshape(B * I, Y, X, C))
        features_PD = self.projector(features_PE)
        return features_PD.reshape(B, -1, features_PD.shape[-1])


MODULE = Llava
