"""The projector of Qwen-VL: a square of neighbouring patches becomes one token embedding.

Source: as of tower.py; HF's PatchMerger, Qwen2_5_VLPatchMerger and Qwen3VLVisionPatchMerger. DeepStack
(arXiv:2406.04334) has a merger of its own for each block whose output it takes.

Axis letters:
  B rows   P patches of a row   F tokens of a row's media   E embed of the tower   J values of a token's patches
  D embed of the decoder   K DeepStack mergers
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvlm.batch import Array
from jaxvlm.families.qwen_vl.config import MergerConfig, TowerConfig
from jaxvlm.families.qwen_vl.tower import NORMS
from jaxvlm.models.layers import Einsum, make_stack, run_stack


class Merger(nnx.Module):
    """Norm, joined neighbours, and two projections around an exact GELU (not the activation of the blocks)."""

    def __init__(
        self,
        c: TowerConfig,
        merge_size: int,
        embed_dim: int,
        *,
        norm_joined: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """Makes the weights.

        Args:
          merge_size: patches along each side of a token.
          embed_dim: D.
          norm_joined: norm the J values of a token instead of the E values of each patch.
        """
        self.joined = merge_size**2
        E, J, D = c.embed_dim, self.joined * c.embed_dim, embed_dim
        options: dict[str, Any] = {"bias": True, "dtype": dtype, "rngs": rngs}
        self.norm_joined = norm_joined
        self.norm = NORMS[c.norm](J if norm_joined else E, c.norm_epsilon, dtype=dtype)
        self.fc1 = Einsum("BFI,IJ->BFJ", (J, J), ("embed", "mlp"), **options)
        self.fc2 = Einsum("BFJ,JD->BFD", (J, D), ("mlp", "embed"), **options)

    def __call__(self, x_BPE: Array) -> Array:
        """float[B, P, E] -> float[B, P / merge_size**2, D]."""
        B, P, E = x_BPE.shape
        x_BPE = x_BPE if self.norm_joined else self.norm(x_BPE)
        x_BFJ = x_BPE.reshape(B, P // self.joined, self.joined * E)
        x_BFJ = self.norm(x_BFJ) if self.norm_joined else x_BFJ
        return self.fc2(jax.nn.gelu(self.fc1(x_BFJ), approximate=False))


class Projector(nnx.Module):
    """The merger of the last block's output, and those of DeepStack as one stack, if the tower has any."""

    def __init__(
        self, c: TowerConfig, merger: MergerConfig, embed_dim: int, *, dtype: jnp.dtype, remat: str, rngs: nnx.Rngs
    ):
        self.dtype, self.remat, layers = dtype, remat, len(c.deepstack_layers)

        def make(rngs: nnx.Rngs, norm_joined: bool) -> Merger:
            return Merger(c, merger.merge_size, embed_dim, norm_joined=norm_joined, dtype=dtype, rngs=rngs)

        self.merger = make(rngs, norm_joined=False)
        self.deepstack = make_stack(lambda rngs: make(rngs, norm_joined=True), layers, rngs=rngs) if layers else None

    def __call__(self, x_BPE: Array, deep_KBPE: Array) -> tuple[Array, Array | None]:
        """Token embeddings of the media, and what DeepStack adds to the decoder's first layers.

        Args:
          x_BPE: float[B, P, E], of the tower.
          deep_KBPE: float[K, B, P, E], of its DeepStack layers.

        Returns:
          float[B, F, D], and float[K, B, F, D], or None without DeepStack; F is P / merge_size**2.
        """
        features_BFD = self.merger(x_BPE)
        if self.deepstack is None:
            return features_BFD, None
        # Rematerialised: what three mergers save would lie in memory until the decoder's backward pass is over.
        _, deep_KBFD = run_stack(
            self.deepstack,
            lambda merger, _, x_BPE: (None, merger(x_BPE)),
            None,
            deep_KBPE,
            remat=self.remat,
            dtype=self.dtype,
        )
        return features_BFD, deep_KBFD
