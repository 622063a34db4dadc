"""Qwen-VL: patches of images of any size, a merger and a decoder with positions of three axes.

Source: HF models/qwen2_vl, qwen2_5_vl and qwen3_vl, modeling_*.py.

Axis letters:
  B rows   P patches of a row   F features of a row, tokens of its images   T token position
  E embed of the vision encoder   D embed of the decoder   K blocks of the decoder that take features (DeepStack)
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvlm.batch import Array
from jaxvlm.errors import UserError
from jaxvlm.families.qwen_vl.config import KINDS, QwenVLConfig
from jaxvlm.families.qwen_vl.merger import Projector
from jaxvlm.families.qwen_vl.patches import Patches
from jaxvlm.families.qwen_vl.tower import Tower
from jaxvlm.models.decoder import Decoder
from jaxvlm.models.vlm import VLM, merge_image_features
from jaxvlm.sharding import constrain


class Features(NamedTuple):
    """What the images of all rows become."""

    tokens: Array  # float[B, F, D], in place of the placeholders' embeddings
    deep: (
        Array | None
    )  # float[B, K, F, D], added to the outputs of the decoder's first K blocks; None: the kind has no DeepStack


class QwenVL(VLM):
    """Images stand in a row as patches; each square of patches is one token of the decoder."""

    def __init__(self, config: QwenVLConfig, rngs: nnx.Rngs):
        if config.kind not in KINDS:
            raise UserError(f'config.model.kind = "{config.kind}", expected {", ".join(KINDS)}')
        dtype = jnp.dtype(config.compute_dtype)
        merger, embed_dim = config.projector, config.language.embed_dim
        self.vision = Tower(config.vision, merger.merge_size, dtype=dtype, remat=config.remat, rngs=rngs)
        self.projector = Projector(config.vision, merger, embed_dim, dtype=dtype, remat=config.remat, rngs=rngs)
        self.language = Decoder(config.language, dtype=dtype, remat=config.remat, rngs=rngs)

    def encode(self, media: Patches) -> Features | None:
        """Features of a row's patches; None without patches, and the encoder is not run."""
        if media.frames.shape[1] == 0:
            return None
        features_BFD, deep_KBFD = self.projector(*self.vision(media))
        return Features(features_BFD, None if deep_KBFD is None else deep_KBFD.swapaxes(0, 1))

    def merge(self, x_BTD: Array, features: Features | None, image_index_BT: Array) -> Array:
        """float[B, T, D], the tokens' embeddings with the images' features at their places."""
        if features is None:
            return x_BTD
        return merge_image_features(x_BTD, constrain(features.tokens, ("batch", None, None)), image_index_BT)

    def added(self, features: Features | None, image_index_BT: Array) -> Array | None:
        """float[K, B, T, D], zero at text."""
        if features is None or features.deep is None:
            return None
        deep_KBFD = constrain(features.deep, ("batch", None, None, None)).swapaxes(0, 1)
        none_BTD = jnp.zeros((*image_index_BT.shape, deep_KBFD.shape[-1]), deep_KBFD.dtype)
        return jax.vmap(lambda deep_BFD: merge_image_features(none_BTD, deep_BFD, image_index_BT))(deep_KBFD)


MODULE = QwenVL
