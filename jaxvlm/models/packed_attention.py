"""Attention that skips blocks by segments known only at run time, for packed rows on TPUs.

The kernels that come with JAX take the block mask of one sequence. `jax.vmap` over rows with a mask each makes Pallas
loop over the rows and copy every one; separate calls copy them too. Here one call visits the blocks of all rows: each
of the B Q blocks of queries with the C blocks of keys of its own row.

Axis letters:
  B rows   T position   N heads   K key/value heads   H head_dim   Q block of queries   C block of keys
  M heads of all rows (M = B N)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxvlm.batch import Array
from jaxvlm.models.block_mask import keys_to_fetch, needed_blocks, queries_to_fetch
from jaxvlm.models.packed_kernels import LANES, forward_kernel, key_gradient_kernel, query_gradient_kernel

# Blocks of queries of a device's rows. The order of visits takes 1 KiB of scalar memory for each, and a core has 1 MiB.
MAX_BLOCKS = 512

Operand = tuple[Any, pl.BlockSpec]  # an array, or the shape of a result, and what of it a visit sees
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
    return _Rows.of(q_BNTH, k_BKTH, ids_BT, causal, block, interpret).forward(q_BNTH, k_BKTH, v_BKTH)[0]


def _forward(
    q_BNTH: Array, k_BKTH: Array, v_BKTH: Array, ids_BT: Array, causal: bool, block: int, interpret: bool
) -> tuple[Array, tuple[Array, ...]]:
    rows = _Rows.of(q_BNTH, k_BKTH, ids_BT, causal, block, interpret)
    y_BNTH, total_M1T = (checkpoint_name(x, "attention") for x in rows.forward(q_BNTH, k_BKTH, v_BKTH))
    return y_BNTH, (q_BNTH, k_BKTH, v_BKTH, ids_BT, y_BNTH, total_M1T)


def _backward(
    causal: bool, block: int, interpret: bool, kept: tuple[Array, ...], dy_BNTH: Array
) -> tuple[Array, Array, Array, None]:
    q_BNTH, k_BKTH, v_BKTH, ids_BT, y_BNTH, total_M1T = kept
    moved_BNT = jnp.einsum("BNTH,BNTH->BNT", y_BNTH.astype(jnp.float32), dy_BNTH.astype(jnp.float32))
    rows = _Rows.of(q_BNTH, k_BKTH, ids_BT, causal, block, interpret)
    operands = (q_BNTH, k_BKTH, v_BKTH, dy_BNTH, total_M1T, moved_BNT.reshape(total_M1T.shape))
    return rows.gradient_of_queries(*operands), *rows.gradients_of_keys(*operands), None


attend_blocks.defvjp(_forward, _backward)


class _Visits(NamedTuple):
    """The order in which a kernel visits the blocks.

    Numbers of blocks count through all rows.
    """

    grid: tuple[int, int, int]
    head: Index
    queries: Index  # number of the block of queries
    keys: Index
    fetched: Array  # int32[blocks of queries, blocks of keys], prefetched, as the next
    needed: Array


class _Rows(NamedTuple):
    """The kernels for all rows of a call."""

    heads: int
    kv_heads: int
    side: int  # blocks along a row
    block: int
    ids: Array  # int32[B T]
    causal: bool
    needed: Array  # bool[B, Q, C]
    interpret: bool

    @classmethod
    def of(cls, q: Array, k: Array, ids_BT: Array, causal: bool, block: int, interpret: bool) -> _Rows:
        """For queries and keys of these shapes."""
        needed_BQC = needed_blocks(ids_BT, block, causal=causal)
        return cls(
            q.shape[1], k.shape[1], ids_BT.shape[1] // block, block, ids_BT.ravel(), causal, needed_BQC, interpret
        )

    def forward(self, q: Array, k: Array, v: Array) -> list[Array]:
        """The output, and the logarithm of the softmax's denominator, float32[M, 1, T]."""
        visits, (B, N, T, H) = self._by_queries(), q.shape
        operands = [self._of_queries(visits, q), self._of_keys(visits, k), self._of_keys(visits, v)]
        operands += [self._column(visits.queries), self._line(visits.keys)]
        total = jax.ShapeDtypeStruct((B * N, 1, T), jnp.float32)
        results = [self._of_queries(visits, jax.ShapeDtypeStruct.like(q)), self._numbers(visits, total)]
        return self._call("fwd", forward_kernel, visits, operands, results, (LANES, LANES, H))

    def gradient_of_queries(self, q: Array, k: Array, v: Array, dy: Array, total: Array, moved: Array) -> Array:
        """Of the shape of `q`; `total` and `moved` are float32[M, 1, T]."""
        visits = self._by_queries()
        operands = [self._of_queries(visits, q), self._of_keys(visits, k), self._of_keys(visits, v)]
        operands += [self._column(visits.queries), self._line(visits.keys), self._of_queries(visits, dy)]
        operands += [self._numbers(visits, total), self._numbers(visits, moved)]
        results = [self._of_queries(visits, jax.ShapeDtypeStruct.like(q))]
        return self._call("dq", query_gradient_kernel, visits, operands, results, (q.shape[3],))[0]

    def gradients_of_keys(self, q: Array, k: Array, v: Array, dy: Array, total: Array, moved: Array) -> list[Array]:
        """Of the shapes of `k` and `v`; `total` and `moved` are float32[M, 1, T]."""
        visits, H = self._by_keys(), q.shape[3]
        operands = [self._of_queries(visits, q), self._of_keys(visits, k), self._of_keys(visits, v)]
        operands += [self._line(visits.queries), self._column(visits.keys), self._of_queries(visits, dy)]
        operands += [self._numbers(visits, total), self._numbers(visits, moved)]
        results = [self._of_keys(visits, jax.ShapeDtypeStruct.like(x)) for x in (k, v)]
        kernel = functools.partial(key_gradient_kernel, group=self.heads // self.kv_heads)
        return self._call("dkv", kernel, visits, operands, results, (H, H))

    def _by_queries(self) -> _Visits:
        """Keys innermost, then queries."""
        B, Q, C = self.needed.shape
        return _Visits(
            (self.heads, B * Q, C),
            head=lambda h, i, j, *_: h,
            queries=lambda h, i, j, *_: i,
            keys=lambda h, i, j, fetched, _: fetched[i, j],
            fetched=keys_to_fetch(self.needed),
            needed=self.needed.reshape(B * Q, C).astype(jnp.int32),
        )

    def _by_keys(self) -> _Visits:
        """Queries innermost, then heads, since those of a key head add to the same gradient."""
        B, Q, C = self.needed.shape
        return _Visits(
            (B * C, self.heads, Q),
            head=lambda j, h, i, *_: h,
            queries=lambda j, h, i, fetched, _: fetched[i, j],
            keys=lambda j, h, i, *_: j,
            fetched=queries_to_fetch(self.needed),
            needed=self.needed.swapaxes(0, 1).reshape(Q, B * C).astype(jnp.int32),
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

    def _numbers(self, visits: _Visits, x_M1T: Any) -> Operand:
        """A number of each query, along the lanes."""

        def index(*at: Any) -> tuple[Any, ...]:
            number = visits.queries(*at)
            return jax.lax.div(number, self.side) * self.heads + visits.head(*at), 0, jax.lax.rem(number, self.side)

        return x_M1T, pl.BlockSpec((None, 1, self.block), index)

    def _column(self, which: Index) -> Operand:
        """The segment of each position, the same in all lanes."""
        ids = jnp.broadcast_to(self.ids[:, None], (self.ids.size, LANES))
        return ids, pl.BlockSpec((self.block, LANES), lambda *at: (which(*at), 0))

    def _line(self, which: Index) -> Operand:
        """The segment of each position, along the lanes."""
        return self.ids[None], pl.BlockSpec((1, self.block), lambda *at: (0, which(*at)))

    def _call(
        self,
        phase: str,
        kernel: Callable,
        visits: _Visits,
        operands: list[Operand],
        results: list[Operand],
        widths: Sequence[int],
    ) -> list[Array]:
        """`widths`: of the kernel's scratch arrays, float32[block, width]."""
        arrays, in_specs = zip(*operands, strict=True)
        out_shape, out_specs = zip(*results, strict=True)
        # Heads of the forward pass are independent; all else is summed, or fetched in the order of the visits.
        heads: Literal["parallel", "arbitrary"] = "parallel" if phase == "fwd" else "arbitrary"
        name = f"packed_{'causal' if self.causal else 'full'}_{phase}"
        call = pl.pallas_call(
            functools.partial(kernel, causal=self.causal, side=self.side),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=2,
                in_specs=in_specs,
                out_specs=out_specs,
                grid=visits.grid,
                scratch_shapes=[pltpu.VMEM((self.block, width), jnp.float32) for width in widths],
            ),
            out_shape=out_shape,
            compiler_params=pltpu.CompilerParams(dimension_semantics=(heads, "arbitrary", "arbitrary")),
            name=name,
            interpret=self.interpret,
        )
        with jax.named_scope(name):  # the kernel's name in the compiled program, by which plans know it
            return call(visits.fetched, visits.needed, *arrays)
