"""Splash attention that skips blocks by segments known only at run time: JAX's kernels for TPUs, on a grid of our own.

JAX's `SplashAttentionKernel` takes the block mask of one sequence. `jax.vmap` over rows with a mask each makes Pallas
loop over the rows and copy every one; separate calls copy them too. Here one call visits the blocks of all rows: each
of the B Q blocks of queries with the C blocks of keys of its own row.

Axis letters:
  B rows   T position   N heads   K key/value heads   H head_dim   Q block of queries   C block of keys
  M heads of all rows (M = B N)   L lanes

Source: SplashAttention, `jax.experimental.pallas.ops.tpu.splash_attention`; FlashAttention-2 (arXiv:2307.08691).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels

from jaxvlm.batch import Array
from jaxvlm.models.block_mask import keys_to_fetch, needed_blocks, queries_to_fetch

LANES = 128  # of a TPU's vector registers: blocks are multiples of it
SUBLANES = 8  # of the same

# Blocks of queries of a device's rows. The order of visits takes 1 KiB of scalar memory for each, and a core has 1 MiB.
MAX_BLOCKS = 512

Operand = tuple[Any, pl.BlockSpec | None]  # an array, or the shape of a result, and what of it a visit sees
Index = Callable[..., Any]  # of the grid's place and the prefetched numbers of blocks


def can_skip(rows: int, positions: int, block: int) -> bool:
    """Whether `attend_blocks` takes that many rows of a device, and may find a block to skip.

    Of two blocks there is none: neighbours share a segment nearly always. So an image encoder with few blocks and many
    rows, whose only segments are an image and its padding, stays with the static mask.
    """
    side = positions // block
    return side > 2 and rows * side * -(-side // LANES) <= MAX_BLOCKS


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def attend_blocks(
    q_BNTH: Array, k_BKTH: Array, v_BKTH: Array, ids_BT: Array, causal: bool, block: int, interpret: bool
) -> Array:
    """Softmax attention within segments; of a row's blocks only `needed_blocks` are computed.

    Args:
      q_BNTH: float[B, N, T, H], scaled.
      k_BKTH: float[B, K, T, H].
      v_BKTH: float[B, K, T, H].
      ids_BT: int32[B, T], segments. Padding (0) attends to the padding of the same computed blocks.
      causal: query t sees the keys s <= t of its row.
      block: positions of a block, of queries and of keys; a multiple of `LANES` that divides T.
      interpret: run the kernels without a TPU.

    Returns:
      float[B, N, T, H] in the dtype of `q_BNTH`. It and the logarithm of the softmax's denominator, which the backward
      pass needs, are named "attention".
    """
    return _Rows.of(q_BNTH, k_BKTH, ids_BT, causal, block, interpret).forward(q_BNTH, k_BKTH, v_BKTH, keep=False)[0]


def _forward(
    q_BNTH: Array, k_BKTH: Array, v_BKTH: Array, ids_BT: Array, causal: bool, block: int, interpret: bool
) -> tuple[Array, tuple[Array, ...]]:
    rows = _Rows.of(q_BNTH, k_BKTH, ids_BT, causal, block, interpret)
    y_BNTH, total_MT = (checkpoint_name(x, "attention") for x in rows.forward(q_BNTH, k_BKTH, v_BKTH, keep=True))
    return y_BNTH, (q_BNTH, k_BKTH, v_BKTH, ids_BT, y_BNTH, total_MT)


def _backward(
    causal: bool, block: int, interpret: bool, kept: tuple[Array, ...], dy_BNTH: Array
) -> tuple[Array, Array, Array, None]:
    q_BNTH, k_BKTH, v_BKTH, ids_BT, y_BNTH, total_MT = kept
    moved_BNT = jnp.einsum("BNTH,BNTH->BNT", y_BNTH.astype(jnp.float32), dy_BNTH.astype(jnp.float32))
    rows = _Rows.of(q_BNTH, k_BKTH, ids_BT, causal, block, interpret)
    operands = (q_BNTH, k_BKTH, v_BKTH, dy_BNTH, total_MT, moved_BNT.reshape(total_MT.shape))
    dk_BKTH, dv_BKTH = rows.gradients_of_keys(*operands)
    return rows.gradient_of_queries(*operands), dk_BKTH, dv_BKTH, None


attend_blocks.defvjp(_forward, _backward)


def _sees(queries: Array, keys: Array) -> Array:
    """The causal mask of positions."""
    return queries >= keys


def _forward_kernel(*refs: Any, grid_width: int, **options: Any) -> None:
    """JAX's kernel, with its numbers of queries (the logarithms) along the lanes, as the backward kernels take them.

    JAX's gives each number in all 128 lanes. To take one of them the compiler copies all: on v5e .9 of the 4.9 Mcycles
    round the kernels for two rows of 4,096 positions and 32 heads.
    """
    *rest, wide_ref, total_ref = refs
    forward: Any = kernels.flash_attention_kernel
    forward(*rest, wide_ref, grid_width=grid_width, **options)
    if total_ref is not None:

        @pl.when(pl.program_id(2) == grid_width - 1)
        def write() -> None:
            total_ref[...] = wide_ref[...].T[:SUBLANES]


class _Visits(NamedTuple):
    """The order in which a kernel visits the blocks.

    Numbers of blocks, and positions, count through all rows.
    """

    grid: tuple[int, int, int]
    head: Index
    queries: Index  # number of the block of queries
    keys: Index
    fetched: Array  # int32[1, blocks of queries, blocks of keys], prefetched, as the next
    needed: Array


class _Rows(NamedTuple):
    """The kernels for all rows of a call."""

    heads: int
    kv_heads: int
    side: int  # blocks along a row
    block: int
    ids: Array  # int32[B T]
    positions: Array | None  # int32[B T], of queries, from which the causal mask is computed
    needed: Array  # bool[B, Q, C]
    interpret: bool

    @classmethod
    def of(cls, q: Array, k: Array, ids_BT: Array, causal: bool, block: int, interpret: bool) -> _Rows:
        """For queries and keys of these shapes."""
        needed_BQC = needed_blocks(ids_BT, block, causal=causal)
        positions = jnp.arange(ids_BT.size, dtype=jnp.int32) if causal else None
        side = ids_BT.shape[1] // block
        return cls(q.shape[1], k.shape[1], side, block, ids_BT.ravel(), positions, needed_BQC, interpret)

    def forward(self, q: Array, k: Array, v: Array, *, keep: bool) -> tuple[Array, Array | None]:
        """The output, and with `keep` the logarithm of the softmax's denominator, float32[M, T]."""
        visits, H = self._by_queries(), q.shape[3]
        results = [
            *(self._scratch(width) for width in (LANES, LANES, H)),
            self._of_queries(visits, jax.ShapeDtypeStruct.like(q)),
            self._scratch(LANES) if keep else (None, None),
            self._totals(visits, q.shape) if keep else (None, None),
        ]
        kernel = functools.partial(
            _forward_kernel, bkv=self.block, bkv_compute=self.block, head_dim_v=H, grid_width=self.side
        )
        operands = [self._of_queries(visits, q), self._of_keys(visits, k), self._of_keys(visits, v)]
        operands += [self._column(visits.queries, self.ids), self._line(visits.keys, self.ids)]
        operands += [(None, None), (None, None), self._column(visits.queries, self.positions)]
        _, _, _, y_BNTH, _, total = self._call("fwd", kernel, visits, operands, results)
        return y_BNTH, None if total is None else total[:, 0]

    def gradient_of_queries(self, q: Array, k: Array, v: Array, dy: Array, total: Array, moved: Array) -> Array:
        """Of the shape of `q`; `total` and `moved` are float32[M, T]."""
        visits = self._by_queries()
        kernel = functools.partial(kernels._flash_attention_dq_kernel, bkv=self.block, grid_width=self.side)
        operands = [self._of_queries(visits, q), self._of_keys(visits, k), self._of_keys(visits, v)]
        operands += [self._column(visits.queries, self.ids), self._line(visits.keys, self.ids), (None, None)]
        operands += [self._numbers(visits, total, 1), self._of_queries(visits, dy), self._numbers(visits, moved, 1)]
        operands += [(None, None), self._column(visits.queries, self.positions)]
        results = [self._scratch(q.shape[3]), self._of_queries(visits, jax.ShapeDtypeStruct.like(q))]
        return self._call("dq", kernel, visits, operands, results)[1]

    def gradients_of_keys(
        self, q: Array, k: Array, v: Array, dy: Array, total: Array, moved: Array
    ) -> tuple[Array, Array]:
        """Of the shapes of `k` and `v`; `total` and `moved` are float32[M, T]."""
        visits, H = self._by_keys(), q.shape[3]
        kernel = functools.partial(
            kernels._flash_attention_dkv_kernel,
            num_q_heads=self.heads,
            num_kv_heads=self.kv_heads,
            is_mqa=False,
            bkv=self.block,
            bkv_compute=self.block,
            grid_width=self.side,
        )
        operands = [self._of_queries(visits, q), self._of_keys(visits, k), self._of_keys(visits, v)]
        operands += [self._line(visits.queries, self.ids), self._column(visits.keys, self.ids), (None, None)]
        operands += [self._numbers(visits, total, SUBLANES), self._of_queries(visits, dy)]
        operands += [self._numbers(visits, moved, SUBLANES), (None, None), self._line(visits.queries, self.positions)]
        results = [(None, None), self._scratch(H), self._scratch(H), (None, None)]
        results += [self._of_keys(visits, jax.ShapeDtypeStruct.like(x)) for x in (k, v)]
        *_, dk, dv = self._call("dkv", kernel, visits, operands, results)
        return dk, dv

    def _by_queries(self) -> _Visits:
        """Keys innermost, then queries."""
        B, Q, C = self.needed.shape
        return _Visits(
            (self.heads, B * Q, C),
            head=lambda h, i, j, *_: h,
            queries=lambda h, i, j, *_: i,
            keys=lambda h, i, j, fetched, *_: fetched[0, i, j],
            fetched=keys_to_fetch(self.needed)[None],
            needed=self.needed.reshape(1, B * Q, C).astype(jnp.int32),
        )

    def _by_keys(self) -> _Visits:
        """Queries innermost, then heads, since those of a key head add to the same gradient."""
        B, Q, C = self.needed.shape
        return _Visits(
            (B * C, self.heads, Q),
            head=lambda j, h, i, *_: h,
            queries=lambda j, h, i, fetched, *_: fetched[0, i, j],
            keys=lambda j, h, i, *_: j,
            fetched=queries_to_fetch(self.needed)[None],
            needed=self.needed.swapaxes(0, 1).reshape(1, Q, B * C).astype(jnp.int32),
        )

    def _of_queries(self, visits: _Visits, x: Any) -> Operand:
        """A block of [B, N, T, any]."""

        def index(*at: Any) -> tuple[Any, ...]:
            number = visits.queries(*at)
            return jax.lax.div(number, self.side), visits.head(*at), jax.lax.rem(number, self.side), 0

        return x, pl.BlockSpec((None, None, self.block, x.shape[3]), index)

    def _of_keys(self, visits: _Visits, x: Any) -> Operand:
        """A block of [B, K, T, H]."""
        group = self.heads // self.kv_heads

        def index(*at: Any) -> tuple[Any, ...]:
            number, head = visits.keys(*at), jax.lax.div(visits.head(*at), group)
            return jax.lax.div(number, self.side), head, jax.lax.rem(number, self.side), 0

        return x, pl.BlockSpec((None, None, self.block, x.shape[3]), index)

    def _totals(self, visits: _Visits, shape: tuple[int, ...]) -> Operand:
        """The result that `_numbers` takes, in equal lines: float32[M, SUBLANES, T]."""
        B, N, T, _ = shape
        index = self._of_all_heads(visits)
        spec = pl.BlockSpec((None, SUBLANES, self.block), lambda *at: (index(*at)[0], 0, index(*at)[1]))
        return jax.ShapeDtypeStruct((B * N, SUBLANES, T), jnp.float32), spec

    def _numbers(self, visits: _Visits, x_MT: Array, copies: int) -> Operand:
        """A number of each query along the lanes, in `copies` equal lines."""
        M, T = x_MT.shape
        index = self._of_all_heads(visits)
        spec = pl.BlockSpec((None, copies, self.block), lambda *at: (index(*at)[0], 0, index(*at)[1]))
        return jnp.broadcast_to(x_MT[:, None], (M, copies, T)), spec

    def _of_all_heads(self, visits: _Visits) -> Index:
        """Place of a block of queries in [M, T]."""

        def index(*at: Any) -> tuple[Any, Any]:
            number = visits.queries(*at)
            return jax.lax.div(number, self.side) * self.heads + visits.head(*at), jax.lax.rem(number, self.side)

        return index

    def _column(self, which: Index, x: Array | None) -> Operand:
        """A number of each position, the same in all lanes."""
        if x is None:
            return None, None
        spec = pl.BlockSpec((self.block, LANES), lambda *at: (which(*at), 0))
        return jnp.broadcast_to(x[:, None], (x.size, LANES)), spec

    def _line(self, which: Index, x: Array | None) -> Operand:
        """A number of each position along the lanes."""
        if x is None:
            return None, None
        spec = pl.BlockSpec((SUBLANES, self.block), lambda *at: (0, which(*at)))
        return jnp.broadcast_to(x[None], (SUBLANES, x.size)), spec

    def _scratch(self, width: int) -> Operand:
        """What a kernel carries from visit to visit: float32[block, width]."""
        shape = (self.block, width)
        return jax.ShapeDtypeStruct(shape, jnp.float32), pl.BlockSpec(shape, lambda *_: (0, 0))

    def _call(
        self, phase: str, kernel: Any, visits: _Visits, operands: list[Operand], results: list[Operand]
    ) -> list[Any]:
        layout = kernels.QKVLayout.HEAD_DIM_MINOR
        kernel = functools.partial(
            kernel,
            bq=self.block,
            mask_value=kernels.DEFAULT_MASK_VALUE,
            mask_function=None if self.positions is None else _sees,
            attn_logits_soft_cap=None,
            q_layout=layout,
            k_layout=layout,
            v_layout=layout,
        )
        arrays, in_specs = zip(*operands, strict=True)
        out_shape, out_specs = zip(*results, strict=True)
        # Heads of the forward pass are independent; all else is summed, or fetched in the order of the visits.
        heads: Literal["parallel", "arbitrary"] = "parallel" if phase == "fwd" else "arbitrary"
        name = f"splash_{'full' if self.positions is None else 'causal'}_{phase}"
        call = pl.pallas_call(
            kernel,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=3, in_specs=in_specs, out_specs=out_specs, grid=visits.grid
            ),
            out_shape=out_shape,
            compiler_params=pltpu.CompilerParams(dimension_semantics=(heads, "arbitrary", "arbitrary")),
            name=name,
            interpret=self.interpret,
        )
        with jax.named_scope(name):  # the kernel's name in the compiled program, by which plans know it
            return call(visits.fetched, visits.needed, None, *arrays)
