"""LLaMA decoder and its relatives, with a key/value cache for inference.

Source: LLaMA (arXiv:2302.13971), Llama 2 (arXiv:2307.09288), GQA (arXiv:2305.13245); HF models/llama/modeling_llama.py.
Mistral and SmolLM2 are the same function; Qwen2 (arXiv:2407.10671) has biases at queries, keys and values, Qwen3
(arXiv:2505.09388) norms each head's query and key.

Axis letters:
  B rows   T token (query) position   S key position   D embed   F mlp
  N heads   K key/value heads         H head_dim       V vocab   L layers
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxvlm.batch import Array
from jaxvlm.config import DecoderConfig
from jaxvlm.errors import UserError
from jaxvlm.models import tpu
from jaxvlm.models.attention import attend, attend_token
from jaxvlm.models.layers import (
    ROPE_SCALINGS,
    Einsum,
    RMSNorm,
    make_stack,
    make_weight,
    matmul,
    rope,
    rope_table,
    run_stack,
)
from jaxvlm.sharding import constrain

Pair = tuple[Array, Array]  # cosines and sines, or keys and values


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of the tokens so far, for rows of different lengths in one array.

    After a prefill with T = 4 and two steps, S = 7 (p padding, # a step's token, . free)::

        row 0   [ 5 6 7 p # # . ]   segments [ 1 1 1 0 1 1 0 ]
        row 1   [ 5 6 p p # # . ]   segments [ 1 1 0 0 1 1 0 ]   next 6

    Every step writes the same slot in all rows. `segments` marks the valid slots; the positions, already rotated
    into the keys, give the order.

    Where `next` has an entry for each row, tokens are written after the row's own, without padding between them, and
    rows can begin and end independently::

        row 0   [ 5 6 7 # # . . ]   segments [ 1 1 1 1 1 0 0 ]   next 5
        row 1   [ 5 6 # # . . . ]   segments [ 1 1 1 1 0 0 0 ]   next 4
    """

    keys: Array  # float[L, B, S, K, H] in the compute dtype, rotated
    values: Array  # float[L, B, S, K, H]
    segments: Array  # int32[B, S]; 0 at padding and at free slots
    next: Array  # int32[] or int32[B]; the slot of the next token, of all rows or of each


class Attention(nnx.Module):
    """Causal grouped-query self-attention with rotary positions."""

    def __init__(self, c: DecoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        D, N, K, H = c.embed_dim, c.num_heads, c.num_kv_heads, c.head_dim
        options: dict[str, Any] = {"bias": c.qkv_bias, "dtype": dtype, "rngs": rngs}
        out: dict[str, Any] = {"bias": c.out_bias, "gain": (2 * c.num_layers) ** -0.5, "dtype": dtype, "rngs": rngs}
        self.q = Einsum("BTD,DNH->BTNH", (D, N, H), ("embed", "heads", "head_dim"), **options)
        self.k = Einsum("BSD,DKH->BSKH", (D, K, H), ("embed", "kv_heads", "head_dim"), **options)
        self.v = Einsum("BSD,DKH->BSKH", (D, K, H), ("embed", "kv_heads", "head_dim"), **options)
        self.q_norm = RMSNorm(H, c.norm_epsilon, axis="head_dim", dtype=dtype) if c.qk_norm else None
        self.k_norm = RMSNorm(H, c.norm_epsilon, axis="head_dim", dtype=dtype) if c.qk_norm else None
        self.out = Einsum("BTNH,NHD->BTD", (N, H, D), ("heads", "head_dim", "embed"), **out)

    def _queries(self, x_BTD: Array, table: Pair) -> Array:
        q_BTNH = self.q(x_BTD)
        return rope(q_BTNH if self.q_norm is None else self.q_norm(q_BTNH), table)

    def _keys(self, x_BSD: Array, table: Pair) -> Array:
        k_BSKH = self.k(x_BSD)
        return rope(k_BSKH if self.k_norm is None else self.k_norm(k_BSKH), table)

    def __call__(self, x_BTD: Array, table: Pair, segments_BT: Array) -> tuple[Array, Pair]:
        """Attention within the row; also returns the keys and values, for a cache."""
        k_BSKH, v_BSKH = self._keys(x_BTD, table), self.v(x_BTD)
        y_BTNH = attend(self._queries(x_BTD, table), k_BSKH, v_BSKH, (segments_BT, segments_BT), causal=True)
        return self.out(tpu.settle(y_BTNH)), (k_BSKH, v_BSKH)

    def extend(
        self, x_BTD: Array, table: Pair, cache: Cache, segments_BT: Array, layer: Array, seen: int | None
    ) -> tuple[Array, Pair]:
        """Attention of new tokens to the cache; writes their keys and values into the slots from `next` of `layer`."""
        k_LBSKH = _write(cache.keys, self._keys(x_BTD, table), layer, cache.next)
        v_LBSKH = _write(cache.values, self.v(x_BTD), layer, cache.next)
        k_BSKH = jax.lax.dynamic_index_in_dim(k_LBSKH, layer, keepdims=False)[:, :seen]
        v_BSKH = jax.lax.dynamic_index_in_dim(v_LBSKH, layer, keepdims=False)[:, :seen]
        segments, q_BTNH = (segments_BT, cache.segments[:, :seen]), self._queries(x_BTD, table)
        if x_BTD.shape[1] == 1:  # later slots are free, hence of no segment
            one = functools.partial(attend, causal=False) if cache.next.ndim == 0 else attend_token
            y_BTNH = one(q_BTNH, k_BSKH, v_BSKH, segments)
        else:
            starts_B = jnp.broadcast_to(cache.next, x_BTD.shape[:1])
            y_BTNH = attend(q_BTNH, k_BSKH, v_BSKH, segments, causal=True, starts_B=starts_B)
        return self.out(y_BTNH), (k_LBSKH, v_LBSKH)


def _write(old_LBSKH: Array, new_BTKH: Array, layer: Array, next: Array) -> Array:
    """Writes keys or values of new tokens into a layer.

    With a slot for each row, several tokens are dropped where they do not fit; a single one overwrites the last slot.
    XLA for CPUs copies the whole cache for a scatter, so single tokens are written row by row, in place: a step of 8
    rows of 10 M weights takes 112 ms with scatters.
    """
    if next.ndim == 0:
        return jax.lax.dynamic_update_slice(old_LBSKH, new_BTKH[None], (layer, 0, next, 0, 0))
    B, T = new_BTKH.shape[:2]
    if T == 1:
        for row in range(B):
            start = (layer, row, next[row], 0, 0)
            old_LBSKH = jax.lax.dynamic_update_slice(old_LBSKH, new_BTKH[None, row : row + 1], start)
        return old_LBSKH
    slots_BT = next[:, None] + jnp.arange(T)

    def write(old_LSKH: Array, new_TKH: Array, slots_T: Array) -> Array:
        return old_LSKH.at[layer, slots_T].set(new_TKH, mode="drop")

    return jax.vmap(write, in_axes=(1, 0, 0), out_axes=1)(old_LBSKH, new_BTKH, slots_BT)


def _mark(segments_BS: Array, new_BT: Array, next: Array) -> Array:
    """The same for the segments of the slots."""
    if next.ndim == 0:
        return jax.lax.dynamic_update_slice_in_dim(segments_BS, new_BT, next, axis=1)
    slots_BT = next[:, None] + jnp.arange(new_BT.shape[1])
    return jax.vmap(lambda old_S, new_T, slots_T: old_S.at[slots_T].set(new_T, mode="drop"))(
        segments_BS, new_BT, slots_BT
    )


class MLP(nnx.Module):
    """SwiGLU. Source: arXiv:2002.05202."""

    def __init__(self, c: DecoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        D, F = c.embed_dim, c.mlp_dim
        gain = (2 * c.num_layers) ** -0.5
        self.gate = Einsum("BTD,DF->BTF", (D, F), ("embed", "mlp"), dtype=dtype, rngs=rngs)
        self.up = Einsum("BTD,DF->BTF", (D, F), ("embed", "mlp"), dtype=dtype, rngs=rngs)
        self.down = Einsum("BTF,FD->BTD", (F, D), ("mlp", "embed"), gain=gain, dtype=dtype, rngs=rngs)

    def __call__(self, x_BTD: Array) -> Array:
        """float[B, T, D] -> float[B, T, D]."""
        gate_BTF, up_BTF = checkpoint_name(self.gate(x_BTD), "gate"), checkpoint_name(self.up(x_BTD), "up")
        if tpu.is_target():
            return self.down(tpu.settle(tpu.swiglu(gate_BTF, up_BTF)))
        return self.down(jax.nn.silu(gate_BTF) * up_BTF)


class Block(nnx.Module):
    """Attention and MLP, each after a norm and added to the residual stream."""

    def __init__(self, c: DecoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(c.embed_dim, c.norm_epsilon, dtype=dtype)
        self.attention = Attention(c, dtype=dtype, rngs=rngs)
        self.mlp_norm = RMSNorm(c.embed_dim, c.norm_epsilon, dtype=dtype)
        self.mlp = MLP(c, dtype=dtype, rngs=rngs)

    def __call__(self, x_BTD: Array, table: Pair, segments_BT: Array) -> tuple[Array, Pair]:
        """The residual stream after this block, and the block's keys and values."""
        x_BTD = checkpoint_name(constrain(x_BTD, ("batch", "seq", None)), "input")
        y_BTD, keys_values = self.attention(self.attention_norm(x_BTD), table, segments_BT)
        x_BTD = checkpoint_name(x_BTD + y_BTD, "residual")
        return x_BTD + self.mlp(self.mlp_norm(x_BTD)), keys_values

    def extend(
        self, x_BTD: Array, table: Pair, cache: Cache, segments_BT: Array, layer: Array, seen: int | None
    ) -> tuple[Array, Pair]:
        """The same for new tokens, with the keys and values of the whole cache."""
        y_BTD, keys_values = self.attention.extend(self.attention_norm(x_BTD), table, cache, segments_BT, layer, seen)
        x_BTD = x_BTD + y_BTD
        return x_BTD + self.mlp(self.mlp_norm(x_BTD)), keys_values


class Embedding(nnx.Module):
    """Token embeddings; if tied, also the output projection."""

    def __init__(self, c: DecoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        # 1 / sqrt(D): logits of unit variance when tied, and LLaMA's 0.02 at the widths of LLaMA.
        self.w = make_weight((c.vocab_size, c.embed_dim), ("vocab", "embed"), 1 / math.sqrt(c.embed_dim), rngs=rngs)
        self.dtype = dtype

    def __call__(self, tokens_BT: Array) -> Array:
        """int32[B, T] -> float[B, T, D]."""
        return self.w[...].astype(self.dtype)[tokens_BT]

    def logits(self, x: Array) -> Array:
        """float[..., D] -> float32[..., V]."""
        return matmul(x.astype(self.dtype), self.w[...].astype(self.dtype).T, 1, preferred_element_type=jnp.float32)


# config.model.language.architecture -> (qkv_bias, out_bias, qk_norm) of its models, the usual first.
ARCHITECTURES = {
    "llama": ((False, False, False), (True, True, False)),
    "mistral": ((False, False, False),),
    "qwen2": ((True, False, False),),
    "qwen3": ((False, False, True), (True, True, True)),
}


def check_architecture(c: DecoderConfig) -> None:
    """Raises `UserError` if the architecture is unknown, or has no models with the config's biases and norms."""
    if (c.qkv_bias, c.out_bias, c.qk_norm) not in ARCHITECTURES.get(c.architecture, ()):
        choices = [(name, choice) for name, choices in ARCHITECTURES.items() for choice in choices]
        known = "; ".join(f"{name}: {', '.join(map(str, choice))}" for name, choice in choices)
        raise UserError(
            f'config.model.language: architecture "{c.architecture}" with qkv_bias = {c.qkv_bias}, out_bias = '
            f"{c.out_bias} and qk_norm = {c.qk_norm} is not a model of transformers; architectures and their qkv_bias, "
            f"out_bias, qk_norm: {known}"
        )


def check_window(c: DecoderConfig, tokens: int) -> None:
    """Raises `UserError` if rows of that many tokens are longer than the attention window."""
    if c.window is not None and tokens > c.window:
        raise UserError(
            f"rows must not be longer than the decoder's attention window of {c.window} tokens "
            f"(config.model.language.window), and they have {tokens}; make them shorter (config.stage.NAME.data.tokens)"
        )


@jax.custom_vjp
def _add(x_BTD: Array, added_KBTD: Array, layer: Array) -> tuple[Array, Array]:
    """The output of block `layer` with what `Decoder.__call__` adds to it, and all that is added, for the next block.

    The stack is not split after the first K blocks: a slice of the others would copy their weights. `added_KBTD` is
    carried from block to block, so that its gradient is, too, and XLA adds to it in place. As a constant of the scan
    its gradient would be K arrays of zeros and one sum more in each block.
    """
    K = added_KBTD.shape[0]
    return x_BTD + jnp.where(layer < K, added_KBTD[jnp.minimum(layer, K - 1)], 0), added_KBTD


def _add_forward(x_BTD: Array, added_KBTD: Array, layer: Array) -> tuple[tuple[Array, Array], Array]:
    return _add(x_BTD, added_KBTD, layer), layer


def _add_backward(layer: Array, gradients: tuple[Array, Array]) -> tuple[Array, Array, None]:
    dx_BTD, d_added_KBTD = gradients
    K = d_added_KBTD.shape[0]
    at = jnp.minimum(layer, K - 1)
    total_BTD = d_added_KBTD[at] + jnp.where(layer < K, dx_BTD, 0).astype(d_added_KBTD.dtype)
    return dx_BTD, jax.lax.dynamic_update_index_in_dim(d_added_KBTD, total_BTD, at, axis=0), None


_add.defvjp(_add_forward, _add_backward)


class Decoder(nnx.Module):
    """From the embeddings of a row to its final hidden states, and from those to logits."""

    def __init__(self, c: DecoderConfig, *, dtype: jnp.dtype, remat: str, rngs: nnx.Rngs):
        """Makes the weights.

        Raises:
          UserError: sizes do not fit each other, the kind of rotary scaling is unknown, or no architecture has these
            biases and norms.
        """
        check_architecture(c)
        if c.num_heads % c.num_kv_heads or c.head_dim % 2:
            raise UserError(
                f"config.model.language: num_heads {c.num_heads} must be a multiple of num_kv_heads {c.num_kv_heads}, "
                f"and head_dim {c.head_dim} even"
            )
        if c.rope_scaling is not None and c.rope_scaling.kind not in ROPE_SCALINGS:
            raise UserError(
                f'config.model.language.rope_scaling.kind = "{c.rope_scaling.kind}", expected '
                + ", ".join(ROPE_SCALINGS)
            )
        if c.rope_axes and len(c.rope_axes) != c.head_dim // 2:
            raise UserError(
                f"config.model.language.rope_axes has {len(c.rope_axes)} entries, expected head_dim / 2 = "
                f"{c.head_dim // 2}"
            )
        self.config, self.dtype, self.remat = c, dtype, remat
        self.embed = Embedding(c, dtype=dtype, rngs=rngs)
        self.blocks = make_stack(lambda rngs: Block(c, dtype=dtype, rngs=rngs), c.num_layers, rngs=rngs)
        self.norm = RMSNorm(c.embed_dim, c.norm_epsilon, dtype=dtype)
        # Of the shape of the embedding in both cases: one form of product, whichever weight it is.
        self.head = None if c.tie_embeddings else Embedding(c, dtype=dtype, rngs=rngs)

    def _table(self, positions_BT: Array) -> tuple[Array, Array]:
        c = self.config
        return rope_table(positions_BT, c.head_dim, c.rope_theta, c.rope_scaling, c.rope_axes)

    def __call__(self, x_BTD: Array, positions_BT: Array, segments_BT: Array, added: Array | None = None) -> Array:
        """Final-normed hidden states.

        Args:
          x_BTD: float[B, T, D], embeddings.
          positions_BT: int32[B, T], or int32[B, T, A] with `rope_axes`.
          segments_BT: int32[B, T]; positions of different segments do not see each other, 0 is padding.
          added: float[K, B, T, D], what is added to the output of each of the first K blocks; None: nothing.

        Returns:
          float[B, T, D].

        Raises:
          UserError: rows are longer than the attention window.
        """
        check_window(self.config, x_BTD.shape[1])
        table = self._table(positions_BT)

        def apply(
            block: Block, carry: tuple[Array, Array | None], layer: Array
        ) -> tuple[tuple[Array, Array | None], None]:
            x_BTD, added = carry
            x_BTD, _ = block(x_BTD, table, segments_BT)
            return (x_BTD, None) if added is None else _add(x_BTD, added, layer), None

        xs = None if added is None else jnp.arange(self.config.num_layers)
        (x_BTD, _), _ = run_stack(self.blocks, apply, (x_BTD, added), xs, remat=self.remat, dtype=self.dtype)
        return self.norm(x_BTD)

    def logits(self, x: Array) -> Array:
        """float[..., D], final-normed hidden states -> float32[..., V]."""
        return (self.embed if self.head is None else self.head).logits(x)

    def prefill(
        self, x_BTD: Array, positions_BT: Array, segments_BT: Array, max_length: int, added: Array | None = None
    ) -> tuple[Array, Cache]:
        """Final-normed hidden states, and a cache of `max_length` slots of which the first T are written."""
        check_window(self.config, max_length)
        table, T = self._table(positions_BT), x_BTD.shape[1]
        free = [(0, 0), (0, max_length - T), (0, 0), (0, 0)]

        # Pad per layer: padding afterwards would hold two caches.
        def apply(block: Block, x_BTD: Array, layer: Array) -> tuple[Array, Pair]:
            x_BTD, (k_BTKH, v_BTKH) = block(x_BTD, table, segments_BT)
            x_BTD = x_BTD if added is None else _add(x_BTD, added, layer)[0]
            return x_BTD, (jnp.pad(k_BTKH, free), jnp.pad(v_BTKH, free))

        x_BTD, (k_LBSKH, v_LBSKH) = run_stack(self.blocks, apply, x_BTD, jnp.arange(self.config.num_layers))
        cache = Cache(k_LBSKH, v_LBSKH, jnp.pad(segments_BT, free[:2]), jnp.int32(T))
        return self.norm(x_BTD), cache

    def extend(
        self,
        x_BTD: Array,
        positions_BT: Array,
        cache: Cache,
        segments_BT: Array | None = None,
        added: Array | None = None,
        seen: int | None = None,
    ) -> tuple[Array, Cache]:
        """Final-normed hidden states of T more tokens in each row, and the cache with them.

        Args:
          x_BTD: float[B, T, D], embeddings.
          positions_BT: int32[B, T], which hold for all axes of a position, or int32[B, T, A] with `rope_axes`.
          cache: has at least T free slots, in rows that are not to be spoilt.
          segments_BT: int32[B, T], 0 at padding, which ends the rows; None: all tokens are of the row's last segment.
            Where the cache has a `next` for each row, padding takes no slot.
          added: as that of `__call__`.
          seen: slots, from the first, that the tokens attend to; all tokens of the cache and the new ones must be among
            them. None: all.
        """
        table = self._table(self._on_all_axes(positions_BT))
        if segments_BT is None:
            # 1 in rows of one sample, 0 in rows that are all padding.
            segments_B1 = jnp.max(cache.segments, axis=1, keepdims=True)
            segments_BT = jnp.broadcast_to(segments_B1, x_BTD.shape[:2])
        now = dataclasses.replace(cache, segments=_mark(cache.segments, segments_BT, cache.next))

        # The whole cache is the carry, because XLA updates a carry in place; as xs and ys each step would copy it.
        def apply(
            block: Block, carry: tuple[Array, Array, Array], layer: Array
        ) -> tuple[tuple[Array, Array, Array], None]:
            x_BTD, k_LBSKH, v_LBSKH = carry
            here = dataclasses.replace(now, keys=k_LBSKH, values=v_LBSKH)
            x_BTD, (k_LBSKH, v_LBSKH) = block.extend(x_BTD, table, here, segments_BT, layer, seen)
            x_BTD = x_BTD if added is None else _add(x_BTD, added, layer)[0]
            return (x_BTD, k_LBSKH, v_LBSKH), None

        carry = (x_BTD, cache.keys, cache.values)
        (x_BTD, k_LBSKH, v_LBSKH), _ = run_stack(self.blocks, apply, carry, jnp.arange(self.config.num_layers))
        more = x_BTD.shape[1] if cache.next.ndim == 0 else jnp.sum(segments_BT != 0, axis=1)
        return self.norm(x_BTD), Cache(k_LBSKH, v_LBSKH, now.segments, cache.next + more)

    def _on_all_axes(self, positions_BT: Array) -> Array:
        axes = self.config.rope_axes
        if not axes or positions_BT.ndim == 3:
            return positions_BT
        return jnp.repeat(positions_BT[:, :, None], max(axes) + 1, axis=2)
