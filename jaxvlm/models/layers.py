"""Building blocks of all parts: projections, norms, rotary positions, stacks of equal blocks.

Every weight is made in float32 and names its logical axes (the fields of `sharding.Rules`) where it is made. Arithmetic
runs in the module's compute dtype, statistics and angles in float32.

Axis letters:
  B rows   T token position   N heads   H head_dim   R half of the head_dim (rotated pairs)
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxvlm.batch import Array
from jaxvlm.config import LoraConfig, RopeScaling
from jaxvlm.errors import UserError, nearest
from jaxvlm.models import fsdp, tpu
from jaxvlm.tuning import remat_policy

BlockT = TypeVar("BlockT", bound=nnx.Module)
CarryT = TypeVar("CarryT")

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
}


def make_weight(
    shape: tuple[int, ...], axes: tuple[str | None, ...], stddev: float, *, rngs: nnx.Rngs
) -> nnx.Param[Array]:
    """A float32 weight, normal with `stddev` truncated at two deviations; `axes` are its logical axes."""
    assert len(shape) == len(axes), (shape, axes)
    # A normal truncated at +-2 has 0.88 of its deviation.
    value = stddev / 0.87962566 * jax.random.truncated_normal(rngs.params(), -2.0, 2.0, shape, jnp.float32)
    return nnx.Param(value, out_sharding=axes, eager_sharding=False)


def make_constant(shape: tuple[int, ...], axes: tuple[str | None, ...], value: float) -> nnx.Param[Array]:
    """A float32 weight filled with `value`: biases and the scales of norms."""
    assert len(shape) == len(axes), (shape, axes)
    return nnx.Param(jnp.full(shape, value, jnp.float32), out_sharding=axes, eager_sharding=False)


def matmul(x: Array, w: Array, summed: int, **options: Any) -> Array:
    """Sums over the last `summed` dimensions of `x` and the first ones of `w`.

    As a product of two plain matrices where not for TPUs: with more dimensions the gradient of a weight is a sum over
    two of them, before which XLA for CPUs copies the result's gradient into another layout; forward and backward of
    2048 x 576 x 1536 take 127 ms instead of 66. XLA for TPUs copies reshaped arrays instead.
    """
    if tpu.is_target():
        return jnp.tensordot(x, w, summed, **options)
    rows, columns = x.shape[: x.ndim - summed], w.shape[summed:]
    inner = math.prod(w.shape[:summed])
    y = jnp.matmul(x.reshape(-1, inner), w.reshape(inner, -1), **options)
    return y.reshape(*rows, *columns)


class Einsum(nnx.Module):
    """A projection `equation(x, w) + bias`: the only product of a weight and an activation.

    The initial deviation is gain / sqrt(fan in), so that an input of unit variance gives an output of unit variance at
    every width; projections whose result is added to the residual stream pass a gain of 1 / sqrt(2 layers), which keeps
    the variance of the sum over all blocks near one (GPT-2). Biases start at zero.
    """

    def __init__(
        self,
        equation: str,
        shape: tuple[int, ...],
        axes: tuple[str | None, ...],
        *,
        bias: bool = False,
        gain: float = 1.0,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """Makes the weight.

        Args:
          equation: "BTD,DNH->BTNH": activation, weight -> result. The letters that are summed over come last in the
            activation and first in the weight, in one order; a bias has the other letters of the weight.
          shape: of the weight.
          axes: logical axes of the weight.
          dtype: in which the product is computed, and of the result.
        """
        operands, result = equation.split("->")
        x_letters, w_letters = operands.split(",")
        kept = [letter in result for letter in w_letters].index(True)
        assert x_letters.endswith(w_letters[:kept]), equation
        assert result == x_letters[: len(x_letters) - kept] + w_letters[kept:], equation
        self.equation, self.axes, self.dtype, self.summed = equation, axes, dtype, kept
        self.w = make_weight(shape, axes, gain / math.sqrt(math.prod(shape[:kept])), rngs=rngs)
        self.bias = make_constant(shape[kept:], axes[kept:], 0.0) if bias else None
        self.lora: Lora | None = nnx.data(None)

    def __call__(self, x: Array) -> Array:
        """The projection of `x` in the compute dtype."""
        x, w = x.astype(self.dtype), self.w[...].astype(self.dtype)
        y = fsdp.project(self.equation, x, w, self.axes) if fsdp.is_used() else matmul(x, w, self.summed)
        y = y if self.bias is None else y + self.bias[...].astype(self.dtype)
        y = y if self.lora is None else y + self.lora(x)
        return checkpoint_name(y, "projection")


class Lora(nnx.Module):
    """The low-rank term of a projection, `scale * dropout(x) a b`; zero before training, since `b` is.

    Source: LoRA (arXiv:2106.09685); `a` starts as in PEFT (`reset_lora_parameters`), uniform within 1 / sqrt(fan in).
    """

    def __init__(self, base: Einsum, c: LoraConfig, *, rngs: nnx.Rngs):
        """Makes the weights of the adapter of `base`, or of all adapters if `base` is a stack of projections.

        a: float32[layers, ...what is summed over..., rank]; b: float32[layers, rank, ...the result's...].
        """
        shape, axes = base.w.shape, tuple(base.w.get_metadata("out_sharding"))
        self.stack = len(shape) - len(base.equation.split("->")[0].split(",")[1])  # 1 in a stack, else 0
        middle = self.stack + base.summed
        layers, inner, outer = shape[: self.stack], shape[self.stack : middle], shape[middle:]
        bound = 1 / math.sqrt(math.prod(inner))
        a = jax.random.uniform(rngs.params(), (*layers, *inner, c.rank), jnp.float32, -bound, bound)
        self.a = nnx.Param(a, out_sharding=(*axes[:middle], None), eager_sharding=False)
        self.b = make_constant((*layers, c.rank, *outer), (*axes[: self.stack], None, *axes[middle:]), 0.0)
        self.summed, self.dtype, self.scale, self.dropout = base.summed, base.dtype, c.scale, c.dropout
        self.key: nnx.Variable[Array] | None = nnx.data(None)  # None: no dropout

    def __call__(self, x: Array) -> Array:
        """The term added to the projection of `x`."""
        if self.key is not None:
            kept = keep_mask(self.key[...], 1 - self.dropout, x.shape)
            x = jnp.where(kept, x / (1 - self.dropout), 0).astype(self.dtype)
        y = matmul(x, self.a[...].astype(self.dtype), self.summed) * self.scale
        return matmul(y, self.b[...].astype(self.dtype), 1)


def keep_mask(key: Array, share: float, shape: tuple[int, ...]) -> Array:
    """bool[shape], true for a `share` of all, to 1 / 65,536.

    One hash serves two elements, since hashing dominates the time of dropout: 18 % of a LoRA step of the 7B on v5e-8
    with a hash for each (as in `jax.random.bernoulli`), 11 % with this.
    """
    bits = jax.random.bits(key, (*shape[:-1], -(-shape[-1] // 2)), jnp.uint32)
    limit = round(share * 2**16)
    return jnp.concatenate([(bits >> 16) < limit, (bits & 0xFFFF) < limit], axis=-1)[..., : shape[-1]]


def add_lora(part: nnx.Module, name: str, c: LoraConfig, *, rngs: nnx.Rngs) -> None:
    """Adds an adapter to each projection of `part` whose path matches `c.targets`; `name` is the part's, for messages.

    Raises:
      UserError: no projection matches.
    """
    projections = {"/".join(map(str, path)): x for path, x in nnx.iter_modules(part) if isinstance(x, Einsum)}
    chosen = [path for path in projections if re.fullmatch(c.targets, path)]
    if not chosen:
        raise UserError(
            f'parts.{name}: lora targets "{c.targets}" match no projection; '
            f"nearest: {nearest(c.targets, projections, cutoff=0.0)}; "
            f"all: {', '.join(sorted(projections))}"
        )
    for path in chosen:
        projections[path].lora = Lora(projections[path], c, rngs=rngs)


def set_dropout(model: nnx.Module, key: Array) -> None:
    """Turns on dropout in the adapters of `model`; `key` is a typed key of `jax.random`."""
    adapters = [x for _, x in nnx.iter_modules(model) if isinstance(x, Lora) and x.dropout]
    for i, adapter in enumerate(adapters):
        own = jax.random.fold_in(key, i)
        adapter.key = nnx.Variable(jax.random.split(own, adapter.a.shape[0]) if adapter.stack else own)


class RMSNorm(nnx.Module):
    """Divides by the root mean square over the last axis. Source: arXiv:1910.07467."""

    def __init__(self, embed_dim: int, epsilon: float, *, axis: str = "embed", dtype: jnp.dtype):
        self.scale = make_constant((embed_dim,), (axis,), 1.0)
        self.epsilon, self.dtype = epsilon, dtype

    def __call__(self, x: Array) -> Array:
        """Normalised `x[..., D]`."""
        x = x.astype(jnp.float32)
        mean_square = checkpoint_name(jnp.mean(jnp.square(x), axis=-1), "statistic")
        y = x * jax.lax.rsqrt(mean_square + self.epsilon)[..., None]
        return tpu.settle((y * self.scale[...].astype(jnp.float32)).astype(self.dtype))


class LayerNorm(nnx.Module):
    """Subtracts the mean and divides by the deviation over the last axis. Source: arXiv:1607.06450."""

    def __init__(self, embed_dim: int, epsilon: float, *, dtype: jnp.dtype):
        self.scale = make_constant((embed_dim,), ("embed",), 1.0)
        self.bias = make_constant((embed_dim,), ("embed",), 0.0)
        self.epsilon, self.dtype = epsilon, dtype

    def __call__(self, x: Array) -> Array:
        """Normalised `x[..., D]`."""
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        y = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        return (y * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)).astype(self.dtype)


def rope_table(
    positions_BT: Array, head_dim: int, theta: float, scaling: RopeScaling | None, axes: tuple[int, ...] = ()
) -> tuple[Array, Array]:
    """Cosines and sines of the rotary angles, made once for all layers.

    Args:
      positions_BT: int32[B, T], or int32[B, T, A] with `axes`.
      head_dim: H, even.
      theta: base of the frequencies.
      scaling: a stretch of the low frequencies, or None.
      axes: for each of the H / 2 frequencies the axis of the position that turns it; (): positions have one axis.

    Returns:
      float32[B, T, 1, H / 2] twice; angles in float32 because bfloat16 rounds positions 257 and 258 to one number.

    Source: RoFormer (arXiv:2104.09864).
    """
    frequency_R = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling is not None:
        kept_R = ROPE_SCALINGS[scaling.kind](frequency_R, theta, scaling)
        frequency_R = frequency_R * (kept_R + (1 - kept_R) / scaling.factor)
    of_frequency = jnp.array(axes) if axes else None
    positions_BT1R = positions_BT[:, :, None, of_frequency]
    angle_BT1R = positions_BT1R.astype(jnp.float32) * frequency_R
    cos_BT1R, sin_BT1R = jnp.cos(angle_BT1R), jnp.sin(angle_BT1R)
    if scaling is None or scaling.attention_factor == 1.0:
        return cos_BT1R, sin_BT1R
    return cos_BT1R * scaling.attention_factor, sin_BT1R * scaling.attention_factor


def _linear_kept(frequency_R: Array, theta: float, s: RopeScaling) -> Array:
    return jnp.zeros_like(frequency_R)


def _llama3_kept(frequency_R: Array, theta: float, s: RopeScaling) -> Array:
    """Linear in the turns over the original context. Source: HF, `_compute_llama3_parameters`."""
    turns_R = s.original_max_positions * frequency_R / (2 * math.pi)
    return jnp.clip((turns_R - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0.0, 1.0)


def _yarn_kept(frequency_R: Array, theta: float, s: RopeScaling) -> Array:
    """Linear in the frequency's number. Source: YaRN (arXiv:2309.00071); HF, `_compute_yarn_parameters`."""
    R = frequency_R.size

    def number(turns: float) -> float:
        """The fractional index of the frequency that makes this number of turns over the original context."""
        return R * math.log(s.original_max_positions / (2 * math.pi * turns)) / math.log(theta)

    first, last = max(math.floor(number(s.high_freq_factor)), 0), min(math.ceil(number(s.low_freq_factor)), 2 * R - 1)
    return 1 - jnp.clip((jnp.arange(R) - first) / max(last - first, 1e-3), 0.0, 1.0)


def yarn_attention_factor(factor: float, scale: float = 1.0) -> float:
    """YaRN's factor of queries and keys for a stretch by `factor`. Source: arXiv:2309.00071, section 3.4."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


# RopeScaling.kind -> float[R], how much of a frequency is kept: 1 all, 0 it is divided by the factor.
ROPE_SCALINGS: dict[str, Callable[[Array, float, RopeScaling], Array]] = {
    "linear": _linear_kept,
    "llama3": _llama3_kept,
    "yarn": _yarn_kept,
}


def rope(x_BTNH: Array, table: tuple[Array, Array]) -> Array:
    """Rotates pair (r, r + H/2) of each head by its position's angle; HF's halves, not the paper's neighbours."""
    cos, sin = table
    if tpu.is_target():
        cos, sin = (jnp.concatenate([x, x], axis=-1) for x in table)
        return (x_BTNH.astype(jnp.float32) * cos + tpu.rotate_halves(x_BTNH) * sin).astype(x_BTNH.dtype)
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BTNH.dtype)


def make_stack(make: Callable[[nnx.Rngs], BlockT], length: int, *, rngs: nnx.Rngs) -> BlockT:
    """`length` equal blocks as one module, whose weights share a leading "layers" axis; `run_stack` applies them."""
    build = nnx.vmap(make, in_axes=0, out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"})
    return build(rngs.split(length))


def run_stack(
    blocks: nnx.Module,
    apply: Callable[..., tuple[CarryT, Any]],
    carry: CarryT,
    xs: Any = None,
    *,
    length: int | None = None,
    remat: str = "none",
    dtype: jnp.dtype | None = None,
) -> tuple[CarryT, Any]:
    """Scans over the blocks of `make_stack`.

    Args:
      apply: (block, carry, x) -> (carry, y), for one block.
      carry: passed from block to block.
      xs: arrays with the leading axis of the blocks, one slice for each, or None.
      length: how many of the first blocks are applied; None: all. The weights of the others get zero gradients.
      remat: what the backward pass recomputes, a name of `tuning.POLICIES`.
      dtype: to which the matrices are cast before the scan; None: each projection casts its own. Their gradients, which
        are made in that dtype, are stacked in it too: half the memory of float32.

    Returns:
      The last carry and the stacked ys.
    """
    graph, weights = nnx.split(blocks)

    def body(carry: CarryT, inputs: Any) -> tuple[CarryT, Any]:
        w, x = inputs
        return apply(nnx.merge(graph, w), carry, x)

    if remat != "none":
        body = jax.checkpoint(body, policy=remat_policy(remat), prevent_cse=False)
    if length is not None:
        weights = jax.tree.map(lambda w: w[:length], weights)
    if dtype is not None:  # a norm's weights are vectors, and stay in float32
        weights = jax.tree.map(lambda w: w.astype(dtype) if w.ndim > 2 else w, weights)
    return jax.lax.scan(body, carry, (weights, xs))
