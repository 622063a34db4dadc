"""Attention: one function with exchangeable implementations.

Axis letters:
  B rows   T query position   S key position   N heads   K key/value heads   G queries of a key/value head (N = K G)
  H head_dim
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.sharding import PartitionSpec

from jaxvlm.batch import Array
from jaxvlm.models.packed_attention import attend_blocks, can_skip
from jaxvlm.models.packed_kernels import LANES
from jaxvlm.sharding import Placement, placement
from jaxvlm.tuning import ATTENTION_BLOCK

# Added to the score of a pair that must not attend. Finite, so that not even a row without any key gives a NaN.
MASKED = -1e30


def attend(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    segments: tuple[Array, Array] | None = None,
    *,
    causal: bool,
    starts_B: Array | None = None,
) -> Array:
    """Softmax attention, scaled by 1 / sqrt(H); N / K neighbouring query heads share a key/value head.

    Within `sharding.placed` the program's platform selects the implementation: splash kernels on TPUs, cuDNN on NVIDIA
    GPUs, plain products elsewhere and for the few queries of a decoding step. All compute the same.

    Args:
      q_BTNH: float[B, T, N, H].
      k_BSKH: float[B, S, K, H].
      v_BSKH: float[B, S, K, H].
      segments: int32[B, T] of the queries and int32[B, S] of the keys; only equal ones attend to each other. Padding
        (0) attends to padding, so every position has a key. None: all attend to all.
      causal: query t sees the keys s <= t of its row (then T = S).
      starts_B: int32[B]; with `causal`, query t sees the keys s <= start + t: the row has that many keys before the
        first query. None: 0.

    The backward pass always recomputes the T x S scores, whatever `config.model.remat` is.

    Returns:
      float[B, T, N, H] in the dtype of `v_BSKH`, named "attention" for the policies of `tuning.POLICIES`.
    """
    here = placement()
    is_square = q_BTNH.shape[1] == k_BSKH.shape[1] and starts_B is None
    if here is not None and here.platform == "tpu" and is_square:
        return attend_splash(q_BTNH, k_BSKH, v_BSKH, segments, causal=causal, here=here)
    q_BTNH, k_BSKH = checkpoint_name(q_BTNH, "query"), checkpoint_name(k_BSKH, "key")
    v_BSKH = checkpoint_name(v_BSKH, "value")
    if here is not None and here.is_gpu and is_square and v_BSKH.dtype == jnp.bfloat16:
        y_BTNH = _attend_cudnn(q_BTNH, k_BSKH, v_BSKH, segments, causal=causal, here=here)
        return checkpoint_name(y_BTNH, "attention")
    run = jax.checkpoint(functools.partial(_attend_xla, causal=causal), prevent_cse=False)
    return checkpoint_name(run(q_BTNH, k_BSKH, v_BSKH, segments, starts_B), "attention")


def attend_splash(
    q_BTNH: Array,
    k_BTKH: Array,
    v_BTKH: Array,
    segments: tuple[Array, Array] | None,
    *,
    causal: bool,
    here: Placement,
) -> Array:
    """`attend` by kernels for TPUs, each device for its own rows and heads.

    Where segments are given and `can_skip` allows it, `attend_blocks` skips the blocks of queries and keys whose
    segments never meet. Otherwise these are JAX's splash kernels, with a static mask: all blocks, or a triangle.

    The kernels keep their output and the logarithm of the softmax's denominator; both are named "attention".

    Args:
      here: mesh and rules of the program; heads are split only if their number and that of the key heads divide.

    Source: SplashAttention, `jax.experimental.pallas.ops.tpu.splash_attention`; FlashAttention-2 (arXiv:2307.08691).
    """
    B, T, N, H = q_BTNH.shape
    K = k_BTKH.shape[2]
    q_BTNH, k_BTKH, v_BTKH, ids_BT = _lengthen(LANES, q_BTNH, k_BTKH, v_BTKH, segments)  # the kernels work on blocks
    q_BNTH = checkpoint_name((q_BTNH * H**-0.5).transpose(0, 2, 1, 3), "query")
    k_BKTH = checkpoint_name(k_BTKH.transpose(0, 2, 1, 3), "key")
    v_BKTH = checkpoint_name(v_BTKH.transpose(0, 2, 1, 3), "value")

    rows, heads = _split(here, B, N, K)
    length = q_BNTH.shape[2]
    block, ids = block_size(length), () if ids_BT is None else (ids_BT,)
    of_device = B // math.prod(here.mesh.shape[axis] for axis in here.row_axes(B))
    if segments is not None and can_skip(of_device, length, block):
        run = functools.partial(attend_blocks, causal=causal, block=block, interpret=here.is_interpreted)
    else:
        splits = here.mesh.shape[heads] if heads else 1
        run = functools.partial(_attend_rows, splash_kernel(N // splits, length, causal, here.is_interpreted, block))
    y_BNTH = _on_each_device(run, here, PartitionSpec(rows, heads, None, None), (q_BNTH, k_BKTH, v_BKTH), ids)
    return y_BNTH.transpose(0, 2, 1, 3)[:, :T]


def _attend_rows(kernel: Any, *operands: Array) -> Array:
    return jax.vmap(lambda q, k, v, *ids: kernel(q, k, v, *(splash.SegmentIds(x, x) for x in ids)))(*operands)


def _split(here: Placement, rows: int, heads: int, kv_heads: int) -> tuple[Any, str | None]:
    """The mesh axes that split rows and heads; heads only if both numbers of heads divide."""
    of_heads, of_kv_heads = (here.spec((axis,), (n,))[0] for axis, n in (("heads", heads), ("kv_heads", kv_heads)))
    split = of_heads if of_heads == of_kv_heads and isinstance(of_heads, str) else None
    return here.spec(("batch",), (rows,))[0], split


def _on_each_device(
    run: Callable[..., Array], here: Placement, spec: PartitionSpec, heads: tuple[Array, ...], ids: tuple[Array, ...]
) -> Array:
    """`run(*heads, *ids)` for each device's own share: `heads` and the result are split by `spec`, `ids` by rows."""
    return jax.shard_map(
        run,
        mesh=here.mesh,
        in_specs=(*(spec for _ in heads), *(PartitionSpec(spec[0], None) for _ in ids)),
        out_specs=spec,
        check_vma=False,
    )(*heads, *ids)


def _lengthen(
    multiple: int, q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, segments: tuple[Array, Array] | None
) -> tuple[Array, Array, Array, Array | None]:
    """Queries, keys and values of a multiple of positions, and their segments (None: all attend to all).

    The added positions are of segment 0; the caller removes them.
    """
    B, T = q_BTNH.shape[:2]
    more, ids_BT = -T % multiple, None if segments is None else segments[0]
    if more:
        ids_BT = jnp.pad(jnp.ones((B, T), jnp.int32) if ids_BT is None else ids_BT, [(0, 0), (0, more)])
        q_BTNH, k_BTKH, v_BTKH = (jnp.pad(x, [(0, 0), (0, more), (0, 0), (0, 0)]) for x in (q_BTNH, k_BTKH, v_BTKH))
    return q_BTNH, k_BTKH, v_BTKH, ids_BT


def block_size(length: int) -> int:
    """Queries, and keys, of a block of the kernels for that many positions, a multiple of `LANES`.

    The largest that divides them and is not over `tuning.ATTENTION_BLOCK`. If that is small, such as 128 for CLIP's
    640, the next larger one: each block has a fixed cost (on v5e 46,700 cycles of a head of 64 in
    blocks of 128, and 12,200 in one of 640).
    """
    sizes = [size for size in range(LANES, length + 1, LANES) if length % size == 0]
    size = max((size for size in sizes if size <= ATTENTION_BLOCK), default=length)
    if size < ATTENTION_BLOCK // 2:
        size = next((size for size in sizes if size >= ATTENTION_BLOCK), size)
    return size


@functools.lru_cache(maxsize=32)
def splash_kernel(heads: int, length: int, causal: bool, interpret: bool, block: int) -> Any:
    """The kernel for float[heads, length, H] and its gradients, in blocks of `block` queries and as many keys."""
    mask = splash_mask.CausalMask((length, length)) if causal else splash_mask.FullMask((length, length))
    with jax.ensure_compile_time_eval():
        kernel = splash.make_splash_mha(
            splash_mask.MultiHeadMask([mask] * heads),
            block_sizes=splash.BlockSizes(block, block, block, block, block, block, block, block),
            head_shards=1,
            q_seq_shards=1,
            residual_checkpoint_name="attention",
            interpret=interpret,
        )
    return jax.tree.map(np.asarray, kernel)  # cached for other traces, which may have another mesh


def _attend_cudnn(
    q_BTNH: Array,
    k_BTKH: Array,
    v_BTKH: Array,
    segments: tuple[Array, Array] | None,
    *,
    causal: bool,
    here: Placement,
) -> Array:
    """`attend` by cuDNN's flash attention, each device for its own rows and heads.

    It takes half precision only, and for gradients an even number of positions. Segments are a bias [B, 1, T, T] in the
    dtype of the queries, which the kernels read once for each head.
    """
    B, T, N, _ = q_BTNH.shape
    q_BTNH, k_BTKH, v_BTKH, ids_BT = _lengthen(2, q_BTNH, k_BTKH, v_BTKH, segments)

    def run(q: Array, k: Array, v: Array, *ids: Array) -> Array:
        mask = (ids[0][:, :, None] == ids[0][:, None, :])[:, None] if ids else None
        return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal, implementation="cudnn")

    rows, heads = _split(here, B, N, k_BTKH.shape[2])
    spec = PartitionSpec(rows, None, heads, None)
    y_BTNH = _on_each_device(run, here, spec, (q_BTNH, k_BTKH, v_BTKH), () if ids_BT is None else (ids_BT,))
    return y_BTNH[:, :T]


def _attend_xla(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    segments: tuple[Array, Array] | None,
    starts_B: Array | None = None,
    *,
    causal: bool,
) -> Array:
    """Attention in plain products, for every backend.

    Heads go first and the G queries of a key head are concatenated, so that all products, those of the
    gradients too, are batches of plain matrices (with H before S also without a transposed left side, which is half as
    fast), and no key is repeated. Up to four pieces of the queries, each with the keys up to its end, skip most of
    what a causal mask removes.

    Seconds of one CPU core for 4 x 512 positions, 9 heads of 64 and 3 key heads, forward and with the backward pass:
    0.02 and 0.08; einsums over BKGTS take 0.13 and 0.34, `jax.nn.dot_product_attention` 0.11 and 0.31.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BKGTH = (q_BTNH * H**-0.5).reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k_BKHS, v_BKHS = k_BSKH.transpose(0, 2, 3, 1), v_BSKH.transpose(0, 2, 3, 1)
    is_square = starts_B is None and causal
    pieces = min(4, max(1, T // 128)) if is_square else 1
    size = -(-T // pieces)
    y = []
    for start in range(0, T, size):
        end = min(start + size, T)
        seen = slice(end) if is_square else slice(None)
        mask = None
        if segments is not None:
            mask = segments[0][:, start:end, None] == segments[1][:, None, seen]
        if is_square:
            order = jnp.arange(start, end)[:, None] >= jnp.arange(end)[None, :]
            mask = order[None] if mask is None else mask & order
        elif starts_B is not None:
            order = starts_B[:, None, None] + jnp.arange(T)[:, None] >= jnp.arange(k_BSKH.shape[1])[None, :]
            mask = order if mask is None else mask & order
        y.append(_attend_piece(q_BKGTH[:, :, :, start:end], k_BKHS[..., seen], v_BKHS[..., seen], mask))
    return jnp.concatenate(y, axis=3).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def attend_token(q_B1NH: Array, k_BSKH: Array, v_BSKH: Array, segments: tuple[Array, Array]) -> Array:
    """`attend` for one query of each row, in plain products.

    Keys and values are brought into the order B K S H, which moves whole heads; `_attend_xla` puts H before S, which
    pays off for many queries only. A step of 8 rows of 192 slots of a cache (6 layers, 6 heads of 64) takes 22 ms of
    one CPU core instead of 28.
    """
    B, _, N, H = q_B1NH.shape
    K = k_BSKH.shape[2]
    q_BKGH = (q_B1NH * H**-0.5).reshape(B, K, N // K, H)
    k_BKSH, v_BKSH = k_BSKH.transpose(0, 2, 1, 3), v_BSKH.transpose(0, 2, 1, 3)
    scores_BKGS = jnp.einsum("BKGH,BKSH->BKGS", q_BKGH, k_BKSH, preferred_element_type=jnp.float32)
    is_seen_BS = segments[0] == segments[1]
    scores_BKGS = scores_BKGS + jnp.where(is_seen_BS, 0.0, MASKED)[:, None, None]
    weights_BKGS = jnp.exp(scores_BKGS - jnp.max(scores_BKGS, axis=-1, keepdims=True))
    y_BKGH = jnp.einsum(
        "BKGS,BKSH->BKGH", weights_BKGS.astype(v_BKSH.dtype), v_BKSH, preferred_element_type=jnp.float32
    )
    y_BKGH = y_BKGH / jnp.sum(weights_BKGS, axis=-1, keepdims=True)
    return y_BKGH.reshape(B, 1, N, H).astype(v_BSKH.dtype)


def _attend_piece(q_BKGTH: Array, k_BKHS: Array, v_BKHS: Array, mask_BTS: Array | None) -> Array:
    B, K, G, T, H = q_BKGTH.shape
    S = k_BKHS.shape[3]
    rows = (B, K, G * T)
    scores = jnp.einsum("BKXH,BKHS->BKXS", q_BKGTH.reshape(*rows, H), k_BKHS, preferred_element_type=jnp.float32)
    scores_BKGTS = scores.reshape(B, K, G, T, S)
    if mask_BTS is not None:
        scores_BKGTS = scores_BKGTS + jnp.where(mask_BTS, 0.0, MASKED)[:, None, None]
    # The softmax's division comes after the product with the values: H numbers a query instead of S.
    weights_BKGTS = jnp.exp(scores_BKGTS - jax.lax.stop_gradient(jnp.max(scores_BKGTS, axis=-1, keepdims=True)))
    total_BKGT1 = jnp.sum(weights_BKGTS, axis=-1, keepdims=True)
    weights = weights_BKGTS.astype(v_BKHS.dtype).reshape(*rows, S)
    y_BKXH = jnp.einsum("BKXS,BKHS->BKXH", weights, v_BKHS, preferred_element_type=jnp.float32)
    return (y_BKXH.reshape(B, K, G, T, H) / total_BKGT1).astype(v_BKHS.dtype)
