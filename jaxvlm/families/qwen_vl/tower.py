"""The vision encoder of Qwen2-VL, Qwen2.5-VL and Qwen3-VL, for rows of patches of images of any size.

Source: Qwen2-VL (arXiv:2409.12191), Qwen2.5-VL (arXiv:2502.13923), Qwen3-VL (arXiv:2511.21631); HF
models/qwen2_vl/modeling_qwen2_vl.py, models/qwen2_5_vl/modeling_qwen2_5_vl.py, models/qwen3_vl/modeling_qwen3_vl.py.
All rotate queries and keys by the row and the column of the patch. 2.5 has RMS norms, a gated MLP, and attends within
windows except in a few blocks; 3 adds learned positions, and also passes the outputs of some blocks to the decoder.

Axis letters:
  B rows   P patches of a row   S key patches   F frames of a patch   Y, X pixels   E embed   M mlp
  N heads   H head_dim   L layers   R, C rows and columns of the table of learned positions
  Q values of a patch (frames, rows, columns, channels)
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxvlm.batch import Array
from jaxvlm.errors import UserError
from jaxvlm.families.qwen_vl.config import TowerConfig
from jaxvlm.families.qwen_vl.patches import Patches
from jaxvlm.models import tpu
from jaxvlm.models.attention import attend
from jaxvlm.models.layers import (
    ACTIVATIONS,
    Einsum,
    LayerNorm,
    RMSNorm,
    make_stack,
    make_weight,
    rope,
    rope_table,
    run_stack,
)
from jaxvlm.sharding import constrain

Pair = tuple[Array, Array]

ROPE_THETA = 10000.0  # of all three

NORMS: dict[str, type[LayerNorm] | type[RMSNorm]] = {"layer": LayerNorm, "rms": RMSNorm}  # by TowerConfig.norm


class Attention(nnx.Module):
    """Self-attention within segments, with rotary positions and biases."""

    def __init__(self, c: TowerConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        E, N, H = c.embed_dim, c.num_heads, c.embed_dim // c.num_heads
        gain = (2 * c.num_layers) ** -0.5
        options: dict[str, Any] = {"bias": True, "dtype": dtype, "rngs": rngs}
        # Queries, keys and values in one matrix, as in the files: adapters of PEFT are of the whole.
        self.qkv = Einsum("BPE,ECNH->BPCNH", (E, 3, N, H), ("embed", None, "heads", "head_dim"), **options)
        self.out = Einsum("BPNH,NHE->BPE", (N, H, E), ("heads", "head_dim", "embed"), gain=gain, **options)

    def __call__(self, x_BPE: Array, table: Pair, segments_BP: Array) -> Array:
        """float[B, P, E] -> float[B, P, E]; `table` is of `patch_rope`."""
        q_BPNH, k_BPNH, v_BPNH = jnp.moveaxis(self.qkv(x_BPE), 2, 0)
        y_BPNH = attend(rope(q_BPNH, table), rope(k_BPNH, table), v_BPNH, (segments_BP, segments_BP), causal=False)
        return self.out(tpu.settle(y_BPNH))


class MLP(nnx.Module):
    """Two projections around the activation; gated: the activation of one projection times another one."""

    def __init__(self, c: TowerConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        E, M = c.embed_dim, c.mlp_dim
        gain = (2 * c.num_layers) ** -0.5
        options: dict[str, Any] = {"bias": True, "dtype": dtype, "rngs": rngs}
        self.gate = Einsum("BPE,EM->BPM", (E, M), ("embed", "mlp"), **options) if c.is_gated else None
        self.up = Einsum("BPE,EM->BPM", (E, M), ("embed", "mlp"), **options)
        self.down = Einsum("BPM,ME->BPE", (M, E), ("mlp", "embed"), gain=gain, **options)
        self.activation = c.activation

    def __call__(self, x_BPE: Array) -> Array:
        """float[B, P, E] -> float[B, P, E]."""
        activate, up_BPM = ACTIVATIONS[self.activation], self.up(x_BPE)
        if self.gate is None:
            return self.down(tpu.settle(activate(up_BPM)))
        gate_BPM = self.gate(x_BPE)
        if tpu.is_target() and self.activation == "silu":
            return self.down(tpu.settle(tpu.swiglu(gate_BPM, up_BPM)))
        return self.down(tpu.settle(activate(gate_BPM) * up_BPM))


class Block(nnx.Module):
    """Attention and MLP, each after a norm and added to the residual stream."""

    def __init__(self, c: TowerConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        norm = NORMS[c.norm]
        self.attention_norm = norm(c.embed_dim, c.norm_epsilon, dtype=dtype)
        self.attention = Attention(c, dtype=dtype, rngs=rngs)
        self.mlp_norm = norm(c.embed_dim, c.norm_epsilon, dtype=dtype)
        self.mlp = MLP(c, dtype=dtype, rngs=rngs)

    def __call__(self, x_BPE: Array, table: Pair, segments_BP: Array) -> Array:
        """The residual stream after this block, float[B, P, E]."""
        x_BPE = checkpoint_name(constrain(x_BPE, ("batch", None, None)), "input")
        x_BPE = x_BPE + self.attention(self.attention_norm(x_BPE), table, segments_BP)
        return x_BPE + self.mlp(self.mlp_norm(x_BPE))


class Tower(nnx.Module):
    """From pixels to patch features; the norm after the last block is the merger's."""

    def __init__(self, c: TowerConfig, merge_size: int, *, dtype: jnp.dtype, remat: str, rngs: nnx.Rngs):
        """Makes the weights.

        Args:
          merge_size: patches along each side of a token; a window contains whole tokens.

        Raises:
          UserError: sizes do not fit each other, a name is unknown, or a block is named that does not exist.
        """
        check_tower(c, merge_size)
        E, Q = c.embed_dim, 2 * c.patch_size**2 * 3  # a patch always is two frames deep
        self.config, self.dtype, self.remat = c, dtype, remat
        self.patch = Einsum("BPQ,QE->BPE", (Q, E), (None, "embed"), bias=c.patch_bias, dtype=dtype, rngs=rngs)
        positions = (c.position_rows**2, E)
        self.positions = (
            make_weight(positions, ("patches", "embed"), 1 / math.sqrt(E), rngs=rngs) if c.position_rows else None
        )
        self.blocks = make_stack(lambda rngs: Block(c, dtype=dtype, rngs=rngs), c.num_layers, rngs=rngs)

    def embed(self, media: Patches) -> Array:
        """The input of the first block, float[B, P, E]."""
        B, P, F = media.pixels.shape[:3]
        mean, std = jnp.array(self.config.image_mean), jnp.array(self.config.image_std)
        pixels_BPFYXC = (media.pixels.astype(jnp.float32) / 255 - mean) / std
        x_BPE = (self._patch_of_one_frame() if F == 1 else self.patch)(pixels_BPFYXC.reshape(B, P, -1))
        if self.positions is None:
            return x_BPE
        # The taps of all patches are many times the table, and are cheap to make again for its gradient.
        interpolate = jax.checkpoint(interpolate_positions)
        # Gathered whole: it is small, and otherwise XLA may send the taps from device to device instead.
        table_RE = constrain(self.positions[...].astype(jnp.float32), ("patches", None))
        return x_BPE + interpolate(table_RE, media.places, media.grids).astype(self.dtype)

    def _patch_of_one_frame(self) -> Einsum:
        """The patch projection of two equal frames as a function of one: both halves of the weight are added."""
        graph, state = nnx.split(self.patch)
        weights = nnx.to_pure_dict(state)
        weights["w"] = sum(jnp.split(weights["w"].astype(jnp.float32), 2))
        if "lora" in weights:
            weights["lora"]["a"] = sum(jnp.split(weights["lora"]["a"].astype(jnp.float32), 2))
        return nnx.merge(graph, nnx.State(weights))

    def __call__(self, media: Patches) -> tuple[Array, Array]:
        """Patch features after the last block, and after each of `deepstack_layers`.

        Args:
          media: patches of B rows.

        Returns:
          float[B, P, E], and float[K, B, P, E] of the K `deepstack_layers`. Those of padding are finite and unused.
        """
        c, x_BPE = self.config, self.embed(media)
        table, K = patch_rope(media.places, c.embed_dim // c.num_heads), len(c.deepstack_layers)
        windows_BP = window_segments(media.frames, media.places, c.window) if c.window else None
        is_full_L = np.isin(np.arange(c.num_layers), c.full_layers)
        slot_L = np.full(c.num_layers, K)  # of the outputs that nothing needs
        slot_L[list(c.deepstack_layers)] = np.arange(K)

        # One scan for all blocks, so that no weights are sliced, and a block is compiled once. Blocks of 2.5 differ in
        # their segments alone, and select them. The outputs that 3 needs are written into a buffer: the backward pass
        # does not read it, so rematerialisation still saves nothing but the input of each block. With a scan up to each
        # needed output instead, a v5e needs 760 MiB for the forward pass of the 8B's tower and not 207 (two rows of
        # 4,096 patches, bfloat16 weights).
        def apply(
            block: Block, carry: tuple[Array, Array], xs: tuple[Array, Array]
        ) -> tuple[tuple[Array, Array], None]:
            (x_BPE, deep_KBPE), (is_full, slot) = carry, xs
            segments_BP = media.frames if windows_BP is None else jnp.where(is_full, media.frames, windows_BP)
            x_BPE = block(x_BPE, table, segments_BP)
            if K:
                deep_KBPE = jax.lax.dynamic_update_index_in_dim(deep_KBPE, x_BPE, slot, axis=0)
            return (x_BPE, deep_KBPE), None

        deep_KBPE = constrain(jnp.zeros((K + 1 if K else 0, *x_BPE.shape), self.dtype), (None, "batch", None, None))
        (x_BPE, deep_KBPE), _ = run_stack(
            self.blocks, apply, (x_BPE, deep_KBPE), (is_full_L, slot_L), remat=self.remat, dtype=self.dtype
        )
        return x_BPE, deep_KBPE[:K]


def check_tower(c: TowerConfig, merge_size: int) -> None:
    """Checks that the sizes fit each other and that all names are known.

    Raises:
      UserError: with the first field that is wrong.
    """
    where = "config.model.vision"
    if c.embed_dim % c.num_heads:
        raise UserError(f"{where}: embed_dim {c.embed_dim} does not divide into num_heads {c.num_heads}")
    if c.embed_dim // c.num_heads % 4:
        raise UserError(
            f"{where}: embed_dim / num_heads = {c.embed_dim // c.num_heads}, expected a multiple of 4: row and column "
            "each turn half of a head's pairs"
        )
    for name, value, known in (("activation", c.activation, ACTIVATIONS), ("norm", c.norm, NORMS)):
        if value not in known:
            raise UserError(f'{where}.{name} = "{value}"; known: {", ".join(known)}')
    if merge_size < 1:
        raise UserError(f"config.model.projector.merge_size = {merge_size}, expected 1 or more")
    if c.window < 0 or c.window % merge_size:
        raise UserError(
            f"{where}.window = {c.window}, expected a multiple of config.model.projector.merge_size = {merge_size}, or "
            "0 for none"
        )
    if c.full_layers and not c.window:
        raise UserError(f"{where}.full_layers = {c.full_layers}, but window = 0: all blocks are full; set it to ()")
    for name, layers in (("full_layers", c.full_layers), ("deepstack_layers", c.deepstack_layers)):
        if any(not 0 <= layer < c.num_layers for layer in layers) or list(layers) != sorted(set(layers)):
            raise UserError(f"{where}.{name} = {layers}, expected ascending numbers of blocks, 0 to {c.num_layers - 1}")


def patch_rope(places_BP2: Array, head_dim: int) -> Pair:
    """Cosines and sines for `layers.rope`: the first half of the pairs turns with the row, the second with the column.

    Args:
      places_BP2: int32[B, P, 2].
      head_dim: H, a multiple of 4.

    Returns:
      float32[B, P, 1, H / 2] twice.

    Source: HF models/qwen2_vl/modeling_qwen2_vl.py, Qwen2VLVisionRotaryEmbedding.
    """
    of_rows, of_columns = (rope_table(places_BP2[:, :, axis], head_dim // 2, ROPE_THETA, None) for axis in (0, 1))
    cos, sin = (jnp.concatenate(pair, axis=-1) for pair in zip(of_rows, of_columns, strict=True))
    return cos, sin


def window_segments(frames_BP: Array, places_BP2: Array, window: int) -> Array:
    """Attention segments of windows: 1, 2, ... along the row, 0 at padding.

        frames [ 1 1 1 1 1 1 2 2 0 ]   window of the patch [ a a b b c c a a - ]   result [ 1 1 2 2 3 3 4 4 0 ]

    Args:
      frames_BP: int32[B, P]; 0 is padding.
      places_BP2: int32[B, P, 2]; the patches of a window are contiguous within their frame.
      window: patches along each side of a window; those at the right and lower edge of an image may be smaller.

    Returns:
      int32[B, P].
    """
    keys_BP3 = jnp.concatenate([frames_BP[:, :, None], places_BP2 // window], axis=-1)
    is_new_BP = jnp.any(keys_BP3[:, 1:] != keys_BP3[:, :-1], axis=-1)
    ids_BP = 1 + jnp.pad(jnp.cumsum(is_new_BP, axis=1, dtype=jnp.int32), [(0, 0), (1, 0)])
    return jnp.where(frames_BP > 0, ids_BP, 0)


def interpolate_positions(table_RE: Array, places_BP2: Array, grids_BP2: Array) -> Array:
    """The table of learned positions, stretched bilinearly over each image, corner on corner.

    A place is the fraction row / (rows - 1) of the table's height; each of the table's rows weighs 1 there, falling to
    0 at its neighbours, and so do the columns. As a product with these weights, of which four are not 0, there is no
    gather forward and no scatter backward.

    Args:
      table_RE: float32[R * R, E], row-major.
      places_BP2: int32[B, P, 2].
      grids_BP2: int32[B, P, 2]; rows and columns of the patch's image; 0 at padding.

    Returns:
      float32[B, P, E].

    Source: HF vision_utils.py, get_vision_interpolation_indices_and_weights, with align_corners.
    """
    B, P, _ = places_BP2.shape
    side = math.isqrt(table_RE.shape[0])
    steps_BP2 = jnp.maximum(grids_BP2 - 1, 1)  # an image of one row, and padding, read the table's first one
    at_BP2 = places_BP2.astype(jnp.float32) * (side - 1) / steps_BP2
    weights_BP2R = jnp.maximum(0.0, 1.0 - jnp.abs(at_BP2[:, :, :, None] - jnp.arange(side, dtype=jnp.float32)))
    rows_BPR1, columns_BP1C = weights_BP2R[:, :, 0, :, None], weights_BP2R[:, :, 1, None, :]
    # TPUs would round both factors to bfloat16, and with them the places by up to 1/256 of the distance of two rows.
    return jnp.matmul((rows_BPR1 * columns_BP1C).reshape(B, P, side**2), table_RE, precision="high")
