"""The vision encoders of CLIP and of SigLIP.

Source: CLIP (arXiv:2103.00020); HF models/clip/modeling_clip.py. SigLIP (arXiv:2303.15343); HF
models/siglip/modeling_siglip.py: the same blocks, but no class token, no norm before them, a bias at the patches, and a
pooling head with weights of its own. LLaVA reads the patches after a block before the last one and drops the class
token (arXiv:2310.03744).

Axis letters:
  B images   Y, X pixels   C channels   P patches   Q values of a patch (rows, columns, channels)
  T tokens (CLIP's class token, then patches)   S key tokens   D embed   F mlp   N heads   H head_dim
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jaxvlm.batch import Array
from jaxvlm.config import VisionConfig
from jaxvlm.errors import UserError
from jaxvlm.models import tpu
from jaxvlm.models.attention import LANES, attend
from jaxvlm.models.layers import ACTIVATIONS, Einsum, LayerNorm, make_stack, make_weight, run_stack
from jaxvlm.sharding import constrain


class Attention(nnx.Module):
    """Full self-attention with biases."""

    def __init__(self, c: VisionConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        D, N, H = c.embed_dim, c.num_heads, c.embed_dim // c.num_heads
        gain = (2 * c.num_layers) ** -0.5
        options: dict[str, Any] = {"bias": True, "dtype": dtype, "rngs": rngs}
        self.q = Einsum("BTD,DNH->BTNH", (D, N, H), ("embed", "heads", "head_dim"), **options)
        self.k = Einsum("BSD,DNH->BSNH", (D, N, H), ("embed", "heads", "head_dim"), **options)
        self.v = Einsum("BSD,DNH->BSNH", (D, N, H), ("embed", "heads", "head_dim"), **options)
        self.out = Einsum("BTNH,NHD->BTD", (N, H, D), ("heads", "head_dim", "embed"), gain=gain, **options)

    def __call__(self, x_BTD: Array, segments_BT: Array | None) -> Array:
        """Every token attends to every token of its image; None: there is no padding."""
        pair = None if segments_BT is None else (segments_BT, segments_BT)
        return self.out(attend(self.q(x_BTD), self.k(x_BTD), self.v(x_BTD), pair, causal=False))


class MLP(nnx.Module):
    """Two projections around the config's activation."""

    def __init__(self, c: VisionConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        D, F = c.embed_dim, c.mlp_dim
        gain = (2 * c.num_layers) ** -0.5
        self.up = Einsum("BTD,DF->BTF", (D, F), ("embed", "mlp"), bias=True, dtype=dtype, rngs=rngs)
        self.down = Einsum("BTF,FD->BTD", (F, D), ("mlp", "embed"), bias=True, gain=gain, dtype=dtype, rngs=rngs)
        self.activation = c.activation

    def __call__(self, x_BTD: Array) -> Array:
        """float[B, T, D] -> float[B, T, D]."""
        return self.down(tpu.settle(ACTIVATIONS[self.activation](self.up(x_BTD))))


class Block(nnx.Module):
    """Attention and MLP, each after a norm and added to the residual stream."""

    def __init__(self, c: VisionConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.attention_norm = LayerNorm(c.embed_dim, c.norm_epsilon, dtype=dtype)
        self.attention = Attention(c, dtype=dtype, rngs=rngs)
        self.mlp_norm = LayerNorm(c.embed_dim, c.norm_epsilon, dtype=dtype)
        self.mlp = MLP(c, dtype=dtype, rngs=rngs)

    def __call__(self, x_BTD: Array, segments_BT: Array | None = None) -> Array:
        """float[B, T, D] -> float[B, T, D]; positions of segment 0 are padding."""
        x_BTD = constrain(x_BTD, ("batch", None, None))
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), segments_BT)
        return x_BTD + self.mlp(self.mlp_norm(x_BTD))


class PoolHead(nnx.Module):
    """The weights of SigLIP's attention pooling (HF SiglipMultiheadAttentionPoolingHead); LLaVA does not pool."""

    def __init__(self, c: VisionConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        D = c.embed_dim
        self.probe = make_weight((1, 1, D), (None, None, "embed"), 1 / math.sqrt(D), rngs=rngs)
        # Queries, keys and values in one matrix, as in torch's MultiheadAttention.
        self.qkv = Einsum("BTD,DE->BTE", (D, 3 * D), ("embed", None), bias=True, dtype=dtype, rngs=rngs)
        self.out = Einsum("BTE,ED->BTD", (D, D), (None, "embed"), bias=True, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(D, c.norm_epsilon, dtype=dtype)
        self.mlp = MLP(c, dtype=dtype, rngs=rngs)


class Vision(nnx.Module):
    """From pixels to patch features.

    All weights of the Hugging Face model exist, for the round trip of a checkpoint. Those without influence on the
    features (the blocks after `feature_layer`, `post_norm`, `pool`) are not used; their gradient is zero.
    """

    def __init__(self, c: VisionConfig, *, dtype: jnp.dtype, remat: str, rngs: nnx.Rngs):
        """Makes the weights.

        Raises:
          UserError: the feature layer does not exist, or sizes do not fit each other.
        """
        if not -c.num_layers <= c.feature_layer <= -1:
            raise UserError(
                f"config.model.vision.feature_layer = {c.feature_layer}, expected -{c.num_layers} (the first of "
                f"{c.num_layers} blocks) to -1 (the last)"
            )
        if c.activation not in ACTIVATIONS:
            raise UserError(f'config.model.vision.activation = "{c.activation}"; known: {", ".join(ACTIVATIONS)}')
        if c.embed_dim % c.num_heads:
            raise UserError(f"config.model.vision: embed_dim {c.embed_dim} does not divide into {c.num_heads} heads")
        if c.patch_size > c.image_size:
            raise UserError(f"config.model.vision: patch_size {c.patch_size} is over image_size {c.image_size}")
        D, P, Q = c.embed_dim, c.features_per_image, 3 * c.patch_size**2
        self.config, self.dtype, self.remat = c, dtype, remat
        self.patch = Einsum("BPQ,QD->BPD", (Q, D), (None, "embed"), bias=c.patch_bias, dtype=dtype, rngs=rngs)
        self.class_token = make_weight((D,), ("embed",), 1 / math.sqrt(D), rngs=rngs) if c.class_token else None
        self.positions = make_weight((c.class_token + P, D), ("patches", "embed"), 1 / math.sqrt(D), rngs=rngs)
        self.pre_norm = LayerNorm(D, c.norm_epsilon, dtype=dtype) if c.pre_norm else None
        self.blocks = make_stack(lambda rngs: Block(c, dtype=dtype, rngs=rngs), c.num_layers, rngs=rngs)
        self.post_norm = LayerNorm(D, c.norm_epsilon, dtype=dtype)  # of the pooled output only
        self.pool = PoolHead(c, dtype=dtype, rngs=rngs) if c.pool else None

    def embed(self, pixels_BYXC: Array) -> Array:
        """The input of the first block.

        Args:
          pixels_BYXC: uint8[B, Y, X, 3], RGB.

        Returns:
          float[B, 1 + P, D]; of SigLIP float[B, P, D].
        """
        side, size = self.config.image_size // self.config.patch_size, self.config.patch_size
        B = pixels_BYXC.shape[0]
        pixels_BYXC = pixels_BYXC[:, : side * size, : side * size]  # as HF's strided convolution, drops the rest
        patches = pixels_BYXC.reshape(B, side, size, side, size, 3).transpose(0, 1, 3, 2, 4, 5)
        mean, std = jnp.array(self.config.image_mean), jnp.array(self.config.image_std)
        patches = (patches.astype(jnp.float32) / 255 - mean) / std
        x_BTD = self.patch(patches.reshape(B, side**2, size**2 * 3))
        if self.class_token is not None:
            first_B1D = jnp.broadcast_to(self.class_token[...].astype(self.dtype), (B, 1, x_BTD.shape[-1]))
            x_BTD = jnp.concatenate([first_B1D, x_BTD], axis=1)
        x_BTD = x_BTD + self.positions[...].astype(self.dtype)
        return x_BTD if self.pre_norm is None else self.pre_norm(x_BTD)

    def __call__(self, pixels_BYXC: Array) -> Array:
        """Patch features of the feature layer, without CLIP's class token.

        Args:
          pixels_BYXC: uint8[B, Y, X, 3], RGB.

        Returns:
          float[B, P, D].
        """
        x_BTD = self.embed(pixels_BYXC)
        B, T, _ = x_BTD.shape
        segments_BT = None
        if tpu.is_target() and T % LANES:  # padded once, not in every block: 3.3 -> 2.4 Mcycles each at 577 positions
            more = -T % LANES
            segments_BT = jnp.pad(jnp.ones((B, T), jnp.int32), [(0, 0), (0, more)])
            x_BTD = jnp.pad(x_BTD, [(0, 0), (0, more), (0, 0)])
        x_BTD, _ = run_stack(
            self.blocks,
            lambda block, x_BTD, _: (block(x_BTD, segments_BT), None),
            x_BTD,
            length=self.config.num_layers + 1 + self.config.feature_layer,
            remat=self.remat,
            dtype=self.dtype,
        )
        return x_BTD[:, T - self.config.features_per_image : T]
